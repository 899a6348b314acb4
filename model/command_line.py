"""How every command of this project ends, and how it finds what was meant. At the bottom, so that all may import it.

| what happens                             | the user sees           | exit code |
|------------------------------------------|-------------------------|-----------|
| ValueError: what was given is wrong      | `error: ` and its words | 2         |
| a failure that the command knows         | `error: ` and its words | 1         |
| a disk without room                      | `error: ` and its words | 2         |
| Ctrl-C, SIGTERM                          | how it goes on, if said | 130       |
| nobody reads the output any more: `head` |                         | 141       |

130 and 141 are what a shell gives for SIGINT and SIGPIPE. Anything else is a mistake of ours, with a traceback.
"""

import difflib
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import datetime

HELP = ("-h", "--help")
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "it is read-only",
    errno.EFBIG: "a file gets larger than it may (ulimit -f)",
}

LEVELS = {"error": "ERROR", "warning": "WARNING", "failed": "WARNING"}  # by the first word of a line


def says_json() -> bool:
    """Whether jobs speak to who collects logs. ValueError if D4RT_LOG is neither text nor json."""
    kind = os.environ.get("D4RT_LOG") or "text"
    if kind not in ("text", "json"):
        raise ValueError(f"D4RT_LOG={kind} is unknown: text, which is the default, or json, an object per line")
    return kind == "json"


def line(text: str, **about: object) -> str:
    """What a job says: the words, or, with D4RT_LOG=json, an object with them and all that is known `about` them."""
    if not says_json():
        return text
    level = LEVELS.get(text.partition(" ")[0].rstrip(":"), "INFO")
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "level": level, "message": text} | about, ensure_ascii=False, default=str)


def exit_code(command: Callable[[], object], *failures: type[Exception]) -> int:
    """Do it and say how it ended. `failures`: errors that are not about what was given, but can be said in words; one
    with an `exit_code` ends with that."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a name in other letters than the terminal's is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is half done is put away
    try:
        says_json()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        try:
            command()
        finally:
            # Here, where a reader that is gone can be told; also after --help, which is SystemExit.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 141
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        if end.code == signal.SIGTERM:  # what Ray makes of it while it starts
            return 130
        raise
    except (ValueError, *failures) as error:
        print(line(f"error: {error}"), file=sys.stderr)
        return 2 if isinstance(error, ValueError) else getattr(error, "exit_code", 1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        place = error.filename or "what is written to"
        print(line(f"error: {place}: {NO_ROOM[error.errno]}; make room"), file=sys.stderr)
        _drop_output()
        return 2
    return 0


def _drop_output() -> None:
    """Python flushes once more when it ends, and must not stumble again."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def loading(*libraries: str) -> None:
    """Say that these are about to be imported, which takes seconds; nothing of those that are."""
    modules = {"PyTorch": "torch", "Ray": "ray", "MLflow": "mlflow"}
    new = [name for name in libraries if modules[name] not in sys.modules]
    if new:
        print(line(f"loading {listed(new)}"), flush=True)


def listed(words: list[str]) -> str:
    """Like "one", "one and two", "one, two and three"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that is none of `known`."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}Known {kind}s: {', '.join(known)}"


def choose(argv: list[str], kind: str, names: dict[str, str], *, prog: str, about: str, more: str) -> str:
    """The first word, if it is one of `names`, each with a line about it; ValueError, with a suggestion, if not.

    Without a word, or for --help, they are listed, and the process ends.
    """
    word = argv[0] if argv else None
    if word is None or word in HELP:
        width = max(map(len, names))
        listed = "\n".join(f"  {name:{width}}  {line}" for name, line in names.items())
        print(f"usage: {prog} {kind.upper()} [OPTIONS]\n\n{about}\n\n{listed}\n\n{more}")
        sys.exit(0 if word else 2)
    if word not in names:
        raise ValueError(unknown(kind, word, names))
    return word
