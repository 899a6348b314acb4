"""store.json: what makes a folder a finished store."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from pipelines import documents
from pipelines.store.layout import SCHEMA, StoreSettings
from pipelines.whole import read_file

STORE = "store.json"
REMEDY = "delete store.json and run convert again, which makes it anew"

Count = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Document:
    """The fields of store.json."""

    schema: int
    settings: StoreSettings
    index: str
    """Name of the file."""
    groups: str
    """Digest of their names."""
    num_clips: Count
    digest: str
    """Of the content of all clips."""
    query_fields: dict[str, Any]
    valid_bits: dict[str, int]
    flag_bits: dict[str, int]
    catalog: dict[str, Any]
    counts: dict[str, Count]
    sequences: list[str]
    failed: dict[str, str]
    """Sequence -> reason, as in the next two."""
    skipped: dict[str, str]
    noted: dict[str, str]

    def __post_init__(self) -> None:
        if "/" in self.index:
            raise ValueError(f"its index {self.index!r} is not in the store")


def find_document(store: str) -> Document | None:
    """None if the store is not finished. ValueError for a store.json that is damaged, or of another schema."""
    file = f"{store}/{STORE}"
    content = read_file(file)
    if content is None:
        return None
    schema = documents.parse(content, dict, file, REMEDY, others="ignore").get("schema")
    if schema != SCHEMA:
        raise ValueError(
            f"store {store} has schema {schema}, this code reads {SCHEMA}: convert it again, into another place"
        )
    return documents.parse(content, Document, file, REMEDY, others="forbid")


def read_document(store: str) -> Document:
    """As `find_document`, and ValueError where there is none."""
    document = find_document(store)
    if document is None:
        raise ValueError(
            f"no {STORE} in {store}: not a clip store, or its conversion did not finish; run convert (again)"
        )
    return document
