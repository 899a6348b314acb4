"""The datasets, by the one name each has in catalogs, stores and MLflow."""

from pipelines.datasets.co3d import Co3d
from pipelines.datasets.dynamic_replica import DynamicReplica
from pipelines.datasets.point_odyssey import PointOdyssey
from pipelines.datasets.tartanair import TartanAir
from pipelines.datasets.virtual_kitti2 import VirtualKitti2
from pipelines.sequence import Sequence

DATASETS: dict[str, type[Sequence]] = {
    "co3d": Co3d,
    "dynamic_replica": DynamicReplica,
    "point_odyssey": PointOdyssey,
    "tartanair": TartanAir,
    "virtual_kitti2": VirtualKitti2,
}
