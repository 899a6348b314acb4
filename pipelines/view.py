"""`python -m pipelines view OUT`: results in a browser, played, turned and compared.

It needs no display of its own: it serves a page, on this machine only unless --host says otherwise.
"""

from typing import TYPE_CHECKING

from pipelines.ports import require_free

if TYPE_CHECKING:
    from model.recipes.asking import AnsweringModel

# viser takes seconds to import and is not needed to print help or refuse a port that is taken: see below.


def view(
    place: str,
    /,
    *,
    beside: tuple[str, ...] = (),
    truth: str | None = None,
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
) -> None:
    """Look at results in a browser. Ends with Ctrl-C.

    Args:
        place: What `infer --out` has written, of all videos or of one; or a folder of St4RTrack, or a package of
            `export --formats opend4rt`.
        beside: More of these, of other models: the same video in each is shown to the right.
        truth: Results that are true, to the right; tracks are then coloured by how far they are from it.
        model: models:/NAME@ALIAS, ..., or a checkpoint folder: is asked for the track of a point that is clicked.
        host: Address to serve at; 0.0.0.0 lets other machines in.
        port: Port to serve at.
    """
    require_free(host, port)
    from pipelines.results.viewer.opened import find_openable
    from pipelines.results.viewer.server import Viewer

    find_openable(place)  # before a model is loaded
    viewer = Viewer(place, host, port, beside, truth, None if model is None else _loaded(model))
    print(f"open http://{host}:{port} in a browser; Ctrl-C ends it", flush=True)
    try:
        viewer.play()
    except KeyboardInterrupt:
        viewer.server.stop()


def _loaded(uri: str) -> "AnsweringModel":
    """On the GPU, if there is one."""
    import torch

    from pipelines.models import load_model, model_version

    return load_model(model_version(uri), "cuda" if torch.cuda.is_available() else "cpu")
