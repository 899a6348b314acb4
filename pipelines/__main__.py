"""`python -m pipelines COMMAND`: every job that is not training. Bad input ends with exit code 2 and one message."""

import sys

import tyro

from pipelines.audit import audit
from pipelines.convert import convert
from pipelines.evaluate import evaluate
from pipelines.infer import infer
from pipelines.inspect import inspect
from pipelines.synthesize.job import synthesize

COMMANDS = {
    "synthesize": synthesize,
    "audit": audit,
    "convert": convert,
    "inspect": inspect,
    "infer": infer,
    "evaluate": evaluate,
}


def main() -> None:
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m pipelines", description=__doc__)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
