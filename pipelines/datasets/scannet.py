"""ScanNet v2: 1513 hand-held RGB-D scans of 707 rooms; and the phone videos of ScanNet++. Dataset notes D6.

How scans lie on disks: `scannet_layouts.py`; the phone videos: `scannet_iphone.py`. Below scans/, scans_test/ or any
other folder, each scan has a folder of its name, sceneSSSS_RR: room, and which of its scans.

Colour and depth are two cameras, with images of different sizes and shapes, yet a `Sequence` has one pixel grid:
- where both are said to be at one place (nearly all scans), the grid is that of the depth camera, and colour is warped
  onto it, so that one K is exact; a plain resize would be off by a pixel at the top and the bottom;
- elsewhere the grid is that of the colour camera at the depth's resolution, and depth is projected into it.
Poses that are no rigid motion (-inf where tracking was lost) are unknown.
"""

import re

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from pipelines.datasets.scannet_iphone import MARKER, iphone
from pipelines.datasets.scannet_layouts import LAYOUTS
from pipelines.geometry import check_fit, image_grid, inverse, project, scaled_intrinsics, transform, unproject
from pipelines.raw.folder import RawFolder
from pipelines.sequence import Cameras, Dataset, Sequence, Static

LAYOUT = (
    "ScanNet v2: sceneSSSS_RR/ with a .sens file or its exported frames (color/, depth/, pose/ and intrinsic/, or "
    "_info.txt, or color_90/ and depth_90/), or ScanNet++: <scene>/iphone/"
)
READERS = LAYOUTS | {MARKER: iphone}
SAME_PLACE = 1e-5  # entries of an extrinsic matrix, metres and rotation, that count as the identity's
MAX_SKEW = 1e-3  # beyond it a pose holds no rotation


