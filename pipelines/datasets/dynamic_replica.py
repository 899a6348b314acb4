"""Dynamic Replica (v2 archives): people and animals in scanned rooms, filmed by a stereo pair. Dataset notes D2.

Raw layout; some copies have the annotations unpacked (.json), or all splits in one folder:
    {train,valid,test}/
        frame_annotations_<split>.jgz                             gzipped JSON list, see `pytorch3d`, with
            camera_name ("left" or "right"), trajectories.path    the latter for the left view only
        <seq>_source_{left,right}/                                paths below stand in the list
            images/<seq>_source_left-0000.png                     8-bit RGBA, 1280 x 720
            depths/<seq>_source_left_0000.geometric.png           float16 bits, metres along +z
            masks/<seq>_source_left_0000.png                      8-bit, 0 where the static room is seen
            trajectories/000000.pth                               tensors; vertex n is the same in every frame
                traj_3d_world (N, 3)                              world, metres
                verts_inds_vis (N)                                not hidden
Not read: instance maps, flow, and of the trajectories traj_2d (inf where broken), instances and a copy of the image.
"""

import posixpath

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from pipelines.datasets.pytorch3d import Frame, depth_of
from pipelines.raw import json_list
from pipelines.raw.folder import RawFolder
from pipelines.raw.torch_file import read_tensors
from pipelines.sequence import Cameras, Dataset, Sequence, Tracks

LAYOUT = (
    "Dynamic Replica v2: <split>/ with frame_annotations_<split>.jgz and the folders <seq>_source_left and _right of "
    "the archives"
)
SPLITS = ("train", "valid", "test", "real")
FIELDS = ("sequence_name", "camera_name")  # one alone mixes the two eyes
BACKGROUND, FOREGROUND = -1, 0


def _lists(split: str) -> tuple[str, str]:
    return f"frame_annotations_{split}.jgz", f"frame_annotations_{split}.json"


