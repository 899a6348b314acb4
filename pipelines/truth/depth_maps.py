"""What the frames of a clip show: depth at any pixel, the surface around it, and whether a point is seen there.

The pixels around N places are kept as (k, k, N) or (4, N): NumPy reduces leading axes several times faster.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32, Int64

from pipelines.catalog import DepthTolerance
from pipelines.geometry import project

# What a depth map says about a point that projects into it.
OUT, VISIBLE, OCCLUDED, UNKNOWN = range(4)
STATIC, ANY_INSTANCE = -1, -2  # instances: of what never moves, and of a point that may be on any

BLOCK = 2048  # places whose surroundings are looked at together: they fit a core's cache
NORMAL_RADIUS = 2  # a normal is fitted to 5 x 5 pixels
MAX_BEND = 0.15  # how far, in pixel footprints, a surface may leave its tangent plane within them
MAX_GRAZING_SPREAD = 1.3  # far / near within a 2 x 2 cell that may still be one slanted surface


@dataclass(frozen=True)
class DepthMaps:
    """The depth maps of T frames at raw resolution, with their instance maps where there are any."""

    intrinsics: Float64[np.ndarray, "T 3 3"]
    depth: Float32[np.ndarray, "T H W"]
    """Along +z, NaN where unknown."""
    instance: Int32[np.ndarray, "T H W"] | None
    tolerance: DepthTolerance

    @property
    def height(self) -> int:
        return self.depth.shape[1]

    @property
    def width(self) -> int:
        return self.depth.shape[2]

    def surface(
        self, uv: Float64[np.ndarray, "N 2"], t: Int64[np.ndarray, "N"]
    ) -> tuple[Float64[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        """Depth and instance of the surface seen at raw pixels uv (dataset notes 3.1).

        A depth is NaN unless the 3 x 3 pixels around have depth everywhere, belong to one instance and are smooth.
        Between pixel centres inverse depth is interpolated, which is exact on planes.
        """
        z, instance = np.empty(len(uv)), np.empty(len(uv), np.int32)
        for block in _blocks(len(uv)):
            z[block], instance[block] = self._surface(uv[block], t[block])
        return z, instance

    def normal(self, uv: Float64[np.ndarray, "N 2"], t: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N 3"]:
        """Normals in camera axes of the surface seen at raw pixels uv, towards the camera, from a plane fitted to the
        5 x 5 pixels around. NaN where they are no plane, or where the depth's steps are coarser than a pixel.
        """
        normal = np.empty((len(uv), 3))
        for block in _blocks(len(uv)):
            normal[block] = self._normal(uv[block], t[block])
        return normal

    def look(
        self, xyz_cam: Float64[np.ndarray, "N 3"], t: Int64[np.ndarray, "N"], instance: Int[np.ndarray, "N"]
    ) -> tuple[Float64[np.ndarray, "N 2"], Int64[np.ndarray, "N"]]:
        """Where points in the axes of camera t fall, and whether they are seen there (dataset notes 3.1).

        Raw pixels, and OUT, VISIBLE, OCCLUDED or UNKNOWN; UNKNOWN for a point that is NaN.
        """
        uv, z = project(xyz_cam, self.intrinsics[t]), xyz_cam[:, 2]
        place, weights = self._cell(uv, t)
        depth, tolerance = self._depth_at(place), self.tolerance.of(z)
        same = (instance == ANY_INSTANCE) | (self._instance_at(place) == instance)
        agrees = ((np.abs(depth - z) <= tolerance) & same).any(axis=0)

        # On a grazing surface one cell spans more than the tolerance: interpolate inverse depth, exact on planes.
        whole = (depth.max(axis=0) <= MAX_GRAZING_SPREAD * depth.min(axis=0)) & same.all(axis=0)
        interpolated = 1 / (weights / depth).sum(axis=0)
        agrees |= whole & (np.abs(interpolated - z) <= tolerance)

        nearer = np.fmax.reduce(depth, axis=0) < z - 2.5 * tolerance  # every valid depth; false if none is
        outcome = np.where(agrees, VISIBLE, np.where(nearer, OCCLUDED, UNKNOWN))
        outcome[~((z > 0) & self.inside(uv))] = OUT
        outcome[~np.isfinite(xyz_cam).all(axis=1)] = UNKNOWN
        return uv, outcome

    def seen_through(
        self, xyz_cam: Float64[np.ndarray, "N 3"], t: Int64[np.ndarray, "N"] | int
    ) -> Bool[np.ndarray, "N"]:
        """Whether camera t looks through points in its axes: every valid depth around them is farther (dataset notes
        3.1, the second case of `unknown`). False where none is valid, out of the image, and for a point that is NaN.
        """
        uv, z = project(xyz_cam, self.intrinsics[t]), xyz_cam[:, 2]
        place, _ = self._cell(uv, t)
        nearest = np.fmin.reduce(self._depth_at(place), axis=0)
        return (nearest > z + self.tolerance.of(z)) & (z > 0) & self.inside(uv)

    def inside(self, uv: Float64[np.ndarray, "N 2"]) -> Bool[np.ndarray, "N"]:
        u, v = uv.T
        return (u >= 0) & (u < self.width) & (v >= 0) & (v < self.height)

    def _surface(self, uv, t) -> tuple[Float64[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        u, v = uv.T
        inside = self.inside(uv)
        column = np.floor(u).astype(np.int64).clip(0, self.width - 1)
        row = np.floor(v).astype(np.int64).clip(0, self.height - 1)

        inverse_depth, du, dv, smooth = self._gradient(t, column, row)
        inverse_depth = inverse_depth + ((u - column - 0.5) * du + (v - row - 0.5) * dv)
        with np.errstate(divide="ignore"):
            z = np.where(inside & smooth & (inverse_depth > 0), 1 / inverse_depth, np.nan)
        return z, self._instance_at(self._place(t, column, row))

    def _normal(self, uv, t) -> Float64[np.ndarray, "N 3"]:
        """Inverse depth is linear in pixels on a plane: with 1/z = a x + b y + c over normalised image coordinates
        (x, y), the plane is (a, b, c) . X = 1. Valid where the surface stays at its plane and the depth's steps are
        finer than a pixel's footprint.
        """
        column, row = np.floor(uv.T).astype(np.int64)
        place, column, row = self._around(t, column, row, NORMAL_RADIUS)
        depth = self.depth.ravel().take(place)  # float32 is enough for an angle, and half the traffic
        w = 1 / depth

        offset = np.arange(-NORMAL_RADIUS, NORMAL_RADIUS + 1, dtype=np.float32)
        moment = len(offset) * (offset**2).sum()
        mean = w.mean(axis=(0, 1))
        du = offset @ w.sum(axis=0) / moment
        dv = offset @ w.sum(axis=1) / moment
        plane = mean + du * offset[:, None] + dv * offset[:, None, None]

        intrinsics = self.intrinsics[t]
        fx, fy = intrinsics[:, 0, 0], intrinsics[:, 1, 1]
        c = mean + du * (intrinsics[:, 0, 2] - column - 0.5) + dv * (intrinsics[:, 1, 2] - row - 0.5)
        normal = -np.stack([du * fx, dv * fy, c], axis=1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)

        step = self.tolerance.step_of(1 / mean)
        footprint = 1 / (mean * np.maximum(fx, fy))
        bend = np.abs(depth - 1 / np.where(plane > 0, plane, np.nan)).max(axis=(0, 1))
        valid = (bend <= MAX_BEND * footprint + 1.5 * step) & (step <= footprint) & self._one_instance(place)
        return np.where(valid[:, None], normal, np.nan)

    def _gradient(self, t, column, row) -> tuple[np.ndarray, np.ndarray, np.ndarray, Bool[np.ndarray, "N"]]:
        """Inverse depth of N pixels, its change per pixel along u and along v, and whether the 3 x 3 pixels are one
        smooth surface. At the border of the image the changes are those of the pixel beside."""
        place, middle, centre = self._around(t, column, row, 1)
        depth = self._depth_at(place)
        w = 1 / depth
        du, dv = (w[1, 2] - w[1, 0]) / 2, (w[2, 1] - w[0, 1]) / 2

        # A relative error of inverse depth is one of depth. NaN compares false: a missing depth breaks the surface.
        offset = np.array([-1, 0, 1])
        plane = w[1, 1] + du * offset[:, None] + dv * offset[:, None, None]
        smooth = (np.abs(w - plane) <= self.tolerance.of(depth) * w * w).all(axis=(0, 1))
        smooth &= self._one_instance(place)
        return w[row - centre + 1, column - middle + 1, np.arange(len(row))], du, dv, smooth

    def _one_instance(self, place) -> Bool[np.ndarray, "N"]:
        """Whether the pixels (k, k, N) around each place show one instance."""
        if self.instance is None:
            return np.ones(place.shape[-1], bool)
        ids = self._instance_at(place)
        return (ids == ids[0, 0]).all(axis=(0, 1))

    def _around(self, t, column, row, radius: int) -> tuple[np.ndarray, ...]:
        """Places (k, k, N) around pixels, moved inside the image at its border; column and row of the middle."""
        column, row = column.clip(radius, self.width - 1 - radius), row.clip(radius, self.height - 1 - radius)
        offset = np.arange(-radius, radius + 1)
        around = offset[:, None] * self.width + offset
        return around[:, :, None] + self._place(t, column, row), column, row

    def _cell(self, uv, t) -> tuple[Int64[np.ndarray, "4 N"], Float64[np.ndarray, "4 N"]]:
        """Places of the 2 x 2 pixels around uv, and the bilinear weights of uv in them."""
        # Beyond the border, and where uv is NaN, some cell: such a point is out of the image.
        u = np.fmin(np.fmax(uv[:, 0] - 0.5, 0), self.width - 1.001)
        v = np.fmin(np.fmax(uv[:, 1] - 0.5, 0), self.height - 1.001)
        column, row = u.astype(np.int64), v.astype(np.int64)
        place = np.array([0, 1, self.width, self.width + 1])[:, None] + self._place(t, column, row)

        fu, fv = u - column, v - row
        weights = np.stack([(1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv])
        return place, weights

    def _depth_at(self, place) -> Float64[np.ndarray, "*batch"]:
        return self.depth.ravel().take(place).astype(np.float64)

    def _instance_at(self, place) -> Int32[np.ndarray, "*batch"]:
        if self.instance is None:
            return np.broadcast_to(np.int32(STATIC), place.shape)
        return self.instance.ravel().take(place)

    def _place(self, t, column, row) -> Int64[np.ndarray, "*batch"]:
        """Where a pixel lies in the maps of all frames, end to end."""
        return (t * self.height + row) * self.width + column


def _blocks(count: int) -> list[slice]:
    return [slice(first, first + BLOCK) for first in range(0, count, BLOCK)]