class ScanNet(Sequence):
    """One scan. Nothing moves; normals from such depth are not worth having."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        folder = raw.folder_of(name, *READERS)
        self._scan = scan = next(READERS[marker] for marker in READERS if raw.holds(folder, marker))(raw, folder)
        self.frame_numbers, self.image_size = scan.numbers, scan.depth_size
        self.prepared, self.lacks = scan.prepared, scan.lacks
        height, width = self.image_size
        check_fit(scan.colour_intrinsics, scan.colour_size, f"colour of {scan.where}")
        check_fit(scan.depth_intrinsics, scan.depth_size, f"depth of {scan.where}")
        ratio = {"width_ratio": width / scan.colour_size[1], "height_ratio": height / scan.colour_size[0]}
        self._colour_intrinsics = scaled_intrinsics(scan.colour_intrinsics, **ratio)
        if np.isnan(_rigid(scan.colour_from_depth[None])).any():
            raise ValueError(f"the depth extrinsics of {scan.where} are no rigid motion: damaged, download it again")
        self._aligned = np.abs(scan.colour_from_depth - np.eye(4)).max() < SAME_PLACE
        poses = _rigid(scan.world_from_depth)
        if self._aligned:
            self.cameras = Cameras(intrinsics=scan.depth_intrinsics, world_from_cam=poses)
        else:
            poses = poses @ inverse(scan.colour_from_depth)
            self.cameras = Cameras(intrinsics=self._colour_intrinsics, world_from_cam=poses)

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        if "images" in self.lacks:
            raise self._missing("images", "color_90/")
        colour = self._of_size(self._scan.colour(t), self._scan.colour_size, "colour", t)
        height, width = self.image_size
        shrinks = width < colour.shape[1]
        image = cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if not self._aligned:
            return image
        # Pixels of the resized colour from those of depth; both matrices end in 0 0 1, and so does their homography.
        affine = (self._colour_intrinsics[t] @ np.linalg.inv(self._scan.depth_intrinsics[t]))[:2]
        affine[:, 2] += affine[:, :2].sum(axis=1) / 2 - 0.5  # OpenCV's top-left centre is (0, 0)
        linear = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, affine, (width, height), flags=linear, borderMode=cv2.BORDER_REPLICATE)

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        if "depth" in self.lacks:
            raise self._missing("depth", "depth_90/")
        metres = self._of_size(self._scan.depth(t), self.image_size, "depth", t)
        depth = np.where(metres > 0, metres, np.float32(np.nan))
        return depth if self._aligned else self._seen_by_colour(depth, t)

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Static:
        return Static()

    def normal(self, t: int, column: Int64[np.ndarray, "N"], row: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N 3"]:
        """Unknown: from a metre on, the sensor's steps in depth are larger than a pixel's footprint."""
        return np.full((len(row), 3), np.nan)

    def _seen_by_colour(self, depth: Float32[np.ndarray, "H W"], t: int) -> Float32[np.ndarray, "H W"]:
        """Depth in the colour camera. A pixel stands for 2 x 2 points, so that no holes open; the nearest one wins."""
        height, width = depth.shape
        uv = image_grid(2 * height, 2 * width) / 2
        doubled = depth.repeat(2, axis=0).repeat(2, axis=1).astype(np.float64)
        xyz = transform(self._scan.colour_from_depth, unproject(uv, doubled, self._scan.depth_intrinsics[t]))
        xyz = xyz[xyz[..., 2] > 0]  # and not NaN
        column, row = np.floor(project(xyz, self.cameras.intrinsics[t])).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        nearest = np.full((height, width), np.inf, np.float32)
        place = row[inside].astype(np.int64), column[inside].astype(np.int64)
        np.minimum.at(nearest, place, xyz[inside, 2].astype(np.float32))
        return np.where(np.isfinite(nearest), nearest, np.float32(np.nan))

    def _of_size(self, pixels: np.ndarray, size: tuple[int, int], what: str, t: int) -> np.ndarray:
        if pixels.shape[:2] != size:
            raise ValueError(
                f"{what} of frame {self.frame_numbers[t]} of {self._scan.where} is {pixels.shape[:2]} (H, W), not "
                f"{size} as that of the first frame: were only some resized?"
            )
        return pixels


def _rigid(poses: Float64[np.ndarray, "T 4 4"]) -> Float64[np.ndarray, "T 4 4"]:
    """All NaN where a pose is no rigid motion, looked at before anything is multiplied with it. The identity is a pose
    in one frame; in several it fills those whose pose is unknown."""
    finite = np.isfinite(poses).all(axis=(1, 2))
    rotation = np.where(finite[:, None, None], poses, 0)[:, :3, :3]
    skew = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    rigid = finite & (skew < MAX_SKEW) & (np.linalg.det(rotation) > 0) & (poses[:, 3] == [0, 0, 0, 1]).all(axis=1)
    filled = (poses == np.eye(4)).all(axis=(1, 2))
    return np.where((rigid & ~(filled & (filled.sum() > 1)))[:, None, None], poses, np.nan)


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "scans/scene0000_00" and "0a7cc12c0e/iphone"."""
    return [raw.name_of(folder, parts=2) for folder in raw.find_folders(*READERS)]


def scene_of(name: str) -> str:
    """The room, "scene0000", all of whose scans show the same place; of a phone video its scene, "0a7cc12c0e".

    ValueError for a folder that is called otherwise: which split it belongs to, nobody knows.
    """
    pattern = r"([0-9a-f]{10})/iphone" if name.endswith("/iphone") else r"(scene\d{4})_\d\d(?![^/])"
    rooms = re.findall(rf"(?<![^/]){pattern}", name)
    if not rooms:
        raise ValueError(
            f"{name!r} has no sceneSSSS_RR, nor 10 hex digits above iphone, by which scans are split: give its folder "
            "the name of the scan"
        )
    return rooms[-1]


DATASET = Dataset(key="scannet", layout=LAYOUT, names=sequence_names, scene_of=scene_of, open=ScanNet)
