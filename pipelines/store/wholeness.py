"""Whether all files of the groups of a store are there: by listing them, without reading one."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from pipelines.store.layout import ARRAYS
from pipelines.whole import sizes

LISTERS = 8  # folders that are listed together: S3 takes as long for one as a disk for a hundred
TOLD = 5  # damaged groups that are named


def require_whole(store: str, groups: Iterable[str]) -> None:
    """ValueError, naming groups (SEQUENCE/NAME-ID) and the remedy, if files of one of them are gone or empty."""
    by_sequence: dict[str, list[str]] = {}
    for group in sorted(set(groups)):
        by_sequence.setdefault(group.partition("/")[0], []).append(group)

    def lost(sequence: str) -> list[str]:
        there = sizes(f"{store}/data/{sequence}")
        whole = {tuple(file.split("/")[:2]) for file, size in there.items() if size and _is_content(file)}
        return [
            f"{array} of {group}"
            for group in by_sequence[sequence]
            for array in ("zarr.json", *ARRAYS)
            if (f"{group.partition('/')[2]}.zarr", array) not in whole
        ]

    with ThreadPoolExecutor(LISTERS) as pool:
        damaged = [text for found in pool.map(lost, by_sequence) for text in found]
    if damaged:
        more = f" and {len(damaged) - TOLD} more" if len(damaged) > TOLD else ""
        mark = f"groups/{damaged[0].partition(' of ')[2].rpartition('-')[0]}.json"
        raise ValueError(
            f"store {store} is damaged: it lacks {', '.join(damaged[:TOLD])}{more}; delete store.json and the mark of "
            f"each such group, like {mark}, and run convert again, which makes only these anew"
        )


def _is_content(file: str) -> bool:
    """Not what describes an array: NAME-ID.zarr/zarr.json, or NAME-ID.zarr/ARRAY/c/0/..., the one shard of an array."""
    inside = file.split("/")[1:]
    return inside == ["zarr.json"] or inside[1:2] == ["c"]
