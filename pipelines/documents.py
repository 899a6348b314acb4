"""Small JSON files that say what a folder holds, read by what they must say.

They are a few kilobytes of JSON that somebody may have cut short, edited, or written by another program. The fields of
a dataclass say what must be in one; Pydantic compares the two.
"""

from types import GenericAlias
from typing import Any, Literal, TypeVar

from pipelines.whole import read_file

# Pydantic takes half a second to import and is not needed to print help: see below.

Kind = TypeVar("Kind")
TOLD = 3  # of the fields that are wrong


def parse(
    content: bytes, kind: type[Kind] | GenericAlias, file: str, remedy: str, *, others: Literal["forbid", "ignore"]
) -> Kind:
    """What a JSON document says, as `kind`: a dataclass, a list of these, or dict, which it must fit to the letter.

    `others`: what becomes of fields that a dataclass does not have. ValueError, naming the file, the fields that are
    wrong, what they must be, and the remedy.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(content, strict=True, extra=others)
    except ValidationError as error:
        wrong = [_words(found) for found in error.errors(include_url=False)[:TOLD]]
        raise ValueError(f"{file} is damaged ({'; '.join(wrong)}): {remedy}") from None


def read(
    uri: str, kind: type[Kind] | GenericAlias, remedy: str, *, others: Literal["forbid", "ignore"] = "forbid"
) -> Kind | None:
    """`parse` of a file; None if there is no such file."""
    content = read_file(uri)
    return None if content is None else parse(content, kind, uri, remedy, others=others)


def _words(found: dict[str, Any]) -> str:
    field = ".".join(map(str, found["loc"]))
    rule = found["msg"].removeprefix("Value error, ")
    return f"{field}: {rule}" if field else rule
