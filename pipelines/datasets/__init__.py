"""The datasets, by the one name each has in catalogs, stores and MLflow, which is also that of its module.

A module is imported when its dataset is asked for: the names alone cost nothing.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from pipelines.sequence import Dataset, Sequence

DatasetKey = Literal[
    "blended_mvs",
    "co3d",
    "dynamic_replica",
    "kubric",
    "mvs_synth",
    "point_odyssey",
    "scannet",
    "tartanair",
    "virtual_kitti2",
]


HeldOutKey = Literal["bonn", "kitti", "realestate10k", "sintel", "tum"]
"""What the field's benchmarks are made of: to evaluate on, never to train on."""


def reader(key: str) -> "Dataset":
    """Of a dataset to train or to evaluate on. KeyError if there is none of that name."""
    if key not in (*get_args(DatasetKey), *get_args(HeldOutKey)):
        raise KeyError(key)
    return import_module(f"{__name__}.{key}").DATASET


class _Datasets(Mapping[str, "Dataset"]):
    """Those to train on."""

    def __getitem__(self, key: str) -> "Dataset":
        if key not in get_args(DatasetKey):
            raise KeyError(key)
        return reader(key)

    def __iter__(self) -> Iterator[str]:
        return iter(get_args(DatasetKey))

    def __len__(self) -> int:
        return len(get_args(DatasetKey))


DATASETS = _Datasets()


@lru_cache(maxsize=2)
def open_sequence(dataset: str, raw: str, name: str) -> "Sequence":
    """A sequence of a raw folder, opened once per process. ValueError naming file, rule and remedy."""
    from pipelines.raw.folder import RawFolder

    return reader(dataset).open(RawFolder(raw), name)
