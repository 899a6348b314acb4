"""Commands as pages, manifests and images have them, given to the real command line that would run them, which only
reads them."""

import functools
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import tyro

import model.__main__
import pipelines.__main__
import train.__main__
from train.config import PRESETS, parse

ROOT = Path(__file__).parent.parent
FENCED = re.compile(r"^```bash.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Z_]+=.*", re.DOTALL)
OTHERS = {".", "set", "cd", "curl", "docker", "export", "git", "helm", "kubectl", "make", "openssl", "pip", "ssh", "uv"}


def commands_in(page: Path) -> Iterator[str]:
    """Every command of the fenced blocks of a page that are marked as bash, each on one line."""
    for block in FENCED.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line.strip()


def require_understood(command: str) -> None:
    """AssertionError, ValueError or click's error for a command that would be refused for how it is written.

    Of programs that are not ours, nor Ray's or MLflow's, only the files of this repository that are named must exist.
    """
    words = shlex.split(command, comments=True)
    while words and (words[0] == "env" or ASSIGNMENT.fullmatch(words[0])):
        words.pop(0)
    program, *rest = words
    for word in words:
        if re.match(r"(infra|docs|catalogs)/", word):
            assert (ROOT / word).exists(), f"{word} in: {command}"
    if program == "python":
        assert rest[0] == "-m", command
        _python(rest[1], rest[2:])
    elif program in ("ray", "mlflow"):
        options = _click(program, rest)
        if entrypoint := options.get("entrypoint"):
            require_understood(shlex.join(entrypoint))
    else:
        assert program in OTHERS, f"who knows {program}? In: {command}"


def _python(module: str, argv: list[str]) -> None:
    if module == "pipelines":
        where, _ = pipelines.__main__.COMMANDS[argv[0]]
        _tyro(getattr(import_module(where), argv[0]), argv[1:])
    elif module == "train" and argv[0] in PRESETS:
        _only_reads(parse, argv)
    elif module == "train":
        command, _ = train.__main__.OTHERS[argv[0]]
        _tyro(command, argv[1:])
    else:
        assert module == "model", f"no command of this project: python -m {module}"
        arguments = model.__main__.command_line().parse_args(argv)
        assert arguments.command


def _tyro(command: Callable[..., Any], argv: list[str]) -> None:
    """What the command's options become, for something with its signature that does nothing."""

    @functools.wraps(command)
    def nothing(*_: Any, **__: Any) -> None: ...

    _only_reads(lambda words: tyro.cli(nothing, args=words), argv)


def _only_reads(parse: Callable[[list[str]], Any], argv: list[str]) -> None:
    try:
        parse(argv)
    except SystemExit as end:  # which says why on stderr; --help ends with 0
        assert end.code == 0, f"not understood: {shlex.join(argv)}"


def _click(program: str, argv: list[str]) -> dict[str, Any]:
    """The options of the last of the nested commands."""
    module = {"ray": "ray.scripts.scripts", "mlflow": "mlflow.cli"}[program]
    command = import_module(module).cli
    while isinstance(command, click.Group):
        name, *argv = argv
        command = command.commands[name]
    return command.make_context(program, list(argv)).params
