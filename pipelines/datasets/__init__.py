"""The datasets, by the one name each has in catalogs, stores and MLflow."""

from functools import lru_cache
from typing import Literal

from pipelines.datasets.blended_mvs import BlendedMvs
from pipelines.datasets.co3d import Co3d
from pipelines.datasets.dynamic_replica import DynamicReplica
from pipelines.datasets.kubric import Kubric
from pipelines.datasets.mvs_synth import MvsSynth
from pipelines.datasets.point_odyssey import PointOdyssey
from pipelines.datasets.scannet import ScanNet
from pipelines.datasets.tartanair import TartanAir
from pipelines.datasets.virtual_kitti2 import VirtualKitti2
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Sequence

Dataset = Literal[
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

DATASETS: dict[str, type[Sequence]] = {
    "blended_mvs": BlendedMvs,
    "co3d": Co3d,
    "dynamic_replica": DynamicReplica,
    "kubric": Kubric,
    "mvs_synth": MvsSynth,
    "point_odyssey": PointOdyssey,
    "scannet": ScanNet,
    "tartanair": TartanAir,
    "virtual_kitti2": VirtualKitti2,
}


@lru_cache(maxsize=2)
def open_sequence(dataset: str, raw: str, name: str) -> Sequence:
    """A sequence of a raw folder, opened once per process. ValueError naming file, rule and remedy."""
    return DATASETS[dataset](RawFolder(raw), name)
