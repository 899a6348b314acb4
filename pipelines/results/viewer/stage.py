"""One result on viser's scene, at one moment; only what changes is sent to the browsers."""

from dataclasses import dataclass

import numpy as np
import viser
from jaxtyping import Float

from pipelines.geometry import finite, xyzw_from_rotation
from pipelines.pictures.drawing import depth_colours, position_colours
from pipelines.results.viewer.opened import Opened

MAX_POINTS = 300_000  # shown at once
LOST = (255, 107, 107)
SEAM, NOW, CAMERA = (255, 204, 107), (255, 255, 255), (90, 130, 240)
MAX_FRUSTA = 60
WORST = 0.1  # of the distance: errors from here on have the last colour


@dataclass
class Shown:
    """What is to be seen."""

    t: int = 0
    always: bool = False
    """The points of all frames together."""
    doubt: float = 0.0
    """Percent of the points that are left out, the least confident."""
    size: float = 1.0
    trail: int = 10
    points: bool = True
    tracks: bool = True
    hidden: bool = True
    cameras: bool = True


class Stage:
    """Below `root` on the scene, moved to the right by `aside`."""

    def __init__(self, server: viser.ViserServer, root: str, opened: Opened, aside: float = 0.0) -> None:
        self.scene, self.root, self.opened = server.scene, root, opened
        self.errors: Float[np.ndarray, "N T"] | None = None
        self.frame = self.scene.add_frame(root, show_axes=False, position=(aside, 0.0, 0.0))
        self._clouds: dict[int, viser.PointCloudHandle] = {}
        self._cloud_settings: tuple | None = None
        self._moving: list[viser.SceneNodeHandle] = []
        known = [array for array in self._positions() if len(array)]
        around = np.concatenate(known) if known else np.zeros((1, 3))
        low, high = np.quantile(around, [0.02, 0.98], axis=0)
        self.middle, self.extent = (low + high) / 2, max(float(np.linalg.norm(high - low)), 1e-6)
        self._frusta = self._add_frusta()

    def _positions(self) -> list[np.ndarray]:
        arrays = self.opened.arrays
        found = [arrays[task]["xyz"].reshape(-1, 3) for task in ("points", "tracks") if task in arrays]
        if "cameras" in arrays:
            found.append(arrays["cameras"]["world_from_cam"][:, :3, 3])
        return [xyz[finite(xyz)] for xyz in found]

    def remove(self) -> None:
        self.frame.remove()

    def show(self, shown: Shown) -> None:
        t = min(shown.t, len(self.opened) - 1)
        self._show_cloud(shown, t)
        for node in self._moving:
            node.remove()
        self._moving = []
        if shown.tracks and "tracks" in self.opened.arrays:
            self._add_tracks(shown, t)
        for node in self._frusta:
            node.visible = shown.cameras
        if shown.cameras:
            self._add_camera(t)

    # --- points ------------------------------------------------------------------------------------------------------

    def _show_cloud(self, shown: Shown, t: int) -> None:
        """A node per frame, made when it is first seen, so that playing again only turns nodes on and off."""
        if "points" not in self.opened.arrays:
            return
        settings = (shown.always, shown.doubt, shown.size)
        if settings != self._cloud_settings:
            for node in self._clouds.values():
                node.remove()
            self._clouds, self._cloud_settings = {}, settings
        key = -1 if shown.always else t
        if key not in self._clouds and shown.points:
            self._clouds[key] = self._cloud(shown, key)
        for other, node in self._clouds.items():
            node.visible = shown.points and other == key

    def _cloud(self, shown: Shown, t: int) -> viser.PointCloudHandle:
        points = self.opened.arrays["points"]
        kept = finite(points["xyz"]) if t < 0 else finite(points["xyz"]) & (points["frame"] == t)
        if shown.doubt:
            kept &= points["confidence"] >= np.percentile(points["confidence"], shown.doubt)
        rows = np.flatnonzero(kept)
        rows = rows[:: max(1, -(-len(rows) // MAX_POINTS))]
        return self.scene.add_point_cloud(
            f"{self.root}/points/{t}",
            points["xyz"][rows].astype(np.float32),
            points["rgb"][rows],
            point_size=0.0025 * self.extent * shown.size,
            point_shading="flat",
        )

    # --- tracks ------------------------------------------------------------------------------------------------------

    def _add_tracks(self, shown: Shown, t: int) -> None:
        """Discs where seen, darker diamonds where hidden, red stars where they were lost."""
        tracks = self.opened.arrays["tracks"]
        known = finite(tracks["xyz"]) & (tracks["status"] != 3)
        last = np.maximum.accumulate(np.where(known, np.arange(len(self.opened)), -1), axis=1)[:, t]
        begun, lost = last >= 0, (last >= 0) & ~known[:, t] & (tracks["status"][:, t] == 3)
        seen = known[:, t] & tracks["visible"][:, t]
        hidden = known[:, t] & ~seen
        xyz = tracks["xyz"][np.arange(len(last)), np.maximum(last, 0)].astype(np.float32)
        colours = self.colours(t)
        self._marks("seen", xyz[seen], colours[seen], "circle", 0.006)
        if shown.hidden:
            self._marks("hidden", xyz[hidden], colours[hidden] // 2, "diamond", 0.005)
            self._marks("lost", xyz[lost], np.full((lost.sum(), 3), LOST), "sparkle", 0.006)
        followed = begun & (seen | (hidden & shown.hidden))
        self._trails(t, max(0, t - shown.trail), followed, known, colours)

    def colours(self, t: int) -> np.ndarray:
        """(N, 3) uint8: of where a track was asked, or of its error where truth is known."""
        tracks = self.opened.arrays["tracks"]
        if self.errors is None:
            return position_colours(np.nan_to_num(tracks["points"]))
        return depth_colours(WORST - self.errors[:, t], 0.0, WORST)  # no error is blue

    def _marks(self, name: str, xyz: np.ndarray, colours: np.ndarray, shape: str, size: float) -> None:
        if len(xyz):
            where, size = f"{self.root}/tracks/{name}", size * self.extent
            node = self.scene.add_point_cloud(where, xyz, colours.astype(np.uint8), point_size=size, point_shape=shape)
            self._moving.append(node)

    def _trails(self, t: int, first: int, followed: np.ndarray, known: np.ndarray, colours: np.ndarray) -> None:
        segments, shades = [], []
        xyz = self.opened.arrays["tracks"]["xyz"]
        for s in range(first, t):
            rows = np.flatnonzero(followed & known[:, s] & known[:, s + 1])
            fade = (s - first + 1) / (t - first)
            segments.append(np.stack([xyz[rows, s], xyz[rows, s + 1]], axis=1))
            shades.append(np.repeat((colours[rows] * fade).astype(np.uint8)[:, None], 2, axis=1))
        if segments and sum(map(len, segments)):
            where, lines = f"{self.root}/tracks/trails", np.concatenate(segments).astype(np.float32)
            node = self.scene.add_line_segments(
                where, lines, np.concatenate(shades), thickness=2.0, thickness_units="screen"
            )
            self._moving.append(node)

    # --- cameras -----------------------------------------------------------------------------------------------------

    def _frustum(self, t: int, name: str, colour: tuple[int, int, int], scale: float, image: np.ndarray | None = None):
        cameras, video = self.opened.arrays["cameras"], self.opened.document.video
        pose, lens = cameras["world_from_cam"][t].astype(np.float64), cameras["intrinsics"][t]
        if not (np.isfinite(pose).all() and np.isfinite(lens).all()):
            return None
        return self.scene.add_camera_frustum(
            f"{self.root}/cameras/{name}",
            fov=float(2 * np.arctan(video.height / 2 / lens[1, 1])),
            aspect=video.width / video.height,
            scale=scale * self.extent,
            thickness=1.5,
            thickness_units="screen",
            color=colour,
            image=image,
            wxyz=np.roll(xyzw_from_rotation(pose[:3, :3]), 1),
            position=pose[:3, 3],
        )

    def _add_frusta(self) -> list[viser.SceneNodeHandle]:
        if "cameras" not in self.opened.arrays:
            return []
        seams, every = set(self.opened.document.seams), -(-len(self.opened) // MAX_FRUSTA)
        frames = [t for t in range(len(self.opened)) if t % every == 0 or t in seams]
        nodes = [self._frustum(t, f"of_{t}", SEAM if t in seams else CAMERA, 0.02) for t in frames]
        return [node for node in nodes if node is not None]

    def _add_camera(self, t: int) -> None:
        if "cameras" in self.opened.arrays:
            node = self._frustum(t, "now", NOW, 0.05, self.opened.image(t))
            self._moving += [node] if node is not None else []
