"""The datasets, by the one name each has in catalogs, stores and MLflow."""

from pipelines.datasets.kubric import Kubric
from pipelines.datasets.mvs_synth import MvsSynth
from pipelines.datasets.point_odyssey import PointOdyssey
from pipelines.datasets.tartanair import TartanAir
from pipelines.datasets.virtual_kitti2 import VirtualKitti2
from pipelines.sequence import Sequence

DATASETS: dict[str, type[Sequence]] = {
    "kubric": Kubric,
    "mvs_synth": MvsSynth,
    "point_odyssey": PointOdyssey,
    "tartanair": TartanAir,
    "virtual_kitti2": VirtualKitti2,
}
