"""What `python -m train` does:

PRESET ...             trains and registers
PRESET ... --dry-run   only checks that all is there
register ...           registers a checkpoint folder
diagnose ...           looks into a checkpoint
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from train.config import DRY_RUN, check_registry_names, cli
from train.errors import RunFailed

# Ray and MLflow take seconds to import and are not needed to print help or refuse a typing error: see below.


def register(
    checkpoint: Annotated[
        str | None,
        tyro.conf.arg(
            help="Checkpoint: a folder or s3:// URI with config.json and weights.safetensors, or RUN/step_N."
        ),
    ] = None,
    opend4rt: Annotated[Path | None, tyro.conf.arg(help="Instead: opend4rt.ckpt of an OpenD4RT release.")] = None,
    config: Annotated[Path | None, tyro.conf.arg(help="The model.yaml beside it.")] = None,
    name: Annotated[str, tyro.conf.arg(help="Name in the MLflow model registry.")] = "d4rt",
    alias: Annotated[str, tyro.conf.arg(help="Alias that is moved to the new version.")] = "champion",
) -> None:
    """Put a checkpoint folder, or a released checkpoint of OpenD4RT, into the MLflow model registry."""
    if (checkpoint is None) == (opend4rt is None) or (opend4rt is None) != (config is None):
        raise ValueError("register takes either --checkpoint FOLDER, or --opend4rt CKPT with --config MODEL_YAML")
    check_registry_names(name, alias)
    print(f"registering as {name}: reading the weights, then MLflow", flush=True)
    from train import tracking

    if checkpoint is not None:
        version = tracking.register(checkpoint, name, alias)
    else:
        version = tracking.register_opend4rt(opend4rt, config, name, alias)
    announce(f"models:/{name}/{version}", name, alias)


def train(argv: list[str]) -> None:
    dry_run = DRY_RUN in argv
    config = cli([word for word in argv if word != DRY_RUN])
    print(f"run {config.name}: loading PyTorch, Ray and MLflow", flush=True)
    if dry_run:
        from train.preflight import preflight

        if not preflight(config):
            raise ValueError("not everything is ready, see above")
        return
    from train.loop import run

    announce(run(config), config.register_as, config.alias)


def announce(uri: str, name: str, alias: str) -> None:
    from train import tracking

    bearer, _ = tracking.bearer(name, alias) or (None, {})
    moved = uri == f"models:/{name}/{bearer}"
    print(f"registered {uri}, " + (f"alias {alias}" if moved else f"alias {alias} stays with version {bearer}"))
    model = f"models:/{name}@{alias}" if moved else uri
    frames = tracking.clip_frames(name, uri.rpartition("/")[2])
    print(f"next: python -m pipelines infer --model {model} --video VIDEO --out OUT --num-frames {frames}")


def main(argv: list[str]) -> int:
    try:
        if argv[:1] == ["register"]:
            tyro.cli(register, prog="python -m train register", args=argv[1:])
        elif argv[:1] == ["diagnose"]:
            from train.diagnose import diagnose

            tyro.cli(diagnose, prog="python -m train diagnose", args=argv[1:])
        else:
            train(argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
