"""What the analytic scene is made of: a room, boxes and spheres, met by rays in closed form, and their paint.

Every solid stands in a frame of its own: origin at the centre of its foot, y down, so that it fills y in [-height, 0].
Inside this package N points or directions are arrays (3, N), because NumPy is fastest along the last axis.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

Vectors = Float64[np.ndarray, "3 N"]

OUTWARD = np.repeat(np.eye(3), 2, axis=1) * [-1, 1, -1, 1, -1, 1]  # of the faces of a box, in the order of `face`
PARALLEL = 1e-100  # stands for 0 where a ray runs along a face: divides, and meets the face beyond everything


@dataclass(frozen=True)
class Solid(ABC):
    """Something of this length (x), height (y) and width (z), in metres."""

    size: tuple[float, float, float]

    @property
    def centre(self) -> Float64[np.ndarray, "3 1"]:
        return np.array([[0.0], [-self.size[1] / 2], [0.0]])

    @property
    def radius(self) -> float:
        """Of the smallest sphere around the centre that holds all of it."""
        return float(np.linalg.norm(self.size)) / 2

    @abstractmethod
    def meet(self, origin: Float64[np.ndarray, "3 1"], direction: Vectors) -> Float64[np.ndarray, "N"]:
        """The s > 0 at which the rays origin + s * direction first meet the surface; inf where they never do."""

    @abstractmethod
    def normal(self, xyz: Vectors, face: Int64[np.ndarray, "N"]) -> Vectors:
        """Unit normals at points of the surface and their faces, towards the side it is seen from."""

    def face(self, xyz: Vectors) -> Int64[np.ndarray, "N"]:
        """Which of the six sides points of the surface are on: -x, +x, -y (top), +y, -z, +z."""
        relative = (xyz - self.centre) / (np.array(self.size)[:, None] / 2)
        x, y, z = np.abs(relative)
        axis = np.where(x >= np.maximum(y, z), 0, np.where(y >= z, 1, 2))
        value = np.where(axis == 0, relative[0], np.where(axis == 1, relative[1], relative[2]))
        return 2 * axis + (value > 0)


class Box(Solid):
    def meet(self, origin, direction):
        direction = np.where(direction == 0, PARALLEL, direction)
        middle = (self.centre - origin) / direction
        reach = np.abs(np.array(self.size)[:, None] / 2 / direction)
        near, far = (middle - reach).max(axis=0), (middle + reach).min(axis=0)
        return np.where((near <= far) & (near > 0), near, np.inf)

    def normal(self, xyz, face):
        return OUTWARD[:, face]


class Sphere(Solid):
    def meet(self, origin, direction):
        to_centre = self.centre - origin
        a = (direction * direction).sum(axis=0)
        b = (direction * to_centre).sum(axis=0)
        discriminant = b * b - a * ((to_centre * to_centre).sum() - self.size[1] ** 2 / 4)
        near = (b - np.sqrt(np.maximum(discriminant, 0))) / a
        return np.where((discriminant > 0) & (near > 0), near, np.inf)

    def normal(self, xyz, face):
        return (xyz - self.centre) / (self.size[1] / 2)


@dataclass(frozen=True)
class Room(Solid):
    """The inside of a box. Under an open top is sky."""

    open_top: bool = False

    def meet(self, origin, direction):
        direction = np.where(direction == 0, PARALLEL, direction)
        wall = self.centre + np.where(direction > 0, 0.5, -0.5) * np.array(self.size)[:, None]
        x, y, z = (wall - origin) / direction
        leaves_by_top = (direction[1] < 0) & (y < np.minimum(x, z))
        return np.where(leaves_by_top & self.open_top, np.inf, np.minimum(np.minimum(x, y), z))

    def normal(self, xyz, face):
        return -OUTWARD[:, face]


TABLE = 32  # random numbers per side of a pattern, before it repeats; a power of two
LIGHT = np.array([[-0.3], [-0.8], [-0.52]])  # direction to the lamp, world axes: from the left, above and behind


class Paint:
    """The colour of every face of every solid: tiles of random brightness, noise at two scales, a slow change of hue.

    Patterns finer than the footprint of a ray are left out, so that they do not flicker.
    """

    def __init__(self, rng: np.random.Generator, solids: tuple[Solid, ...]) -> None:
        faces = 6 * len(solids)
        extent = np.repeat([max(solid.size) for solid in solids], 6)
        is_room = np.arange(faces) < 6
        hue = rng.uniform(0, 2 * np.pi, (1, len(solids), 1)) + rng.normal(0, 0.5, (1, len(solids), 6))
        wheel = np.cos(hue + np.array([0, 2, 4])[:, None, None] * np.pi / 3).reshape(3, faces)
        self._base = rng.uniform(0.42, 0.62, faces) + np.where(is_room, 0.08, 0.22) * wheel
        self._tint = 1 + rng.normal(0, 0.4, (3, faces))
        self._drift = rng.normal(0, 0.15, (3, faces)) / extent
        self._direction = rng.uniform(0, 2 * np.pi, faces)
        self._period = np.where(is_room, rng.uniform(0.8, 1.2, faces), extent * rng.uniform(0.3, 0.45, faces))
        self._offset = rng.uniform(0, TABLE, (2, faces))
        self._table = rng.uniform(-1, 1, TABLE * TABLE).astype(np.float32)

    def colour(
        self, face: Int64[np.ndarray, "N"], xyz: Vectors, footprint: Float64[np.ndarray, "N"]
    ) -> Float32[np.ndarray, "3 N"]:
        """Reflectance in [0, 1] at points in their solid's frame. `face` counts six per solid; footprint in metres."""
        base, tint, drift = (table.astype(np.float32)[:, face] for table in (self._base, self._tint, self._drift))
        direction, period, u, v = np.float32([self._direction, self._period, *self._offset])[:, face]
        axis = face % 6 // 2
        s = np.where(axis == 0, xyz[2], xyz[0]).astype(np.float32)
        t = np.where(axis == 1, xyz[2], xyz[1]).astype(np.float32)
        u, v = u + s / period, v + t / period
        fineness = footprint.astype(np.float32) / period
        brightness = np.zeros_like(s)
        for blend, scale, strength in ((_step, 1, 0.2), (_smooth, 1.8, 0.17), (_smooth, 5, 0.15)):
            fading = strength * np.clip(2 - 2 * scale * fineness, 0, 1)
            brightness += fading * self._pattern(scale * u, scale * v, scale * fineness, blend)
        drift *= np.cos(direction) * s + np.sin(direction) * t
        return (base + tint * brightness + drift).clip(0, 1)

    def _pattern(
        self,
        u: Float32[np.ndarray, "N"],
        v: Float32[np.ndarray, "N"],
        width: Float32[np.ndarray, "N"],
        blend: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> Float32[np.ndarray, "N"]:
        """Random values at whole numbers; `blend` says how one goes over into the next, for footprints this wide."""
        column, row = np.floor(u), np.floor(v)
        right, below = blend(u - column, width), blend(v - row, width)
        column, row = column.astype(np.int32), row.astype(np.int32)
        here, there = (self._at(c, row) * (1 - below) + self._at(c, row + 1) * below for c in (column, column + 1))
        return here + (there - here) * right

    def _at(self, column: Int32[np.ndarray, "N"], row: Int32[np.ndarray, "N"]) -> Float32[np.ndarray, "N"]:
        return self._table.take((row & (TABLE - 1)) * TABLE + (column & (TABLE - 1)))


def _step(x: Float32[np.ndarray, "N"], width: Float32[np.ndarray, "N"]) -> Float32[np.ndarray, "N"]:
    """From 0 to 1 halfway, as sharply as the footprint of a ray allows."""
    return np.clip((x - 0.5) / width + 0.5, 0, 1)


def _smooth(x: Float32[np.ndarray, "N"], width: Float32[np.ndarray, "N"]) -> Float32[np.ndarray, "N"]:
    return x * x * (3 - 2 * x)


def shade(normal_world: Vectors) -> Float32[np.ndarray, "N"]:
    """Brightness under one lamp far away and light from everywhere; no two faces of a room are equally bright."""
    return (0.68 + 0.32 * (LIGHT.T @ normal_world)[0]).astype(np.float32)
