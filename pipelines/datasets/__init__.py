"""The datasets, by the one name each has in catalogs, stores and MLflow."""

from functools import lru_cache
from typing import Literal

from pipelines.datasets.point_odyssey import PointOdyssey
from pipelines.datasets.tartanair import TartanAir
from pipelines.datasets.virtual_kitti2 import VirtualKitti2
from pipelines.raw_folder import RawFolder
from pipelines.sequence import Sequence

Dataset = Literal["point_odyssey", "tartanair", "virtual_kitti2"]

DATASETS: dict[str, type[Sequence]] = {
    "point_odyssey": PointOdyssey,
    "tartanair": TartanAir,
    "virtual_kitti2": VirtualKitti2,
}


@lru_cache(maxsize=2)
def open_sequence(dataset: str, raw: str, name: str) -> Sequence:
    """A sequence of a raw folder, opened once per process. ValueError naming file, rule and remedy."""
    return DATASETS[dataset](RawFolder(raw), name)
