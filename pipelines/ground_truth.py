"""Where is the point seen at uv in frame t_src, at time t_tgt, from camera t_cam? Answered for every dataset alike.

A pixel is lifted to a surface point by its depth (or is an annotated track); the sequence's `Motion` says where that
point is at other times; cameras, occlusion, displacement and normals follow. All of it is vectorised over N queries.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from pipelines.catalog import DepthTolerance
from pipelines.geometry import inverse, project, rotate, transform, unproject
from pipelines.sequence import Cameras, Motion, RigidInstances, Tracks, Unknown

# What a depth map says about a point that projects into it.
OUT, VISIBLE, OCCLUDED, UNKNOWN = range(4)

NORMAL_RADIUS = 2  # a normal is fitted to 5 x 5 pixels
MAX_BEND = 0.15  # how far, in pixel footprints, a surface may leave its tangent plane within them
MAX_GRAZING_SPREAD = 1.3  # far / near within a 2 x 2 cell that may still be one slanted surface
NEIGHBOURHOOD = 64  # of the image's width: how far beside a point its surface must rest too, where motion is Unknown
# A track that moves less than this share of its distance, or an instance less than this, stands still.
MIN_MOTION = 1e-3
STATIC, ANY_INSTANCE = -1, -2


@dataclass(frozen=True, kw_only=True)
class Points:
    """N surface points, each as it was in its source frame."""

    t_src: Int64[np.ndarray, "N"]
    uv: Float64[np.ndarray, "N 2"]
    """Raw pixels of the source frame."""
    xyz_world: Float64[np.ndarray, "N 3"]
    """At t_src. NaN where the source depth is missing or broken by an edge."""
    normal_world: Float64[np.ndarray, "N 3"]
    """At t_src, towards the camera of t_src. NaN where it cannot be told, and until `with_normals` has told it."""
    instance: Int64[np.ndarray, "N"]
    """Row of RigidInstances, -1 (STATIC) for what never moves, -2 (ANY_INSTANCE) for a track."""
    track: Int64[np.ndarray, "N"]
    """Row of Tracks, -1 for a pixel that is no track."""
    dynamic: Bool[np.ndarray, "N"]
    """On something that changes its place in the world within this clip."""

    @property
    def known(self) -> Bool[np.ndarray, "N"]:
        return np.isfinite(self.xyz_world).all(axis=1)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The answers to N queries. A value means something only where its mask is true (`uv_tgt` and the others are NaN
    or false elsewhere)."""

    xyz: Float64[np.ndarray, "N 3"]
    """The point at t_tgt in the camera axes of t_cam."""
    xyz_valid: Bool[np.ndarray, "N"]
    uv_tgt: Float64[np.ndarray, "N 2"]
    """Raw pixels of frame t_tgt."""
    uv_valid: Bool[np.ndarray, "N"]
    visible: Bool[np.ndarray, "N"]
    visible_valid: Bool[np.ndarray, "N"]
    displacement: Float64[np.ndarray, "N 3"]
    """point(t_tgt) - point(t_src) in the camera axes of t_cam; valid as xyz is."""
    normal: Float64[np.ndarray, "N 3"]
    """Of the surface at t_tgt in the camera axes of t_cam, its sign towards the camera that saw it at t_src."""
    normal_valid: Bool[np.ndarray, "N"]
    outcome: Int64[np.ndarray, "N"]
    """OUT, VISIBLE, OCCLUDED or UNKNOWN at t_tgt."""


