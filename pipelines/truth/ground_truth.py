"""Where is the point seen at uv in frame t_src, at time t_tgt, from camera t_cam? Answered for every dataset alike.

A pixel is lifted to a surface point by its depth (or is an annotated track); the sequence's `Motion` says where that
point is at other times; cameras, occlusion, displacement and normals follow. All of it is vectorised over N queries.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from pipelines.catalog import DepthTolerance
from pipelines.geometry import inverse, rotate, transform, unproject
from pipelines.sequence import Cameras, Motion, RigidInstances, Tracks, Unknown
from pipelines.truth.depth_maps import ANY_INSTANCE, OCCLUDED, OUT, STATIC, UNKNOWN, VISIBLE, DepthMaps

NEIGHBOURHOOD = 64  # of the image's width: how far beside a point its surface must rest too, where motion is Unknown
# A track that moves less than this share of its distance, or an instance less than this, stands still.
MIN_MOTION = 1e-3


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
    instance: Int32[np.ndarray, "N"]
    """Row of RigidInstances, STATIC for what never moves, ANY_INSTANCE for a track."""
    track: Int64[np.ndarray, "N"]
    """Row of Tracks, -1 for a pixel that is no track."""
    dynamic: Bool[np.ndarray, "N"]
    """On something that changes its place in the world within this clip."""

    @property
    def known(self) -> Bool[np.ndarray, "N"]:
        return np.isfinite(self.xyz_world).all(axis=1)

    def take(self, index: Int64[np.ndarray, "M"]) -> "Points":
        """Some of these points, in the order of `index`."""
        return Points(**{name: value[index] for name, value in vars(self).items()})


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

        self.maps = DepthMaps(cameras.intrinsics, depth, instance, tolerance)
        self.world_from_cam = cameras.world_from_cam
        self.cam_from_world = inverse(cameras.world_from_cam)
        self.motion = motion
        self.num_frames, self.height, self.width = depth.shape

        if isinstance(motion, RigidInstances):
            self._moving_instances = _moving(motion.world_from_instance)
        elif isinstance(motion, Tracks):
            by_frame = np.ascontiguousarray(motion.xyz_world.swapaxes(0, 1))  # NumPy reduces it ten times as fast
            low, high = (extreme.reduce(by_frame, axis=0) for extreme in (np.fmin, np.fmax))
            self._track_path = np.nan_to_num(np.linalg.norm(high - low, axis=1))

    def lift(self, uv: Float64[np.ndarray, "N 2"], t_src: Int64[np.ndarray, "N"]) -> Points:
        """The surface points seen at raw pixels uv, by depth."""
        z, instance = self.maps.surface(uv, t_src)
        xyz_world = transform(self.world_from_cam[t_src], unproject(uv, z, self.maps.intrinsics[t_src]))
        return self._points(uv, t_src, xyz_world=xyz_world, instance=instance, track=np.full(len(uv), -1))

    def lift_tracks(self, track: Int64[np.ndarray, "N"], t_src: Int64[np.ndarray, "N"]) -> Points:
        """Annotated points where they are seen at t_src; NaN where flag, border or depth say that they are not seen."""
        xyz_world = self.motion.xyz_world[track, t_src].astype(np.float64)
        any_instance = np.full(len(track), ANY_INSTANCE, np.int32)
        uv, outcome = self.maps.look(transform(self.cam_from_world[t_src], xyz_world), t_src, any_instance)

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
        return (points.track < 0) & (points.instance == STATIC) & (self.maps.instance is not None)

    def at(self, points: Points, t: Int64[np.ndarray, "N"]) -> tuple[Float64[np.ndarray, "N 3"], ...]:
        """World position and world normal of each point at time t; NaN where the dataset does not tell."""
        match self.motion:
            case RigidInstances(world_from_instance=pose):
                xyz, normal = points.xyz_world.copy(), points.normal_world.copy()
                # What never moves, and what is asked for at its own time, is known without any pose.
                carried = np.flatnonzero((points.instance >= 0) & (t != points.t_src))
                m = points.instance[carried]
                then_from_src = pose[m, t[carried]] @ inverse(pose[m, points.t_src[carried]])
                xyz[carried] = transform(then_from_src, xyz[carried])
                normal[carried] = rotate(then_from_src, normal[carried])
                return xyz, normal
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
        seen_from = transform(self.cam_from_world[t_tgt], world)
        uv, outcome = self.maps.look(seen_from, t_tgt, points.instance)
        z = seen_from[:, 2]
        own_time = t_tgt == points.t_src
        outcome[own_time & points.known] = VISIBLE  # it was lifted from what this very camera saw

        known = np.isfinite(world).all(axis=1)
        if isinstance(self.motion, Unknown):
            xyz_valid = known & (outcome == VISIBLE)
            again = np.flatnonzero(xyz_valid & ~own_time)
            xyz_valid[again] = self.seems_to_rest(points.take(again))
        else:  # Depth that looks through the point says that something moved unannotated, or a pose or depth is wrong.
            xyz_valid = known.copy()
            doubtful = np.flatnonzero(outcome == UNKNOWN)
            xyz_valid[doubtful] &= ~self.maps.seen_through(seen_from[doubtful], t_tgt[doubtful])

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
            uv_valid=xyz_valid & (z > 0) & self.maps.inside(uv),
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
            normal_cam = self.maps.normal(points.uv, points.t_src)
        normal_world = rotate(self.world_from_cam[points.t_src], normal_cam)
        return replace(points, normal_world=np.where(points.known[:, None], normal_world, np.nan))

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

    def seems_to_rest(self, points: Points) -> Bool[np.ndarray, "N"]:
        """Whether no frame of the clip looks through the point, nor through the surface a little to its sides.

        One frame alone may show another part of the same moving object where the point was. What slides along itself
        through the whole clip cannot be told from what rests.
        """
        steps = np.array([(0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1)]) * (self.width / NEIGHBOURHOOD)
        beside = (points.uv + steps[:, None]).reshape(-1, 2)
        surface = self.lift(beside, np.tile(points.t_src, len(steps)))

        looked_through = np.zeros(len(beside), bool)
        for t in range(self.num_frames):
            seen_from = transform(self.cam_from_world[t], surface.xyz_world)
            looked_through |= self.maps.seen_through(seen_from, t) & (surface.t_src != t)
        return ~looked_through.reshape(len(steps), -1).any(axis=0)


def _moving(pose: Float64[np.ndarray, "I T 4 4"]) -> Bool[np.ndarray, "I"]:
    """Which instances change their pose within the clip, by a thousandth of a unit or of a radian."""
    change = np.zeros(len(pose))
    for i, path in enumerate(pose):
        if (known := np.isfinite(path).all(axis=(1, 2))).any():
            change[i] = np.abs(path[known] - path[known][0]).max()
    return change > MIN_MOTION
