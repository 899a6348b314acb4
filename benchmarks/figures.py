"""What every benchmark asks for and leaves: --out, and its figures as JSON."""

import argparse
import json
from pathlib import Path
from typing import Any


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's parser, described by its docstring as that is laid out, with --out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")
    return parser


def keep(figures: dict[str, Any], out: Path | None) -> None:
    """Write them to `out`, if one was asked for."""
    if out:
        out.write_text(json.dumps(figures, indent=1) + "\n")
