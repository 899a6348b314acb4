"""`python -m model COMMAND`: how large a model is, and a model for other runtimes."""

import argparse
import sys
from pathlib import Path

from model.command_line import exit_code
from model.config import PRESETS


def main(argv: list[str]) -> int:
    return exit_code(lambda: answer(command_line().parse_args(argv)), ImportError)


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    described = commands.add_parser("describe", help="parameters, FLOP and memory of a model")
    described.add_argument("model", help=f"a preset ({', '.join(PRESETS)}) or a checkpoint folder")
    described.add_argument("--frames", type=int, nargs="+", help="of the clips (default: 16, 32, 48, or the longest)")
    described.add_argument("--queries", type=int, default=2048, help="of a training step (default: %(default)s)")

    exported = commands.add_parser("export", help="write encoder.onnx and decoder.onnx, or a checkpoint for OpenD4RT")
    exported.add_argument(
        "checkpoint", type=Path, help="folder with config.json and weights.safetensors, or RUN/step_N"
    )
    exported.add_argument("--out", type=Path, required=True, help="new local folder for the files")
    exported.add_argument("--to", choices=("onnx", "opend4rt"), default="onnx", help="form (default: %(default)s)")
    exported.add_argument("--frames", type=int, help="of every clip an ONNX model is asked (default: its longest)")

    return parser


def answer(arguments: argparse.Namespace) -> None:
    """What was asked for; PyTorch, which takes seconds, is imported only now."""
    from model import checkpoints, describe, onnx_export

    if arguments.command == "describe":
        config = describe.find_config(arguments.model)
        print(describe.table(config, arguments.frames, arguments.queries))
        return
    onnx_export.require_new(arguments.out)
    if arguments.to == "onnx":
        onnx_export.export(arguments.checkpoint, arguments.out, arguments.frames)
    else:
        checkpoints.save_opend4rt(checkpoints.load(arguments.checkpoint), arguments.out)
    print(f"wrote {arguments.out}: {', '.join(sorted(path.name for path in arguments.out.iterdir()))}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
