"""PointOdyssey v1.2 (and v1.1): long synthetic videos of characters and objects, with annotated points. Notes D1.

Raw layout:
    {train,val,test,sample}/<seq>/
        rgbs/rgb_00000.jpg         8-bit RGB, 960 x 540; the number is the row in anno.npz
        depths/depth_00000.png     16-bit grey, floor of 65535/1000 z in units; 0 is a hole, 65535 is sky or clipped
        normals/normal_00000.jpg   8-bit (n + 1) * 127.5 in the axes of Blender's world; black-grey where nothing is
        anno.npz, float16 or float32:
            intrinsics (T, 3, 3)   pixels, the centre of the top-left one at (0.5, 0.5)
            extrinsics (T, 4, 4)   cam_from_world, OpenCV axes, world +y up
            trajs_3d (T, N, 3)     world; absent, None, [None] or NaN in a few sequences, which then have no tracks
            trajs_2d (T, N, 2)     pixels, up to 1 px off near silhouettes, inf or NaN where broken
            valids, visibs (T, N)  1: annotated, not occluded. v1.1: visibilities, 0 hidden, 1 visible, 2 invalid

Units differ between scenes (outdoor ones are larger), so nothing here is metric.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from pipelines.geometry import distance, finite, inverse, project, towards_camera, transform
from pipelines.raw.folder import RawFolder
from pipelines.raw.npz import Npz
from pipelines.sequence import Cameras, Dataset, Sequence, Tracks

LAYOUT = "PointOdyssey v1.2: <split>/<seq>/ with anno.npz, rgbs/ and depths/"
V1_0_FILES = ("annot.npz", "annotations.npz")
UNITS = (np.arange(65536, dtype=np.float32) + np.float32(0.5)) * np.float32(1000 / 65535)  # stored values are floored
UNITS[[0, 65535]] = np.nan  # a hole, sky
WORLD_FROM_BLENDER = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # +z up to +y up
MIN_NORMAL = 0.3  # shorter is background, or JPEG noise at an edge
MAX_WANDER = 100  # summed distance from where a track starts, beyond which it is broken (as in aharley/pips2)
MAX_JUMP = 512  # pixels from one frame to the next, likewise


class PointOdyssey(Sequence):
    """One video. A frame whose extrinsics are not finite has an unknown pose."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        folder = raw.folder_of(name, "anno.npz")
        self._path = f"{folder}/anno.npz"
        self._annotation = Npz(raw, self._path)
        intrinsics = self._annotation.rows("intrinsics").astype(np.float64)
        extrinsics = self._annotation.rows("extrinsics").astype(np.float64)
        if intrinsics.shape != (len(intrinsics), 3, 3) or extrinsics.shape != (len(intrinsics), 4, 4):
            raise ValueError(
                f"{self._path} in {raw.uri} has intrinsics {intrinsics.shape} and extrinsics {extrinsics.shape}, not "
                "(T, 3, 3) and (T, 4, 4) of one T: download it again"
            )
        self.frame_numbers = np.arange(len(intrinsics))
        self._images = raw.frame_files(f"{folder}/rgbs", "rgb_%05d.jpg", self.frame_numbers, self._path)
        self._depths = raw.frame_files(f"{folder}/depths", "depth_%05d.png", self.frame_numbers, self._path)
        self._normals = raw.frame_files(f"{folder}/normals", "normal_%05d.jpg", self.frame_numbers, self._path)
        self.image_size = raw.image_size(self._images[0])
        self.cameras = Cameras(intrinsics=intrinsics, world_from_cam=inverse(self._rigid(extrinsics)))
        self._check_tracks()

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        return UNITS[self._sized(self.raw.grey16(self._depths[t]), self._depths[t])]

    def normal(self, t: int, column: Int64[np.ndarray, "N"], row: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N 3"]:
        """From the stored map: Blender's world (+z up) to the annotations' (+y up) to the camera."""
        coded = self._sized(self.raw.rgb(self._normals[t]), self._normals[t])[row, column] / 127.5 - 1
        cam_from_blender = inverse(self.cameras.world_from_cam[t])[:3, :3] @ WORLD_FROM_BLENDER
        return towards_camera(coded @ cam_from_blender.T, column, row, self.cameras.intrinsics[t], MIN_NORMAL)

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Tracks:
        """The annotated points over these frames; P is 0 where the sequence has none, so only depth speaks.

        A point is NaN and not visible where it is not annotated or where its trajs_2d is not finite. Tracks that wander
        (sum of distances from their start above 100 units) or jump (more than 512 px between frames) are left out.
        """
        if not self._annotation.shape("trajs_3d"):
            return Tracks(xyz_world=np.empty((0, len(frames), 3), np.float32), visible=np.empty((0, len(frames)), bool))
        xyz = self._annotation.rows("trajs_3d", frames).astype(np.float32)
        valid, visible = self._flags(frames)
        valid &= finite(xyz) & finite(self._annotation.rows("trajs_2d", frames))
        xyz[~valid] = np.nan
        kept = self._plausible(frames, xyz, valid)
        return Tracks(
            xyz_world=np.ascontiguousarray(xyz[:, kept].swapaxes(0, 1)),
            visible=np.ascontiguousarray((visible & valid)[:, kept].T),
        )

    def _flags(self, frames: Int64[np.ndarray, "t"]) -> tuple[Bool[np.ndarray, "t P"], Bool[np.ndarray, "t P"]]:
        """What the dataset says: annotated, and not occluded."""
        if "visibilities" in self._annotation:  # v1.1
            flag = self._annotation.rows("visibilities", frames)
            return flag < 2, flag == 1
        return self._annotation.rows("valids", frames) == 1, self._annotation.rows("visibs", frames) == 1

    def _plausible(
        self, frames: Int64[np.ndarray, "t"], xyz: Float32[np.ndarray, "t P 3"], valid: Bool[np.ndarray, "t P"]
    ) -> Bool[np.ndarray, "P"]:
        """Tracks that neither wander off nor jump. The projections are computed here: trajs_2d is not exact."""
        start = np.take_along_axis(xyz, valid.argmax(axis=0)[None, :, None], axis=0)
        before = np.full((xyz.shape[1], 2), np.nan)
        wander, jumps = np.zeros(xyz.shape[1]), np.zeros(xyz.shape[1], bool)

        for t, points in zip(frames, xyz, strict=True):
            wander += np.nan_to_num(distance(points, start[0]))
            cam = transform(inverse(self.cameras.world_from_cam[t]), points)
            cam[cam[:, 2] <= 0] = np.nan
            uv = project(cam, self.cameras.intrinsics[t])
            jumps |= distance(uv, before) > MAX_JUMP
            before = uv
        return (wander <= MAX_WANDER) & ~jumps

    def _rigid(self, extrinsics: Float64[np.ndarray, "T 4 4"]) -> Float64[np.ndarray, "T 4 4"]:
        """With the nearest rotation for the stored one, which float16 bends by 5e-4; all NaN where not finite."""
        known = np.isfinite(extrinsics).all(axis=(1, 2))
        stored = extrinsics[known, :3, :3]
        u, _, vt = np.linalg.svd(stored)
        if (np.abs(u @ vt - stored) > 1e-2).any():
            raise ValueError(
                f"extrinsics of {self._path} in {self.raw.uri} hold no rotations: not PointOdyssey v1.1 or v1.2"
            )
        rigid = np.full_like(extrinsics, np.nan)
        rigid[known] = extrinsics[known]
        rigid[known, :3, :3] = u @ vt
        return rigid

    def _check_tracks(self) -> None:
        """A note if there are no tracks; ValueError unless their arrays are there and fit together."""
        shape = self._annotation.shape("trajs_3d")
        if not shape:
            what = "holds no numbers" if "trajs_3d" in self._annotation else "is absent"
            self.notes = (f"no tracks: trajs_3d of {self._path} {what}",)
            return
        flags = ["visibilities"] if "visibilities" in self._annotation else ["valids", "visibs"]
        expected = {"trajs_3d": (len(self), *shape[1:2], 3), "trajs_2d": (len(self), *shape[1:2], 2)}
        expected |= {flag: (len(self), *shape[1:2]) for flag in flags}
        for key, wanted in expected.items():
            if (found := self._annotation.shape(key)) != wanted:
                raise ValueError(
                    f"{key} of {self._path} in {self.raw.uri} is {found or 'missing'}, but its cameras and trajs_3d "
                    f"ask for {wanted}: not v1.1 or v1.2, or corrupt; download it again"
                )


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "train/ani", by anno.npz. ValueError for the files of v1.0."""
    names = []
    for folder in raw.find_folders("anno.npz", *V1_0_FILES):
        if not raw.exists(f"{folder}/anno.npz"):
            raise ValueError(
                f"{folder} in {raw.uri} is PointOdyssey v1.0 (it has annot.npz or annotations.npz), whose "
                "cameras are defined differently: not read; download v1.2, which has anno.npz"
            )
        names.append(raw.name_of(folder, parts=2))
    return names


def scene_of(name: str) -> str:
    """The folder of the official split."""
    return name.split("/")[-2]


DATASET = Dataset(key="point_odyssey", layout=LAYOUT, names=sequence_names, scene_of=scene_of, open=PointOdyssey)
