"""Which frames of CO3D have their pictures: those of its benchmark's test sets were blanked. Dataset notes D8."""

import json
from functools import lru_cache

from pipelines.raw.folder import RawFolder

MAX_BYTES = 1 << 28  # of one set list; real ones have some ten million


def usable_frames(raw: RawFolder, category: str) -> dict[str, set[int]]:
    """frame_numbers by sequence that a set list of a category (its folder) has in train or val."""
    folder = f"{category}/set_lists"
    paths = [f"{folder}/{name}" for name in raw.listdir(folder)[1] if name.endswith(".json")]
    if not paths:
        raise ValueError(
            f"no set list {folder}/*.json in {raw.uri}: they tell which frames were blanked, and come with the "
            "annotations in the archive <category>_000.zip; extract it again"
        )
    return _read(raw.uri, tuple(paths), tuple(map(raw.version, paths)))


@lru_cache(4)
def _read(uri: str, paths: tuple[str, ...], versions: tuple[str, ...]) -> dict[str, set[int]]:
    """`versions` change with the files, so that what is kept is never older than they are."""
    raw, numbers = RawFolder(uri), {}
    for path, size in zip(paths, raw.sizes(paths), strict=True):
        if size > MAX_BYTES:
            raise ValueError(f"{path} in {uri} has {size} bytes, more than {MAX_BYTES}: no set list of CO3D")
        try:
            listed = json.loads(raw.text(path))
            for sequence, number, _ in listed["train"] + listed["val"]:
                numbers.setdefault(sequence, set()).add(number)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} in {uri} must be a JSON mapping of train and val to lists of [sequence, frame_number, path] "
                f"({error!r}): download it again"
            ) from None
    return numbers
