"""A furnished room seen by a moving camera, with exact truth: what every pixel shows, and where that point goes.

Everything is in closed form, in float64. World axes: x right, y down, z forward, metres; the origin is the centre of
the floor. Surface 0 is the room; surface 1 + i is object i.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32, Int64, UInt8

from pipelines.geometry import image_grid, inverse, project, rotate, transform
from pipelines.sequence import Cameras
from pipelines.synthesize.arrangement import arrange
from pipelines.synthesize.surfaces import Paint, Solid, shade

TIE = 1e-6  # a point is hidden by what is nearer by more than this share


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """One frame. Truth is that of the pixel centres; only the image is antialiased."""

    image: UInt8[np.ndarray, "H W 3"]
    depth: Float64[np.ndarray, "H W"]
    """Metres along +z; inf where there is only sky."""
    normal: Float64[np.ndarray, "H W 3"]
    """Unit, camera axes, towards the camera; NaN in the sky."""
    instance: Int32[np.ndarray, "H W"]
    """Index of the object, moving or not; -1 for room and sky."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What N rays met. Rays that met nothing have surface -1, depth inf and NaN positions and normals."""

    surface: Int64[np.ndarray, "N"]
    face: Int64[np.ndarray, "N"]
    """Which side of the solid, 0 to 5, as in `surfaces.Solid.face`."""
    xyz_local: Float64[np.ndarray, "N 3"]
    """In the frame of the surface's own solid."""
    normal_local: Float64[np.ndarray, "N 3"]
    depth: Float64[np.ndarray, "N"]

    def __getitem__(self, rows: np.ndarray) -> "Hits":
        return Hits(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Scene:
    """T frames of I objects in a room."""

    seed: int
    cameras: Cameras
    width: int
    height: int
    solids: tuple[Solid, ...]
    """The room, then the objects."""
    world_from_object: Float64[np.ndarray, "I T 4 4"]
    paint: Paint

    @classmethod
    def random(
        cls,
        seed: int,
        *,
        num_frames: int,
        width: int,
        height: int,
        intrinsics: Float64[np.ndarray, "3 3"],
        moving: bool = True,
        open_top: bool = False,
    ) -> "Scene":
        """A room with some objects before the camera, the same for the same arguments.

        `intrinsics` in pixels, corner origin. Some objects travel and turn if `moving`, else only the camera moves.
        """
        arrangement = arrange(
            np.random.default_rng([seed, 0]),
            num_frames=num_frames,
            field_of_view=np.array([width, height]) / intrinsics[(0, 1), (0, 1)],
            moving=moving,
            open_top=open_top,
        )
        return cls(
            seed=seed,
            cameras=Cameras(
                intrinsics=np.tile(intrinsics.astype(np.float64), (num_frames, 1, 1)),
                world_from_cam=arrangement.world_from_cam,
            ),
            width=width,
            height=height,
            solids=arrangement.solids,
            world_from_object=arrangement.world_from_object,
            paint=Paint(np.random.default_rng([seed, 1]), arrangement.solids),
        )

    def __len__(self) -> int:
        return len(self.cameras.world_from_cam)

    @cached_property
    def moving(self) -> Bool[np.ndarray, "I"]:
        """Objects that do not keep their pose."""
        return (self.world_from_object != self.world_from_object[:, :1]).any(axis=(1, 2, 3))

    @cached_property
    def world_from_surface(self) -> Float64[np.ndarray, "S T 4 4"]:
        return np.concatenate([np.broadcast_to(np.eye(4), (1, len(self), 4, 4)), self.world_from_object])

    def render(self, t: int, supersample: int = 2) -> Rendering:
        """Frame t. Where a pixel touches an edge, its colour is the mean of supersample^2 rays."""
        grid = image_grid(self.height, self.width)
        shape, uv = grid.shape[:2], grid.reshape(-1, 2)
        hits = self._trace_frame(uv, t)
        normal_world = self.normal(hits, np.full(len(uv), t))
        colour = self._colour(hits, uv, t)
        edges = _edges((6 * hits.surface + hits.face).reshape(shape)).ravel()
        around = image_grid(supersample, supersample).reshape(-1, 1, 2) / supersample - 0.5
        between = (uv[edges] + around).reshape(-1, 2)
        samples = self._colour(self._trace_frame(between, t), between, t)
        colour[edges] = samples.reshape(supersample**2, -1, 3).mean(axis=0)
        return Rendering(
            image=(colour * 255).round().astype(np.uint8).reshape(*shape, 3),
            depth=hits.depth.reshape(shape),
            normal=(normal_world @ self.cameras.world_from_cam[t, :3, :3]).reshape(*shape, 3),
            instance=(np.maximum(hits.surface, 0) - 1).astype(np.int32).reshape(shape),
        )

    def trace(self, uv: Float64[np.ndarray, "N 2"], t: Int[np.ndarray, "N"]) -> Hits:
        """What is seen at raw pixels uv (corner origin) of frames t."""
        hits = Hits(
            surface=np.full(len(uv), -1),
            face=np.zeros(len(uv), np.int64),
            xyz_local=np.full((len(uv), 3), np.nan),
            normal_local=np.full((len(uv), 3), np.nan),
            depth=np.full(len(uv), np.inf),
        )
        for frame in np.unique(t).tolist():
            rows = np.flatnonzero(t == frame)
            found = self._trace_frame(uv[rows], frame)
            for field in fields(Hits):
                getattr(hits, field.name)[rows] = getattr(found, field.name)
        return hits

    def surface_points(self, count: int) -> Hits:
        """What random pixels of random frames show, up to `count`; half of it objects, as far as there are enough."""
        rng = np.random.default_rng([self.seed, 3])
        uv = rng.uniform(0, [self.width, self.height], (4 * count, 2))
        hits = self.trace(uv, rng.integers(0, len(self), len(uv)))
        objects = np.flatnonzero(hits.surface > 0)[: count // 2]
        room = np.flatnonzero(hits.surface == 0)[: count - len(objects)]
        return hits[np.sort(np.concatenate([objects, room]))]

    def beside(self, distance: float) -> "Scene":
        """The same scene from cameras so many metres to the right."""
        step = np.eye(4)
        step[0, 3] = distance
        cameras = self.cameras
        return replace(
            self, cameras=Cameras(intrinsics=cameras.intrinsics, world_from_cam=cameras.world_from_cam @ step)
        )

    def position(self, hits: Hits, t: Int[np.ndarray, "N"]) -> Float64[np.ndarray, "N 3"]:
        """Where the points are at frames t, in the world. NaN for sky."""
        return transform(self.world_from_surface[hits.surface, t], hits.xyz_local)

    def normal(self, hits: Hits, t: Int[np.ndarray, "N"]) -> Float64[np.ndarray, "N 3"]:
        """Unit normals at frames t, in the world, towards the side the surface is seen from. NaN for sky."""
        return rotate(self.world_from_surface[hits.surface, t], hits.normal_local)

    def visible(self, hits: Hits, t: Int[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
        """Whether camera t sees the points: in front of it, inside the image, with nothing nearer on the ray."""
        xyz_cam = transform(inverse(self.cameras.world_from_cam)[t], self.position(hits, t))
        uv = project(xyz_cam, self.cameras.intrinsics[t])
        inside = (xyz_cam[:, 2] > 0) & (uv >= 0).all(axis=1) & (uv < [self.width, self.height]).all(axis=1)
        visible = np.zeros(len(uv), bool)
        for frame in np.unique(t).tolist():
            rows = np.flatnonzero((t == frame) & inside)
            _, depth = self._cast(self._rays(uv[rows], frame), frame)
            visible[rows] = xyz_cam[rows, 2] <= depth * (1 + TIE)
        return visible

    def _rays(self, uv: Float64[np.ndarray, "N 2"], t: int) -> Float64[np.ndarray, "3 N"]:
        """Camera axes, z = 1, so that lengths along the ray are depths."""
        matrix = self.cameras.intrinsics[t]
        u, v = (uv.T - matrix[:2, 2:]) / matrix[(0, 1), (0, 1)][:, None]
        return np.stack([u, v, np.ones_like(u)])

    def _cast(
        self, rays: Float64[np.ndarray, "3 N"], t: int
    ) -> tuple[Int64[np.ndarray, "N"], Float64[np.ndarray, "N"]]:
        """(surface, depth) that rays of camera t meet first."""
        from_cam = self._solid_from_cam(t)
        depth = self.solids[0].meet(from_cam[0][:3, 3:], from_cam[0][:3, :3] @ rays)
        surface = np.where(np.isfinite(depth), 0, -1)
        for k in range(1, len(self.solids)):
            candidates = _near(rays, inverse(from_cam[k]), self.solids[k])
            found = self.solids[k].meet(from_cam[k][:3, 3:], from_cam[k][:3, :3] @ rays[:, candidates])
            nearer = found < depth[candidates]
            depth[candidates[nearer]] = found[nearer]
            surface[candidates[nearer]] = k
        return surface, depth

    def _solid_from_cam(self, t: int) -> Float64[np.ndarray, "S 4 4"]:
        return inverse(self.world_from_surface[:, t]) @ self.cameras.world_from_cam[t]

    def _trace_frame(self, uv: Float64[np.ndarray, "N 2"], t: int) -> Hits:
        rays = self._rays(uv, t)
        surface, depth = self._cast(rays, t)
        face = np.zeros(len(uv), np.int64)
        xyz, normal = np.full((2, len(uv), 3), np.nan)
        for k, from_cam in enumerate(self._solid_from_cam(t)):
            rows = np.flatnonzero(surface == k)
            xyz_local = from_cam[:3, :3] @ (rays[:, rows] * depth[rows]) + from_cam[:3, 3:]
            face[rows] = self.solids[k].face(xyz_local)
            xyz[rows], normal[rows] = xyz_local.T, self.solids[k].normal(xyz_local, face[rows]).T
        return Hits(surface=surface, face=face, xyz_local=xyz, normal_local=normal, depth=depth)

    def _colour(self, hits: Hits, uv: Float64[np.ndarray, "N 2"], t: int) -> Float32[np.ndarray, "N 3"]:
        """RGB in [0, 1] of what was met at pixels uv of frame t."""
        to_world = self.cameras.world_from_cam[t, :3, :3]
        rays = self._rays(uv, t)
        colour = _sky(to_world @ rays)
        met = np.flatnonzero(hits.surface >= 0)
        hits, rays = hits[met], rays[:, met]
        normal = self.normal(hits, np.full(len(met), t)).T
        slant = np.abs((to_world.T @ normal * rays).sum(axis=0))
        footprint = hits.depth / self.cameras.intrinsics[t, 0, 0] / np.sqrt(np.maximum(slant, 0.01))
        reflectance = self.paint.colour(6 * hits.surface + hits.face, hits.xyz_local.T, footprint)
        colour[:, met] = reflectance * shade(normal)
        return colour.T


def _edges(label: Int64[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels that differ from one of their four neighbours."""
    edges = np.zeros(label.shape, bool)
    across, down = label[:, 1:] != label[:, :-1], label[1:] != label[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def _near(
    rays: Float64[np.ndarray, "3 N"], cam_from_solid: Float64[np.ndarray, "4 4"], solid: Solid
) -> Int64[np.ndarray, "n"]:
    """Rows of the rays (z = 1) that may meet a solid: those through the box around it in the image."""
    centre = (cam_from_solid[:3, :3] @ solid.centre)[:, 0] + cam_from_solid[:3, 3]
    near, far = centre[2] - solid.radius, centre[2] + solid.radius
    if near <= 0:  # beside or around the camera: no box in the image bounds it
        return np.arange(rays.shape[1]) if far > 0 else np.arange(0)
    low, high = centre[:2] - solid.radius, centre[:2] + solid.radius
    left, top = np.minimum(low / near, low / far)
    right, bottom = np.maximum(high / near, high / far)
    x, y, _ = rays
    return np.flatnonzero((x >= left) & (x <= right) & (y >= top) & (y <= bottom))


def _sky(direction: Float64[np.ndarray, "3 N"]) -> Float32[np.ndarray, "3 N"]:
    """Brighter towards the horizon."""
    up = np.clip(-direction[1] / np.linalg.norm(direction, axis=0), 0, 1).astype(np.float32)
    horizon, zenith = np.float32([[0.85], [0.9], [0.95]]), np.float32([[0.25], [0.5], [0.85]])
    return horizon + (zenith - horizon) * up
