"""A slanted plane before a moving camera: truth for adapters, written down without the project's code.

World and camera axes are OpenCV (x right, y down, z forward), pixel centres lie at +0.5.
"""

import numpy as np
from scipy.spatial.transform import Rotation

NORMAL, OFFSET = np.array([0.3, 0.2, -1.0]) / np.linalg.norm([0.3, 0.2, -1.0]), -4.0  # NORMAL . X = OFFSET
FRAMES = 4


def world_from_cam(t: int) -> np.ndarray:
    """The camera turns about all axes and moves."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("YXZ", [0.08 * t, -0.05 * t, 0.03 * t]).as_matrix()
    pose[:3, 3] = [0.25 * t, -0.1 * t, 0.15 * t]
    return pose


def rays(height: int, width: int, intrinsics: np.ndarray) -> np.ndarray:
    """(H, W, 3) directions through the pixel centres, z = 1."""
    v, u = np.mgrid[:height, :width] + 0.5
    return np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T


def depth(t: int, height: int, width: int, intrinsics: np.ndarray) -> np.ndarray:
    pose = world_from_cam(t)
    return (OFFSET - NORMAL @ pose[:3, 3]) / (rays(height, width, intrinsics) @ pose[:3, :3].T @ NORMAL)


def distance(depth: np.ndarray, intrinsics: np.ndarray, pose: np.ndarray, centre: float) -> np.ndarray:
    """How far depth lifts each pixel off the plane, as a share of depth, if pixel centres lie at +centre."""
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]] + centre
    cam = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T * depth[..., None]
    return np.abs((cam @ pose[:3, :3].T + pose[:3, 3]) @ NORMAL - OFFSET) / depth


def picture(t: int, height: int, width: int) -> np.ndarray:
    """An RGB image that is different in every frame and corner."""
    v, u = np.mgrid[:height, :width]
    return np.stack([u * 9 % 256, v * 11 % 256, np.full_like(u, 40 + 30 * t)], axis=-1).astype(np.uint8)
