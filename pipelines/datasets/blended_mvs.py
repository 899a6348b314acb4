"""BlendedMVS, its + and its ++: photos of 502 scenes from drones and turntables, with rendered depth. Dataset notes D7.

Raw layout, each scene a folder named by its PID, 24 hex digits (the high-resolution set nests it twice):
    <PID>/
        blended_images/00000000.jpg         8-bit RGB, 768 x 576 (beside 00000000_masked.jpg, which is not read)
        rendered_depth_maps/00000000.pfm    float32 along +z; 0 where the mesh has nothing
        cams/00000000_cam.txt               "extrinsic", cam_from_world 4x4, OpenCV axes; "intrinsic", 3x3, pixels of
                                            corner origin; DEPTH_MIN DEPTH_INTERVAL [DEPTH_NUM [DEPTH_MAX]]
        cams/pair.txt                       N; then of each photo its id, and a line: how many, id score id score ...

Photos have no order in time, and numbers may be missing. Every scene has a unit of its own.
"""

import re

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from pipelines.geometry import check_fit, inverse
from pipelines.raw.folder import RawFolder
from pipelines.raw.pfm import read_pfm
from pipelines.sequence import Cameras, Dataset, Sequence, Static

LAYOUT = "BlendedMVS (+, ++): <PID of 24 hex digits>/ with blended_images/, rendered_depth_maps/ and cams/"
MIN_KNOWN = 0.05  # share of a photo's pixels with depth, below which no clip has it
POSITIVE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class BlendedMvs(Sequence):
    """The photos of one scene. One that shows hardly any of the mesh counts as one of unknown pose, so that no clip has
    it; to tell these, opening a scene reads its depth maps."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        folder = raw.folder_of(name, "cams")
        self._cams = f"{folder}/cams"
        self.frame_numbers = raw.frame_numbers(self._cams, "%08d_cam.txt")
        paths = raw.frame_files(self._cams, "%08d_cam.txt", self.frame_numbers, self._cams)
        self._images = raw.frame_files(f"{folder}/blended_images", "%08d.jpg", self.frame_numbers, self._cams)
        self._depths = raw.frame_files(f"{folder}/rendered_depth_maps", "%08d.pfm", self.frame_numbers, self._cams)
        self.image_size = raw.image_size(self._images[0])
        told = [_camera(text, f"{path} in {raw.uri}") for path, text in zip(paths, raw.texts(paths), strict=True)]
        extrinsics, intrinsics, self._ranges = zip(*told, strict=True)
        intrinsics, world_from_cam = np.stack(intrinsics), inverse(np.stack(extrinsics))
        check_fit(intrinsics, self.image_size, f"{self._cams} in {raw.uri}")
        self._neighbours = self._pairs(raw.text(f"{self._cams}/pair.txt"))
        try:
            Cameras(intrinsics=intrinsics, world_from_cam=world_from_cam)  # refuses what is no rigid motion
        except ValueError as error:
            raise ValueError(f"{self._cams} in {raw.uri}: {error}") from None
        shown = [self._known(self._stored(t), t).mean() >= MIN_KNOWN for t in range(len(told))]
        world_from_cam[~np.array(shown)] = np.nan
        self.cameras = Cameras(intrinsics=intrinsics, world_from_cam=world_from_cam)

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sized(self.raw.rgb(self._images[t]), self._images[t])

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        """Without what lies outside the range that the camera file states, as the authors train."""
        depth = self._stored(t)
        np.putmask(depth, ~self._known(depth, t), np.float32(np.nan))
        return depth

    def _stored(self, t: int) -> Float32[np.ndarray, "H W"]:
        return self._sized(read_pfm(self.raw, self._depths[t]), self._depths[t])

    def _known(self, stored: Float32[np.ndarray, "h W"], t: int) -> Bool[np.ndarray, "h W"]:
        nearest, farthest = self._ranges[t]
        return (stored >= nearest) & (stored <= farthest)  # NaN is neither

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Static:
        return Static()

    def neighbours(self, t: int) -> list[int]:
        return self._neighbours[t]

    def _pairs(self, text: str) -> list[list[int]]:
        """Of each photo the others that see the same, the highest score first; none where pair.txt has none."""
        place = {int(number): t for t, number in enumerate(self.frame_numbers)}
        neighbours = [[] for _ in place]
        try:
            count, *rest = text.split()
            tokens = iter(rest)
            for _ in range(int(count)):
                photo = place[int(next(tokens))]
                scored = [(place[int(next(tokens))], -float(next(tokens))) for _ in range(int(next(tokens)))]
                neighbours[photo] = [t for t, _ in sorted(scored, key=lambda pair: pair[1])]
            if (surplus := list(tokens)) or any(t in seen for t, seen in enumerate(neighbours)):
                raise ValueError(f"{len(surplus)} numbers too many, or a photo that is its own neighbour")
        except (KeyError, ValueError, StopIteration) as error:
            raise ValueError(
                f"{self._cams}/pair.txt in {self.raw.uri} must be a count, then of each photo its id and a line of how "
                f"many neighbours, id score id score ..., ids being those of cams/ ({error!r}): download it again"
            ) from None
        return neighbours


def _camera(text: str, where: str) -> tuple[Float64[np.ndarray, "4 4"], Float64[np.ndarray, "3 3"], tuple]:
    """cam_from_world, intrinsics, and (nearest, farthest) depth, all that is positive and finite where
    the file states no range."""
    words = text.split()
    try:
        if len(words) not in (29, 30, 31) or (words[0], words[17]) != ("extrinsic", "intrinsic"):
            raise ValueError(f"{len(words)} words")
        numbers = np.array(words[1:17] + words[18:], np.float64)
        if not np.isfinite(numbers).all():
            raise ValueError("not finite")
    except ValueError as error:
        raise ValueError(
            f"{where} must be 'extrinsic', 16 finite numbers, 'intrinsic', 9, and 2 to 4 of depth ({error}): download "
            "it again"
        ) from None
    smallest, interval, *more = numbers[25:]
    largest = more[1] if len(more) == 2 else smallest + interval * more[0] if more else np.inf
    stated = smallest > 0 and 0 < largest < np.inf
    depths = (float(smallest + interval), float(largest)) if stated else POSITIVE
    return numbers[:16].reshape(4, 4), numbers[16:25].reshape(3, 3), depths


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "5b7a3890fc8fcf6781e2593a", by cams/."""
    return [raw.name_of(folder, parts=1) for folder in raw.find_folders("cams")]


def scene_of(name: str) -> str:
    """The PID. ValueError for a folder that has none: which split it belongs to, nobody knows."""
    pids = [part for part in name.split("/") if re.fullmatch(r"[0-9a-f]{24}", part)]
    if not pids:
        raise ValueError(f"{name!r} has no PID of 24 hex digits, by which scenes are split: give its folder that name")
    return pids[-1]


DATASET = Dataset(key="blended_mvs", layout=LAYOUT, names=sequence_names, scene_of=scene_of, open=BlendedMvs)
