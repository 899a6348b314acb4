"""What the frames of a clip show: depth at any pixel, the surface around it, and whether a point is seen there."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from pipelines.catalog import DepthTolerance
from pipelines.geometry import project

# What a depth map says about a point that projects into it.
OUT, VISIBLE, OCCLUDED, UNKNOWN = range(4)
STATIC, ANY_INSTANCE = -1, -2  # instances: of what never moves, and of a point that may be on any

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
    ) -> tuple[Float64[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
        """Depth and instance of the surface seen at raw pixels uv (dataset notes 3.1).

        A depth is NaN unless the 3 x 3 pixels around have depth everywhere, belong to one instance and are smooth.
        Between pixel centres inverse depth is interpolated, which is exact on planes.
        """
        column, row = np.floor(uv.T).astype(np.int64)
        inside = (column >= 0) & (column < self.width) & (row >= 0) & (row < self.height)
        column, row = column.clip(0, self.width - 1), row.clip(0, self.height - 1)
        inverse_depth, gradient, smooth = self._gradient(t, column, row)
        centre = np.stack([column + 0.5, row + 0.5], axis=1)
        inverse_depth = inverse_depth + ((uv - centre) * gradient).sum(axis=1)
        with np.errstate(divide="ignore"):
            z = np.where(inside & smooth & (inverse_depth > 0), 1 / inverse_depth, np.nan)
        return z, self._instance_at(self._place(t, column, row))

    def normal(self, uv: Float64[np.ndarray, "N 2"], t: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N 3"]:
        """Normals in camera axes, from a plane fitted to inverse depth, which is linear in pixels on a plane.

        With 1/z = a x + b y + c over normalised image coordinates (x, y), the plane is (a, b, c) . X = 1. Valid where
        the surface stays at its plane and the depth's steps are finer than a pixel's footprint.
        """
        place, column, row = self._window(t, *np.floor(uv.T).astype(np.int64), NORMAL_RADIUS)
        w = 1 / self.depth.ravel().take(place)  # float32 is enough for an angle, and half the traffic
        offset = np.arange(-NORMAL_RADIUS, NORMAL_RADIUS + 1, dtype=np.float32)
        moment = len(offset) * (offset**2).sum()
        mean = w.mean(axis=(1, 2))
        du, dv = (w * offset).sum(axis=(1, 2)) / moment, (w * offset[:, None]).sum(axis=(1, 2)) / moment
        plane = mean[:, None, None] + du[:, None, None] * offset + dv[:, None, None] * offset[:, None]
        intrinsics = self.intrinsics[t]
        fx, fy = intrinsics[:, 0, 0], intrinsics[:, 1, 1]
        c = mean + du * (intrinsics[:, 0, 2] - column - 0.5) + dv * (intrinsics[:, 1, 2] - row - 0.5)
        normal = -np.stack([du * fx, dv * fy, c], axis=1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        step = self.tolerance.step_of(1 / mean)
        footprint = 1 / (mean * np.maximum(fx, fy))
        bend = np.abs(1 / w - 1 / np.where(plane > 0, plane, np.nan)).max(axis=(1, 2))
        valid = (bend <= MAX_BEND * footprint + 1.5 * step) & (step <= footprint) & self._one_instance(place)
        return np.where(valid[:, None], normal, np.nan).astype(np.float64)

    def look(
        self, xyz_cam: Float64[np.ndarray, "N 3"], t: Int64[np.ndarray, "N"], instance: Int64[np.ndarray, "N"]
    ) -> tuple[Float64[np.ndarray, "N 2"], Int64[np.ndarray, "N"]]:
        """Where points in the axes of camera t fall, and whether they are seen there (dataset notes 3.1).

        Raw pixels, and OUT, VISIBLE, OCCLUDED or UNKNOWN; UNKNOWN for a point that is NaN.
        """
        uv, z = project(xyz_cam, self.intrinsics[t]), xyz_cam[:, 2]
        depth, ids, weights = self._cell(uv, t)
        tolerance = self.tolerance.of(z)[:, None]
        same = (instance[:, None] == ANY_INSTANCE) | (ids == instance[:, None])
        agrees = ((np.abs(depth - z[:, None]) <= tolerance) & same).any(axis=1)
        # On a grazing surface one cell spans more than the tolerance: interpolate inverse depth, exact on planes.
        whole = (depth.max(axis=1) <= MAX_GRAZING_SPREAD * depth.min(axis=1)) & same.all(axis=1)
        interpolated = 1 / (weights / depth).sum(axis=1)
        agrees |= whole & (np.abs(interpolated - z) <= tolerance[:, 0])
        nearer = np.fmax.reduce(depth, axis=1) < z - 2.5 * tolerance[:, 0]  # every valid depth; false if none is
        outcome = np.where(agrees, VISIBLE, np.where(nearer, OCCLUDED, UNKNOWN))
        outcome[~((z > 0) & self.inside(uv))] = OUT
        outcome[~np.isfinite(xyz_cam).all(axis=1)] = UNKNOWN
        return uv, outcome

    def seen_through(
        self, uv: Float64[np.ndarray, "N 2"], z: Float64[np.ndarray, "N"], t: Int64[np.ndarray, "N"]
    ) -> Bool[np.ndarray, "N"]:
        """Whether every valid depth around uv is farther than a point at depth z."""
        depth, _, _ = self._cell(uv, t)
        return np.fmin.reduce(depth, axis=1) > z + self.tolerance.of(z)

    def inside(self, uv: Float64[np.ndarray, "N 2"]) -> Bool[np.ndarray, "N"]:
        return ((uv >= 0) & (uv < [self.width, self.height])).all(axis=1)

    def _gradient(
        self, t, column, row
    ) -> tuple[Float64[np.ndarray, "N"], Float64[np.ndarray, "N 2"], Bool[np.ndarray, "N"]]:
        """Inverse depth of pixels, its change per pixel along u and v, and whether the 3 x 3 pixels are one smooth
        surface. At the border of the image the gradient is that of the pixel beside."""
        place, middle, centre = self._window(t, column, row, 1)
        depth = self._depth_at(place)
        w = 1 / depth
        gradient = np.stack([w[:, 1, 2] - w[:, 1, 0], w[:, 2, 1] - w[:, 0, 1]], axis=1) / 2
        plane = w[:, 1, 1, None, None] + gradient[:, 0, None, None] * [-1, 0, 1]
        plane = plane + gradient[:, 1, None, None] * np.array([-1, 0, 1])[:, None]
        # A relative error of inverse depth is one of depth. NaN compares false: a missing depth breaks the surface.
        smooth = (np.abs(w - plane) <= self.tolerance.of(depth) * w * w).all(axis=(1, 2))
        smooth &= self._one_instance(place)
        return w[np.arange(len(w)), row - centre + 1, column - middle + 1], gradient, smooth

    def _one_instance(self, place) -> Bool[np.ndarray, "N"]:
        """Whether the pixels of each window (N, k, k) show one instance."""
        if self.instance is None:
            return np.ones(len(place), bool)
        ids = self._instance_at(place)
        return (ids == ids[:, :1, :1]).all(axis=(1, 2))

    def _window(self, t, column, row, radius: int) -> tuple[np.ndarray, ...]:
        """Places (N, k, k) around pixels, moved inside the image at its border; column and row of the middle."""
        column, row = column.clip(radius, self.width - 1 - radius), row.clip(radius, self.height - 1 - radius)
        offset = np.arange(-radius, radius + 1)
        around = offset[:, None] * self.width + offset
        return self._place(t, column, row)[:, None, None] + around, column, row

    def _cell(self, uv, t) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The 2 x 2 pixels around uv: depths and instances (N, 4), and the bilinear weights of uv in them."""
        corner = np.nan_to_num(uv - 0.5, posinf=0, neginf=0).clip(0, [self.width - 1.001, self.height - 1.001])
        column, row = np.floor(corner.T).astype(np.int64).clip(0)
        fu, fv = (corner - np.stack([column, row], axis=1)).T
        place = self._place(t, column, row)[:, None] + np.array([0, 1, self.width, self.width + 1])
        weights = np.stack([(1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv], axis=1)
        return self._depth_at(place), self._instance_at(place), weights

    def _depth_at(self, place) -> Float64[np.ndarray, "*batch"]:
        return self.depth.ravel().take(place).astype(np.float64)

    def _instance_at(self, place) -> Int64[np.ndarray, "*batch"]:
        if self.instance is None:
            return np.broadcast_to(np.int64(STATIC), place.shape)
        return self.instance.ravel().take(place).astype(np.int64)

    def _place(self, t, column, row) -> Int64[np.ndarray, "*batch"]:
        """Where a pixel lies in the maps of all frames, end to end."""
        return (t * self.height + row) * self.width + column
