"""`python -m pipelines serve --model M`: a model that answers over HTTP, by Ray Serve. docs/service.md is its page."""

import logging
import signal
import threading

from model.command_line import loading
from pipelines.ports import require_free

# Ray and PyTorch take seconds to import and are not needed to print help or refuse a typing error: see below.


def serve(
    *,
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    memory_gb: float | None = None,
) -> None:
    """Answer questions about videos that are sent, until Ctrl-C. Nobody is asked for a password: mind who reaches it.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/..., or a checkpoint folder.
        host: Address to serve at; 0.0.0.0 lets other machines in.
        port: Port to serve at.
        replicas: So many models, on a GPU each; a clip is held by one of them.
        memory_gb: How much memory of its device a model may take for encoded clips; by default half of what is free.
    """
    if replicas < 1:
        raise ValueError(f"--replicas {replicas} must be at least 1")
    if memory_gb is not None and not memory_gb > 0:
        raise ValueError(f"--memory-gb {memory_gb:g} must be above 0, or left out: half of what is free is taken then")
    require_free(host, port)

    loading("PyTorch", "MLflow", "Ray")
    from pipelines.cluster import connect
    from pipelines.service import app
    from pipelines.service.limits import Limits

    settings, config = app.checked(app.Settings(model=model, replicas=replicas, memory_gb=memory_gb))
    connect()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    answering = app.application(settings, config, Limits())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` ends it as Ctrl-C does
    try:
        app.serve.start(http_options={"host": host, "port": port})
        app.serve.run(answering, name=app.NAME, route_prefix="/")
        print(f"send videos to http://{host}:{port}/clips; Ctrl-C ends it", flush=True)
        threading.Event().wait()
    except RuntimeError as error:  # of Serve, for a replica that does not start
        raise ValueError(f"the service does not start: {error}") from None
    except KeyboardInterrupt:
        print("ending", flush=True)
    finally:
        app.serve.delete(app.NAME)
