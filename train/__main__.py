"""`python -m train PRESET`: a run, from stores to a registered model; or `register`, `promote`, `adapt`,
`diagnose`."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from model.command_line import choose, exit_code, line, loading
from train.config import PRESETS, check_registry_names, parse
from train.errors import RunFailed

# Ray, PyTorch and MLflow take seconds to import and are not needed to print help or refuse a typing error: see below.


def register(
    checkpoint: Annotated[
        str | None,
        tyro.conf.arg(
            help="Checkpoint: a folder or s3:// URI with config.json and weights.safetensors, or RUN/step_N."
        ),
    ] = None,
    opend4rt: Annotated[Path | None, tyro.conf.arg(help="Instead: opend4rt.ckpt of an OpenD4RT release.")] = None,
    config: Annotated[Path | None, tyro.conf.arg(help="The model.yaml beside it.")] = None,
    calibrate_on: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="Clip stores of scenes that it was not trained on: count there what confidences stand for."),
    ] = (),
    name: Annotated[str, tyro.conf.arg(help="Name in the MLflow model registry.")] = "d4rt",
    alias: Annotated[str, tyro.conf.arg(help="Alias that is moved to the new version.")] = "champion",
) -> None:
    """Put a checkpoint folder, or a released checkpoint of OpenD4RT, into the MLflow model registry."""
    if (checkpoint is None) == (opend4rt is None) or (opend4rt is None) != (config is None):
        raise ValueError("register takes either --checkpoint FOLDER, or --opend4rt CKPT with --config MODEL_YAML")
    if opend4rt is not None and calibrate_on:
        raise ValueError("register it first, then: register --checkpoint models:/NAME/VERSION --calibrate-on STORE")
    check_registry_names(name, alias)
    print(f"registering as {name}: reading the weights, then MLflow", flush=True)
    from train import tracking, versions

    calibration = None
    if calibrate_on:
        from train.calibrate import calibrate

        calibration = calibrate(checkpoint, list(calibrate_on))
    with tracking.plainly("so nothing was registered"):
        if opend4rt is not None:
            version = versions.register_opend4rt(opend4rt, config, name, alias)
        else:
            version = versions.register(checkpoint, name, alias, calibration=calibration)
    announce(f"models:/{name}/{version}", name, alias)


def promote(
    *,
    name: str = "d4rt",
    version: int | None = None,
    alias: str = "champion",
    because: str = "",
    by: str | None = None,
) -> None:
    """Give an alias to a version of a registered model, and write down why.

    Args:
        name: Of the registered model.
        version: Its number.
        alias: champion, which commands use; challenger, which is to be compared with it; or any other.
        because: Why, in words: kept with the version, with the time, who did it, and which version had the alias.
        by: Instead of both: a leaderboard, OUT of `compare` or of an evaluation of all versions; its first version gets
            the alias if it is surely better than the one that has it.
    """
    check_registry_names(name, alias)
    if (by is None) == (version is None):
        raise ValueError("give either --version, and --because, or --by LEADERBOARD")
    if by is None and not because.strip():
        raise ValueError("--because is empty: say why, for those who come later")
    from train.promotion import first_of, move_alias

    if by is not None:
        version, because = first_of(by, name, alias)
    print(move_alias(name, version, alias, because.strip()))


def diagnose(*, model: str, data: list[str], clips: int = 8) -> None:
    """Look into a model with a few clips: its heads, its confidence, its gradients, and what is bad about them.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/..., or a checkpoint folder.
        data: Clip stores, folders or s3:// URIs; each is looked at by itself.
        clips: Clips per store, at most.
    """
    loading("PyTorch", "MLflow", "Ray")
    from train.diagnose import look_into

    look_into(model, data, clips)


def adapt(
    *,
    model: str,
    video: list[str],
    out: str,
    labels: str | None = None,
    teacher: str | None = None,
    truth: str | None = None,
    start: int = 0,
    step: int = 1,
    fps: float | None = None,
    num_frames: int | None = None,
    steps: int = 500,
    lr: float = 5e-5,
    dry_run: bool = False,
) -> None:
    """Adapt a model to videos, each for itself, by what others believe of them. Run again, it does what is missing.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/..., or a checkpoint folder.
        video: Video files or folders of images.
        out: Folder or s3:// URI; OUT/NAME is a checkpoint for the video of that name, for infer --model.
        labels: Pseudo-labels: a .npz file of one video, or a folder with NAME.npz for each. See docs/adapt.md.
        teacher: Or a model that makes them, named as --model, or python:MODULE:FUNCTION, a function of yours; what it
            says of a video is kept in OUT.
        truth: True answers in files like --labels: for the report, before and after; nothing is chosen by them.
        start: First frame to take, counted from 0.
        step: Take every so many-th frame.
        fps: Or take so many frames per second, by the times at which they are shown; of files that tell them.
        num_frames: Take so many frames; by default all.
        steps: At most; it ends earlier where held-out labels are no longer answered better.
        lr: Peak learning rate.
        dry_run: Only check that model, videos, labels and OUT are as they must be, and say what is to be done.
    """
    if (labels is None) == (teacher is None):
        raise ValueError("give either --labels, files of pseudo-labels, or --teacher, a model that makes them")
    from pipelines.results.selection import Selection

    selection = Selection(start=start, step=step, fps=fps, num_frames=num_frames)
    loading("PyTorch", "MLflow", "Ray")
    from train.adapt_videos import Asked, adapt_videos

    asked = Asked(labels=labels, teacher=teacher, truth=truth, selection=selection, steps=steps, lr=lr)
    adapt_videos(model, video, out, asked, dry_run=dry_run)


def train(argv: list[str]) -> None:
    config, dry_run = parse(argv)
    print(line(f"run {config.name}", run=config.name), flush=True)
    loading("PyTorch", "MLflow", "Ray")
    if dry_run:
        from train.preflight import preflight

        if not preflight(config):
            raise ValueError("not everything is ready, see above")
        return
    from train.loop import run

    announce(run(config), config.register_as, config.alias)


def announce(uri: str, name: str, alias: str) -> None:
    from pipelines.log import say
    from train import tracking, versions

    with tracking.plainly(f"but {uri} is registered"):
        bearer, _ = versions.bearer(name, alias) or (None, {})
    moved = uri == f"models:/{name}/{bearer}"
    say(f"registered {uri}, " + (f"alias {alias}" if moved else f"alias {alias} stays with version {bearer}"))
    model = f"models:/{name}@{alias}" if moved else uri
    say(f"next: python -m pipelines infer --model {model} --video VIDEO --out OUT")


OTHERS = {
    "register": (register, "a checkpoint into the MLflow model registry"),
    "promote": (promote, "an alias to a version in the registry, and why"),
    "adapt": (adapt, "a model to one video, by pseudo-labels of it"),
    "diagnose": (diagnose, "what a model has learnt, and what is wrong with it"),
}


def run_command(argv: list[str]) -> None:
    name = choose(
        argv,
        "preset",
        {name: line for name, (line, _) in PRESETS.items()} | {name: line for name, (_, line) in OTHERS.items()},
        prog="python -m train",
        about="Train D4RT on clip stores and register the result. Presets, and what else can be done:",
        more="PRESET --help lists all that can be changed. With --dry-run it is only checked that all is there.",
    )
    if name in PRESETS:
        train(argv)
    else:
        command, _ = OTHERS[name]
        tyro.cli(command, prog=f"python -m train {name}", args=argv[1:])


def main(argv: list[str]) -> int:
    return exit_code(lambda: run_command(argv), RunFailed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
