"""`python -m train PRESET ...` trains and registers; `python -m train register ...` registers a checkpoint folder."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from train.config import cli
from train.errors import RunFailed

# Ray and MLflow take seconds to import and are not needed to print help or refuse a typing error: see below.


def register(
    checkpoint: Annotated[Path, tyro.conf.arg(help="Folder with config.json and weights.safetensors.")],
    name: Annotated[str, tyro.conf.arg(help="Name in the MLflow model registry.")] = "d4rt",
    alias: Annotated[str, tyro.conf.arg(help="Alias that is moved to the new version.")] = "champion",
) -> None:
    """Put a checkpoint folder into the MLflow model registry."""
    from train import tracking

    announce(f"models:/{name}/{tracking.register(checkpoint, name, alias)}", name, alias)


def train(argv: list[str]) -> None:
    config = cli(argv)
    from train.loop import run

    announce(run(config), config.register_as, config.alias)


def announce(uri: str, name: str, alias: str) -> None:
    print(f"registered {uri}, alias {alias}")
    print(f"next: python -m pipelines infer --model models:/{name}@{alias} --video VIDEO --out OUT")


def main(argv: list[str]) -> int:
    try:
        if argv[:1] == ["register"]:
            tyro.cli(register, prog="python -m train register", args=argv[1:])
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
