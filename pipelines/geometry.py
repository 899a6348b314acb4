"""Pinhole geometry in NumPy. Leading dimensions broadcast; see `pipelines/sequence.py` for the conventions."""

import numpy as np
from jaxtyping import Bool, Float, Int64


def finite(points: Float[np.ndarray, "*batch n"]) -> Bool[np.ndarray, "*batch"]:
    """Where all coordinates are. For the few of a point four times as fast as `np.isfinite(points).all(axis=-1)`."""
    result = np.isfinite(points[..., 0])
    for axis in range(1, points.shape[-1]):
        result &= np.isfinite(points[..., axis])
    return result


def distance(a: Float[np.ndarray, "*#batch n"], b: Float[np.ndarray, "*#batch n"]) -> Float[np.ndarray, "*#batch"]:
    """||a - b||, as `np.linalg.norm` has it, faster for the few coordinates of a point."""
    offset = a - b
    return np.sqrt(np.einsum("...i,...i->...", offset, offset))


def transform(
    b_from_a: Float[np.ndarray, "*#batch 4 4"], xyz_a: Float[np.ndarray, "*#batch 3"]
) -> Float[np.ndarray, "*#batch 3"]:
    """Points in frame a, expressed in frame b."""
    return rotate(b_from_a, xyz_a) + b_from_a[..., :3, 3]


def rotate(
    b_from_a: Float[np.ndarray, "*#batch 4 4"], vector_a: Float[np.ndarray, "*#batch 3"]
) -> Float[np.ndarray, "*#batch 3"]:
    """Directions (normals, displacements) in the axes of frame a, expressed in the axes of frame b."""
    rotation = b_from_a[..., :3, :3]
    if rotation.ndim == 2:  # one for all: a matrix product, several times as fast
        return vector_a @ rotation.T
    return np.einsum("...ij,...j->...i", rotation, vector_a)


def inverse(b_from_a: Float[np.ndarray, "*#batch 4 4"]) -> Float[np.ndarray, "*#batch 4 4"]:
    """a_from_b of a rigid motion."""
    a_from_b = np.zeros_like(b_from_a)
    a_from_b[..., :3, :3] = np.swapaxes(b_from_a[..., :3, :3], -1, -2)
    a_from_b[..., :3, 3] = -np.einsum("...ij,...j->...i", a_from_b[..., :3, :3], b_from_a[..., :3, 3])
    a_from_b[..., 3, 3] = 1
    return a_from_b


def unproject(
    uv: Float[np.ndarray, "*#batch 2"],
    depth: Float[np.ndarray, "*#batch"],
    intrinsics: Float[np.ndarray, "*#batch 3 3"],
) -> Float[np.ndarray, "*#batch 3"]:
    """Pixels (corner convention) and z-depth to points in camera axes."""
    x = (uv[..., 0] - intrinsics[..., 0, 2]) / intrinsics[..., 0, 0]
    y = (uv[..., 1] - intrinsics[..., 1, 2]) / intrinsics[..., 1, 1]
    return np.stack([x * depth, y * depth, depth], axis=-1)


def project(
    xyz_cam: Float[np.ndarray, "*#batch 3"], intrinsics: Float[np.ndarray, "*#batch 3 3"]
) -> Float[np.ndarray, "*#batch 2"]:
    """Points in camera axes to pixels. Only meaningful where z > 0; z = 0 gives inf or NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        xy = xyz_cam[..., :2] / xyz_cam[..., 2:]
    return np.stack(
        [
            xy[..., 0] * intrinsics[..., 0, 0] + intrinsics[..., 0, 2],
            xy[..., 1] * intrinsics[..., 1, 1] + intrinsics[..., 1, 2],
        ],
        axis=-1,
    )


def towards_camera(
    normal: Float[np.ndarray, "N 3"],
    column: Int64[np.ndarray, "N"],
    row: Int64[np.ndarray, "N"],
    intrinsics: Float[np.ndarray, "3 3"],
    shortest: float,
) -> Float[np.ndarray, "N 3"]:
    """Decoded normals of pixels, in camera axes, as unit vectors towards the camera; NaN for those below `shortest`,
    which is what a background and blurred edges decode to."""
    length = np.linalg.norm(normal, axis=1)
    ray = unproject(np.stack([column + 0.5, row + 0.5], axis=1), np.ones(len(row)), intrinsics)
    sign = -np.sign((normal * ray).sum(axis=1))
    scale = np.divide(sign, length, out=np.full(len(row), np.nan), where=length >= shortest)
    return normal * scale[:, None]


def scaled_intrinsics(
    intrinsics: Float[np.ndarray, "*#batch 3 3"], *, width_ratio: float, height_ratio: float
) -> Float[np.ndarray, "*#batch 3 3"]:
    """Intrinsics after resizing the image: with corner pixels, plain scaling is exact."""
    return intrinsics * np.array([width_ratio, height_ratio, 1.0])[:, None]


def rotation_from_xyzw(quaternion: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotation matrix of a quaternion in the order x, y, z, w; its length does not matter."""
    x, y, z, w = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def xyzw_from_rotation(rotation: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 4"]:
    """(x, y, z, w) of unit length, w >= 0, of rotation matrices.

    It is the eigenvector to the largest eigenvalue of a symmetric matrix (Bar-Itzhack 2000), so no case is singular.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.moveaxis(rotation, (-2, -1), (0, 1))
    rows = [
        [xx - yy - zz, xy + yx, xz + zx, zy - yz],
        [xy + yx, yy - xx - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    _, vectors = np.linalg.eigh(np.stack([np.stack(row, axis=-1) for row in rows], axis=-2))
    best = vectors[..., -1]
    return best * np.copysign(1.0, best[..., 3:])


def check_fit(intrinsics: Float[np.ndarray, "*batch 3 3"], size: tuple[int, int], where: str) -> None:
    """ValueError, naming `where` they are from, unless intrinsics are without skew and of images of `size` (H, W)."""
    centre = intrinsics[..., :2, 2] / [size[1], size[0]]
    rest = intrinsics[..., (0, 1, 2, 2, 2), (1, 0, 0, 1, 2)] - [0, 0, 0, 0, 1]
    if not (np.abs(centre - 0.5) < 0.25).all() or rest.any():
        raise ValueError(
            f"intrinsics of {where} are {intrinsics.reshape(-1, 9)[0].tolist()}, but images are {size} (H, W): they "
            "must be fx 0 cx, 0 fy cy, 0 0 1, with cx, cy near the middle of the image; were the images resized?"
        )


def image_grid(height: int, width: int) -> Float[np.ndarray, "H W 2"]:
    """Centres of all pixels."""
    return np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
