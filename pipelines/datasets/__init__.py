"""The datasets, by the one name each has in catalogs, stores and MLflow."""

from pipelines.datasets.blended_mvs import BlendedMvs
from pipelines.datasets.point_odyssey import PointOdyssey
from pipelines.datasets.scannet import ScanNet
from pipelines.datasets.tartanair import TartanAir
from pipelines.datasets.virtual_kitti2 import VirtualKitti2
from pipelines.sequence import Sequence

DATASETS: dict[str, type[Sequence]] = {
    "blended_mvs": BlendedMvs,
    "point_odyssey": PointOdyssey,
    "scannet": ScanNet,
    "tartanair": TartanAir,
    "virtual_kitti2": VirtualKitti2,
}
