"""`python -m pipelines COMMAND`: every job that is not training. Each is imported when it is called."""

import sys
from importlib import import_module

import tyro

from model.command_line import choose, exit_code

COMMANDS = {  # the function of that name, where it is, and what it does
    "synthesize": ("pipelines.synthesize.job", "analytic scenes with exact truth, in a dataset's raw layout"),
    "audit": ("pipelines.audit", "do depth and cameras of a raw dataset fit together as they are read?"),
    "convert": ("pipelines.convert", "a raw dataset to a clip store"),
    "status": ("pipelines.status", "what is done of a store, a run or results, and what failed"),
    "inspect": ("pipelines.inspect", "what a clip store holds, in numbers and pictures"),
    "infer": ("pipelines.infer", "videos to tracks, depth, point clouds and cameras"),
    "view": ("pipelines.view", "results in a browser: timeline, points, tracks, cameras, side by side"),
    "export": ("pipelines.export", "results as COLMAP, nerfstudio, glTF, PLY and more, without the model"),
    "serve": ("pipelines.serve", "a model that answers over HTTP: send a video once, ask as often as you like"),
    "evaluate": ("pipelines.evaluate", "a model scored on held-out clips and the field's benchmarks"),
    "compare": ("pipelines.compare", "evaluations side by side, with the interval of each difference"),
}


def main(argv: list[str]) -> None:
    name = choose(
        argv,
        "command",
        {name: line for name, (_, line) in COMMANDS.items()},
        prog="python -m pipelines",
        about="From raw datasets to clip stores, and from a trained model to results and scores.",
        more="COMMAND --help lists its options.",
    )
    module, _ = COMMANDS[name]
    tyro.cli(getattr(import_module(module), name), prog=f"python -m pipelines {name}", args=argv[1:])


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