class GroundTruth:
    """The frames of one clip, ready to be asked."""

    def __init__(
        self,
        *,
        cameras: Cameras,
        depth: Float32[np.ndarray, "T H W"],
        instance: Int32[np.ndarray, "T H W"] | None,
        motion: Motion,
        tolerance: DepthTolerance,
    ) -> None:
        """All at raw resolution. `instance` goes with RigidInstances, and may go with Tracks."""
        fits = isinstance(motion, Tracks) or (instance is None) != isinstance(motion, RigidInstances)
        if not fits:
            raise ValueError("an instance map goes with RigidInstances motion, may go with Tracks, and with no other")
        self.intrinsics = cameras.intrinsics
        self.world_from_cam = cameras.world_from_cam
        self.cam_from_world = inverse(cameras.world_from_cam)
        self.depth, self.instance, self.motion, self.tolerance = depth, instance, motion, tolerance
        self.num_frames, self.height, self.width = depth.shape
        if isinstance(motion, RigidInstances):
            self._moving_instances = _moving(motion.world_from_instance)
        elif isinstance(motion, Tracks):
            low, high = (extreme.reduce(motion.xyz_world, axis=1) for extreme in (np.fmin, np.fmax))
            self._track_path = np.nan_to_num(np.linalg.norm(high - low, axis=1))

    def lift(self, uv: Float64[np.ndarray, "N 2"], t_src: Int64[np.ndarray, "N"]) -> Points:
        """The surface points seen at raw pixels uv, by depth (dataset notes 3.1).

        A source counts only if its 3 x 3 neighbourhood has depth everywhere, belongs to one instance and is smooth.
        Between pixel centres inverse depth is interpolated, which is exact on planes.
        """
        column, row = np.floor(uv.T).astype(np.int64)
        inside = (column >= 0) & (column < self.width) & (row >= 0) & (row < self.height)
        column, row = column.clip(0, self.width - 1), row.clip(0, self.height - 1)
        gradient, smooth = self._gradient(t_src, column, row)
        centre = np.stack([column + 0.5, row + 0.5], axis=1)
        inverse_depth = 1 / self.depth[t_src, row, column].astype(np.float64)
        inverse_depth += ((uv - centre) * gradient).sum(axis=1)
        with np.errstate(divide="ignore"):
            z = np.where(inside & smooth & (inverse_depth > 0), 1 / inverse_depth, np.nan)
        return self._points(
            uv,
            t_src,
            xyz_world=transform(self.world_from_cam[t_src], unproject(uv, z, self.intrinsics[t_src])),
            instance=self._instance_at(t_src, row, column),
            track=np.full(len(uv), -1),
        )

    def lift_tracks(self, track: Int64[np.ndarray, "N"], t_src: Int64[np.ndarray, "N"]) -> Points:
        """Annotated points where they are seen at t_src; NaN where flag, border or depth say that they are not seen."""
        xyz_world = self.motion.xyz_world[track, t_src].astype(np.float64)
        any_instance = np.full(len(track), ANY_INSTANCE)
        uv, _, outcome = self._look(xyz_world, t_src, instance=any_instance)
        seen = self.motion.visible[track, t_src] & (outcome == VISIBLE)
        return self._points(
            np.where(seen[:, None], uv, 0),
            t_src,
            xyz_world=np.where(seen[:, None], xyz_world, np.nan),
            instance=any_instance,
            track=track,
        )

    def followed(self, points: Points) -> Bool[np.ndarray, "N"]:
        """Whether the dataset tells where a point is at other times than its own; where it does not, only t_tgt = t_src
        has an answer."""
        if not isinstance(self.motion, Tracks):
            return np.ones(len(points.t_src), bool)
        return (points.track >= 0) | self._still(points)

    def _still(self, points: Points) -> Bool[np.ndarray, "N"]:
        """Among Tracks: pixels that are no track and show the static background."""
        return (points.track < 0) & (points.instance == STATIC) & (self.instance is not None)

    def at(self, points: Points, t: Int64[np.ndarray, "N"]) -> tuple[Float64[np.ndarray, "N 3"], ...]:
        """World position and world normal of each point at time t; NaN where the dataset does not tell."""
        match self.motion:
            case RigidInstances(world_from_instance=pose):
                m = points.instance.clip(0)
                then_from_src = pose[m, t] @ inverse(pose[m, points.t_src])
                then_from_src[(points.instance < 0) | (t == points.t_src)] = np.eye(4)  # known without any pose
                return transform(then_from_src, points.xyz_world), rotate(then_from_src, points.normal_world)
            case Tracks(xyz_world=tracks):
                stays = ((t == points.t_src) | self._still(points))[:, None]
                tracked = (points.track >= 0)[:, None]
                # `take` only where there is a track: P may be 0.
                there = np.full_like(points.xyz_world, np.nan)
                there[tracked[:, 0]] = tracks[points.track[tracked[:, 0]], t[tracked[:, 0]]]
                # A track does not tell how its surface turns, so a normal outlives its frame only on what stands still.
                keeps_normal = stays | (tracked & ~points.dynamic[:, None])
                return np.where(stays, points.xyz_world, there), np.where(keeps_normal, points.normal_world, np.nan)
            case _:
                return points.xyz_world, points.normal_world

    def ask(self, points: Points, t_tgt: Int64[np.ndarray, "N"], t_cam: Int64[np.ndarray, "N"]) -> Targets:
        """The truth about each point at t_tgt in the camera of t_cam (specification 7, dataset notes 3.1 and 3.2)."""
        world, normal_world = self.at(points, t_tgt)
        uv, z, outcome = self._look(world, t_tgt, instance=points.instance)
        own_time = t_tgt == points.t_src
        outcome[own_time & points.known] = VISIBLE  # it was lifted from what this very camera saw
        known = np.isfinite(world).all(axis=1)
        if isinstance(self.motion, Unknown):
            xyz_valid = known & (outcome == VISIBLE) & (own_time | self._seems_to_rest(points))
        else:  # Depth that looks through the point says that something moved unannotated, or a pose or depth is wrong.
            xyz_valid = known & ~((outcome == UNKNOWN) & self._seen_through(uv, z, t_tgt))
        if isinstance(self.motion, Tracks):
            tracked = np.flatnonzero(points.track >= 0)
            xyz_valid[tracked] = known[tracked]
            hidden = tracked[~self.motion.visible[points.track[tracked], t_tgt[tracked]]]
            outcome[hidden[(known & ~own_time & (outcome != OUT))[hidden]]] = OCCLUDED
        camera = self.cam_from_world[t_cam]
        normal = rotate(camera, normal_world)
        return Targets(
            xyz=transform(camera, world),
            xyz_valid=xyz_valid,
            uv_tgt=uv,
            uv_valid=xyz_valid & (z > 0) & self._inside(uv),
            visible=outcome == VISIBLE,
            visible_valid=xyz_valid & (outcome != UNKNOWN),
            displacement=rotate(camera, world - points.xyz_world),
            normal=normal,
            normal_valid=xyz_valid & np.isfinite(normal).all(axis=1),
            outcome=outcome,
        )

    def with_normals(self, points: Points, normal_cam: Float64[np.ndarray, "N 3"] | None = None) -> Points:
        """The same points with the dataset's own normals, given in the camera axes of t_src, or with those of planes
        fitted to depth."""
        if normal_cam is None:
            normal_cam = self._normal(points.uv, points.t_src)
        normal_world = rotate(self.world_from_cam[points.t_src], normal_cam)
        return replace(points, normal_world=np.where(points.known[:, None], normal_world, np.nan))

    # --- looking into depth maps ---------------------------------------------------------------------------------

    def _points(self, uv, t_src, *, xyz_world, instance, track) -> Points:
        match self.motion:
            case RigidInstances():
                dynamic = (instance >= 0) & self._moving_instances[instance]
            case Tracks():
                dynamic = np.zeros(len(uv), bool)
                tracked = np.flatnonzero(track >= 0)
                distance = np.linalg.norm(xyz_world - self.world_from_cam[t_src, :3, 3], axis=1)[tracked]
                dynamic[tracked] = self._track_path[track[tracked]] > MIN_MOTION * distance
            case _:
                dynamic = np.zeros(len(uv), bool)
        return Points(
            t_src=t_src,
            uv=uv,
            xyz_world=xyz_world,
            normal_world=np.full_like(xyz_world, np.nan),
            instance=instance,
            track=track,
            dynamic=dynamic,
        )

    def _instance_at(self, t, row, column) -> Int64[np.ndarray, "*batch"]:
        if self.instance is None:
            return np.full(np.broadcast_shapes(t.shape, row.shape, column.shape), STATIC)
        return self.instance[t, row, column].astype(np.int64)

    def _window(self, t, column, row, radius: int) -> tuple[np.ndarray, ...]:
        """Depths (N, k, k) around pixels, moved inside the image at its border, with their columns and rows."""
        offset = np.arange(-radius, radius + 1)
        columns = column.clip(radius, self.width - 1 - radius)[:, None, None] + offset[None, None, :]
        rows = row.clip(radius, self.height - 1 - radius)[:, None, None] + offset[None, :, None]
        return self.depth[t[:, None, None], rows, columns], columns, rows

    def _gradient(self, t, column, row) -> tuple[Float64[np.ndarray, "N 2"], Bool[np.ndarray, "N"]]:
        """Change of inverse depth per pixel along u and v, and whether the 3 x 3 pixels are one smooth surface."""
        depth, columns, rows = self._window(t, column, row, 1)
        w = 1 / depth.astype(np.float64)
        gradient = np.stack([w[:, 1, 2] - w[:, 1, 0], w[:, 2, 1] - w[:, 0, 1]], axis=1) / 2
        plane = w[:, 1, 1, None, None] + gradient[:, 0, None, None] * [-1, 0, 1]
        plane = plane + gradient[:, 1, None, None] * np.array([-1, 0, 1])[:, None]
        # A relative error of inverse depth is one of depth. NaN compares false: a missing depth breaks the surface.
        slack = self.tolerance.of(depth) * w
        smooth = (np.abs(w - plane) <= slack * w).all(axis=(1, 2))
        if self.instance is not None:
            ids = self.instance[t[:, None, None], rows, columns]
            smooth &= (ids == ids[:, :1, :1]).all(axis=(1, 2))
        return gradient, smooth

    def _normal(self, uv, t) -> Float64[np.ndarray, "N 3"]:
        """Normals in camera axes, from a plane fitted to inverse depth, which is linear in pixels on a plane.

        With 1/z = a x + b y + c over normalised image coordinates (x, y), the plane is (a, b, c) . X = 1. Valid where
        the surface stays at its plane and the depth's steps are finer than a pixel's footprint.
        """
        column, row = np.floor(uv.T).astype(np.int64)
        depth, columns, rows = self._window(t, column, row, NORMAL_RADIUS)
        w = 1 / depth.astype(np.float64)
        offset = np.arange(-NORMAL_RADIUS, NORMAL_RADIUS + 1)
        moment = len(offset) * (offset**2).sum()
        mean = w.mean(axis=(1, 2))
        du, dv = (w * offset).sum(axis=(1, 2)) / moment, (w * offset[:, None]).sum(axis=(1, 2)) / moment
        plane = mean[:, None, None] + du[:, None, None] * offset + dv[:, None, None] * offset[:, None]
        intrinsics = self.intrinsics[t]
        fx, fy = intrinsics[:, 0, 0], intrinsics[:, 1, 1]
        c = mean + du * (intrinsics[:, 0, 2] - columns[:, 0, NORMAL_RADIUS] - 0.5)
        c = c + dv * (intrinsics[:, 1, 2] - rows[:, NORMAL_RADIUS, 0] - 0.5)
        normal = -np.stack([du * fx, dv * fy, c], axis=1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        step = self.tolerance.step_of(1 / mean)
        footprint = 1 / (mean * np.maximum(fx, fy))
        bend = np.abs(1 / w - 1 / np.where(plane > 0, plane, np.nan)).max(axis=(1, 2))
        valid = (bend <= MAX_BEND * footprint + 1.5 * step) & (step <= footprint)
        if self.instance is not None:
            ids = self.instance[t[:, None, None], rows, columns]
            valid &= (ids == ids[:, :1, :1]).all(axis=(1, 2))
        return np.where(valid[:, None], normal, np.nan)

    def _inside(self, uv) -> Bool[np.ndarray, "N"]:
        return ((uv >= 0) & (uv < [self.width, self.height])).all(axis=1)

    def _cell(self, uv, t) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The 2 x 2 pixels around uv: depths and instances (N, 4), and the bilinear weights of uv in them."""
        corner = np.nan_to_num(uv - 0.5, posinf=0, neginf=0).clip(0, [self.width - 1.001, self.height - 1.001])
        column, row = np.floor(corner.T).astype(np.int64).clip(0)
        fu, fv = (corner - np.stack([column, row], axis=1)).T
        columns = np.stack([column, column + 1, column, column + 1], axis=1)
        rows = np.stack([row, row, row + 1, row + 1], axis=1)
        depth = self.depth[t[:, None], rows, columns].astype(np.float64)
        ids = self._instance_at(t[:, None], rows, columns)
        weights = np.stack([(1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv], axis=1)
        return depth, ids, weights

    def _look(self, world, t, *, instance) -> tuple[np.ndarray, ...]:
        """Project world points into camera t and compare with its depth: uv, z and the outcome (dataset notes 3.1)."""
        cam = transform(self.cam_from_world[t], world)
        uv, z = project(cam, self.intrinsics[t]), cam[:, 2]
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
        outcome[~((z > 0) & self._inside(uv))] = OUT
        outcome[~np.isfinite(world).all(axis=1)] = UNKNOWN
        return uv, z, outcome

    def _seems_to_rest(self, points: Points) -> Bool[np.ndarray, "N"]:
        """Whether no frame of the clip looks through the point, nor through the surface a little to its sides.

        One frame alone may show another part of the same moving object where the point was. What slides along itself
        through the whole clip cannot be told from what rests.
        """
        rests = np.ones(len(points.t_src), bool)
        reach = self.width / NEIGHBOURHOOD
        for step in np.array([(0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1)]) * reach:
            beside = self.lift(points.uv + step, points.t_src)
            for frame in range(self.num_frames):
                t = np.full(len(rests), frame)
                uv, z, outcome = self._look(beside.xyz_world, t, instance=beside.instance)
                rests &= (outcome != UNKNOWN) | ~self._seen_through(uv, z, t) | (t == points.t_src)
        return rests

    def _seen_through(self, uv, z, t) -> Bool[np.ndarray, "N"]:
        """Whether every valid depth around uv is farther than the point."""
        depth, _, _ = self._cell(uv, t)
        return np.fmin.reduce(depth, axis=1) > z + self.tolerance.of(z)


def _moving(pose: Float64[np.ndarray, "I T 4 4"]) -> Bool[np.ndarray, "I"]:
    """Which instances change their pose within the clip, by a thousandth of a unit or of a radian."""
    change = np.zeros(len(pose))
    for i, path in enumerate(pose):
        if (known := np.isfinite(path).all(axis=(1, 2))).any():
            change[i] = np.abs(path[known] - path[known][0]).max()
    return change > MIN_MOTION
