"""Bonn RGB-D Dynamic, to evaluate on: as TUM's files, in rgbd_bonn_<name>/. Dataset notes E4.

or, as evaluation codes prepare it, images 30 to 139 alone: rgb_110/<time>.png and depth_110/<time>.png.

groundtruth.txt has the pose of a body with markers, in axes as ROS has them, not the camera's. What leads from one to
the other, T_M, is a similarity of scale 1.0593: a metre of depth is 1.0593 m of the motion capture's world. Everything
is given in metres of depth here, as the field scores it: positions are made smaller.
"""

import numpy as np
from jaxtyping import Float64

from pipelines.datasets.tum import Tum, recordings
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Dataset

LAYOUT = "Bonn RGB-D Dynamic: rgbd_bonn_*/ with rgb.txt, depth.txt, groundtruth.txt, rgb/ and depth/, or rgb_110/"
T_ROS = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # its own inverse
T_M = np.array(
    [
        [1.0157, 0.1828, -0.2389, 0.0113],
        [0.0009, -0.8431, -0.6413, -0.0098],
        [-0.3009, 0.6147, -0.8085, 0.0111],
        [0, 0, 0, 1],
    ]
)
SCALE = float(np.linalg.det(T_M[:3, :3]) ** (1 / 3))


class Bonn(Tum):
    within = 0.04  # times have gaps in some sequences
    chosen = "110"
    markers = ("rgb_110", "depth_110")

    def published(self, name: str) -> tuple[float, float, float, float]:
        return 542.822841, 542.576870, 315.593520, 237.756098

    def camera_poses(self, poses: Float64[np.ndarray, "T 4 4"]) -> Float64[np.ndarray, "T 4 4"]:
        """The rotation nearest to that of T_ROS T_gt T_ROS T_m, whose own is scaled and rounded."""
        cameras = T_ROS @ poses @ T_ROS @ T_M
        known = np.isfinite(cameras).all(axis=(1, 2))
        u, _, vh = np.linalg.svd(np.where(known[:, None, None], cameras, np.eye(4))[:, :3, :3])
        cameras[:, :3, :3] = np.where(known[:, None, None], u @ vh, np.nan)
        cameras[:, :3, 3] /= SCALE
        return cameras


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "rgbd_bonn_balloon2"."""
    return [name for name in recordings(raw, Bonn.markers) if "rgbd_bonn_" in name.rpartition("/")[2]]


DATASET = Dataset(key="bonn", layout=LAYOUT, names=sequence_names, scene_of=str, open=Bonn)