class DynamicReplica(Sequence):
    """One eye of one video. The right one has no tracks: its room is known at all times, what moves at its own time."""

    def __init__(self, raw: RawFolder, name: str) -> None:
        super().__init__(raw, name)
        *outer, split, sequence, camera = name.split("/") if name.count("/") > 1 else ("", "", name)
        folder, path = _annotation(raw, "/".join(outer), split)
        records = json_list.groups(raw, path, *FIELDS).records((sequence, camera))
        where = f"{path} in {raw.uri}"
        frames = [Frame.parse(record, where, lambda inner: posixpath.join(folder, inner)) for record in records]
        self._frames = sorted(frames, key=lambda frame: frame.number)
        self.frame_numbers = np.array([frame.number for frame in self._frames], np.int64)
        if not frames or (np.diff(self.frame_numbers) != 1).any():
            raise ValueError(
                f"{where} must list the frames of {sequence!r}, camera {camera!r}, without gaps or repetitions; it "
                f"lists {len(frames)}: download it again"
            )
        first = self._frames[0]
        self.image_size = first.size
        for frame in self._frames:
            if not (frame.depth and frame.mask and frame.world_from_cam is not None):
                raise ValueError(
                    f"frame {frame.number} of {name!r} in {where} has no depth, mask or viewpoint; download it again"
                )
            if frame.size != first.size or bool(frame.trajectories) != bool(first.trajectories):
                raise ValueError(
                    f"frame {frame.number} of {name!r} in {where} has another image size than frame {first.number}, or "
                    "only one of them has trajectories: not the list of v2, download it again"
                )
        raw.sizes(filter(None, (path for f in self._frames for path in (f.image, f.depth, f.mask, f.trajectories))))
        if (stored := raw.image_size(first.image)) != first.size:
            raise ValueError(
                f"{first.image} in {raw.uri} is {stored} (H, W), but {path} says {first.size}: were images resized?"
            )
        self.cameras = Cameras(
            intrinsics=np.stack([frame.intrinsics for frame in self._frames]),
            world_from_cam=np.stack([frame.world_from_cam for frame in self._frames]),
        )

    def image(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        return self._sized(self.raw.rgb(self._frames[t].image), self._frames[t].image)

    def depth(self, t: int) -> Float32[np.ndarray, "H W"]:
        frame = self._frames[t]
        return depth_of(self._sized(self.raw.grey16(frame.depth), frame.depth), frame.depth_scale)

    def instance(self, t: int) -> Int32[np.ndarray, "H W"]:
        foreground = self._sized(self.raw.mask(self._frames[t].mask), self._frames[t].mask)
        return np.where(foreground, np.int32(FOREGROUND), np.int32(BACKGROUND))

    def motion(self, frames: Int64[np.ndarray, "t"]) -> Tracks:
        """The vertices over these frames; P is 0 where there are no trajectories. NaN where they are not finite."""
        paths = [self._frames[t].trajectories for t in frames if self._frames[t].trajectories]
        tracks = [self._vertices(path) for path in paths]
        if len({len(visible) for _, visible in tracks}) > 1:
            raise ValueError(
                f"{paths[0]} and others of {self.name} in {self.raw.uri} hold different numbers of vertices: "
                f"{sorted({len(visible) for _, visible in tracks})}; extract the archive again"
            )
        if not tracks:
            return Tracks(xyz_world=np.empty((0, len(frames), 3), np.float32), visible=np.empty((0, len(frames)), bool))
        xyz = np.stack([xyz for xyz, _ in tracks], axis=1)
        finite = np.isfinite(xyz).all(axis=2)
        xyz[~finite] = np.nan
        return Tracks(xyz_world=xyz, visible=np.stack([visible for _, visible in tracks], axis=1) & finite)

    def _vertices(self, path: str) -> tuple[Float32[np.ndarray, "P 3"], np.ndarray]:
        xyz, visible = read_tensors(self.raw, path, "traj_3d_world", "verts_inds_vis")
        if xyz.shape != (len(visible), 3) or visible.ndim != 1 or not np.isin(visible, (0, 1)).all():
            raise ValueError(
                f"{path} in {self.raw.uri} has traj_3d_world {xyz.shape} and verts_inds_vis {visible.shape}, not "
                "(N, 3) and N flags: extract the archive again"
            )
        return xyz.astype(np.float32), visible.astype(bool)


def _annotation(raw: RawFolder, outer: str, split: str) -> tuple[str, str]:
    """Where the sequences of a split lie, and their list: in a folder named for the split, or right here."""
    for folder in (outer or ".", posixpath.join(outer, split)) if split else ():
        for file in _lists(split):
            if raw.exists(f"{folder}/{file}"):
                return folder, f"{folder}/{file}"
    raise ValueError(f"no list of split {split!r} below {outer or '.'} in {raw.uri}: not a sequence found there")


def sequence_names(raw: RawFolder) -> list[str]:
    """Like "train/009850-3_obj/left", by the annotations; of sequences whose archive was not extracted, none."""
    names = []
    for folder in raw.find_folders(*(file for split in SPLITS for file in _lists(split))):
        inside, files = raw.listdir(folder)
        for split in SPLITS:
            if set(files).isdisjoint(_lists(split)):
                continue
            outer = "" if folder == "." else folder
            if posixpath.basename(outer) == split:
                outer = posixpath.dirname(outer)
            _, path = _annotation(raw, outer, split)
            groups = json_list.groups(raw, path, *FIELDS)
            for sequence, camera in groups:
                first = Frame.parse(groups.first((sequence, camera)), f"{path} in {raw.uri}", str)
                if first.image.split("/")[0] in inside:
                    names.append(posixpath.join(outer, split, sequence, camera))
    return names


def scene_of(name: str) -> str:
    """The official split."""
    return name.split("/")[-3]


DATASET = Dataset(key="dynamic_replica", layout=LAYOUT, names=sequence_names, scene_of=scene_of, open=DynamicReplica)
