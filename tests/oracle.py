"""Stands in for a trained D4RT: it answers every query from an analytic scene, exactly, or with faults that are known.

To the recipes it is a model: they encode frames and ask. The frames are no pictures of the scene, they only bear their
numbers, so the oracle knows which it was shown, in any order and with any left out. Faults depend on the frames encoded
together and on the query alone: who asks again gets the same answer.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from scipy.special import ndtri
from torch import Tensor

from model import Prediction, Queries
from pipelines.geometry import inverse, project, rotate, transform
from pipelines.synthesize.scene import Hits, Scene

SIZE = 8  # of the frames it is shown
SURE, UNSURE = 3.0, -1.0  # logits of visibility and confidence


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is wrong with the answers. Standard deviations, if not said otherwise."""

    scale: float = 0.0
    """Log of the unit of length, one for all that is encoded together."""
    turn: float = 0.0
    """Radians by which all positions are turned about the camera, one for all that is encoded together."""
    shift: float = 0.0
    """Metres by which they are moved, likewise."""
    bend: float = 0.0
    """Radians by which the world is believed to turn about the first camera's y axis from each frame to the next."""
    noise: float = 0.0
    """Of each coordinate, as a share of the depth, for each query by itself."""
    elsewhen: float = 0.0
    """Of each coordinate, likewise, where a point is asked for at another time than its own."""
    unseen: float = 0.0
    """Of each coordinate, as a share of the distance, where it is out of the view of the camera it is told in."""
    uv_noise: float = 0.0
    """Of the image position, in image sizes, likewise."""
    wrong: float = 0.0
    """Share of the queries that get nonsense for an answer: with any confidence, but the highest about what moves."""
    frozen: bool = False
    """Whether it is sure that nothing moves."""
    unknown: float = 0.0
    """Share of the queries that get an answer of which nothing is a number."""


@dataclass(frozen=True)
class Shown:
    """What the oracle remembers of frames that it was shown together."""

    video: Tensor
    aspect: Tensor
    tokens: Tensor
    frames: np.ndarray
    """(F,) their numbers in the scene."""

    @property
    def num_frames(self) -> int:
        return len(self.frames)


@dataclass
class Oracle:
    scene: Scene
    faults: Faults = Faults()
    clip_frames: int = 48
    step: int = 1
    """Every so many-th frame of the scene is in the video."""
    encoded: int = 0
    asked: int = 0
    """How many queries."""

    device = torch.device("cpu")

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(image_size=SIZE, clip_frames=self.clip_frames, tubelet=2)

    @property
    def numbers(self) -> np.ndarray:
        """(T,) Of the frames of the video, in the scene."""
        return np.arange(0, len(self.scene), self.step)

    @property
    def video(self) -> Tensor:
        """(T, SIZE, SIZE, 3) uint8: frames that bear their numbers."""
        numbers = torch.from_numpy(self.numbers)
        video = torch.zeros(len(numbers), SIZE, SIZE, 3, dtype=torch.uint8)
        video[:, 0, 0, 0], video[:, 0, 0, 1] = (numbers // 256).byte(), (numbers % 256).byte()
        return video

    @property
    def aspect(self) -> float:
        return self.scene.width / self.scene.height

    def encode(self, video: Tensor, aspect: Tensor) -> Shown:
        assert len(video) == 1 and video.shape[1] <= self.clip_frames
        self.encoded += 1
        frames = 256 * video[0, :, 0, 0, 0].numpy().astype(int) + video[0, :, 0, 0, 1].numpy()
        pose = self.scene.cameras.world_from_cam[frames[::2]]
        seen = np.concatenate([pose[:, :3, 2], pose[:, :3, 3] / 10], axis=1)  # alike where the view is alike
        return Shown(video, aspect, torch.tensor(seen, dtype=torch.float32)[None], frames)

    def decode(self, memory: Shown, queries: Queries, *, chunk_size=None, patch_video=None) -> Prediction:
        queries.check_range(memory.num_frames)
        uv_norm, t_src, t_tgt, t_cam = (x[0].numpy() for x in vars(queries).values())
        source = np.arange(len(t_src))
        return self._answers(memory, uv_norm, t_src, source, t_tgt, t_cam)

    def decode_times(self, memory, uv_norm, t_src, t_tgt, t_cam, *, chunk_size=None, patch_video=None) -> Prediction:
        points, times = t_src.shape[1], t_tgt.shape[1]
        Queries(uv_norm, t_src, t_src, t_src).check_range(memory.num_frames)
        source = np.repeat(np.arange(points), times)
        t_tgt, t_cam = (np.tile(t[0].numpy(), points) for t in (t_tgt, t_cam))
        return self._answers(memory, uv_norm[0].numpy(), t_src[0].numpy(), source, t_tgt, t_cam)

    def similarity(self, frames) -> np.ndarray:
        """(4, 4): what is wrong with all positions where these frames are encoded together."""
        rng = np.random.default_rng(list(frames))
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_rotvec(self.faults.turn * rng.standard_normal(3)).as_matrix()
        matrix[:3, 3] = self.faults.shift * rng.standard_normal(3)
        matrix[:3] *= np.exp(self.faults.scale * rng.standard_normal())
        return matrix

    def hits(self, uv_norm: np.ndarray, frames: np.ndarray) -> Hits:
        """The surface points seen at positions (N, 2) of the scene's frames (N,)."""
        return self.scene.trace(uv_norm.astype(np.float64) * [self.scene.width, self.scene.height], frames)

    def _answers(self, memory: Shown, uv_norm, t_src, source, t_tgt, t_cam) -> Prediction:
        """The point seen at uv_norm (P, 2) in t_src (P,), the one numbered source (Q,), at t_tgt in t_cam (Q,)."""
        scene, frames = self.scene, memory.frames
        self.asked += len(source)
        tgt, cam = frames[t_tgt], frames[t_cam]
        hits = self.hits(uv_norm, frames[t_src])
        then, asked = scene.position(hits, frames[t_src])[source], hits[source]
        world = then if self.faults.frozen else scene.position(asked, tgt)
        cam_from_world = inverse(scene.cameras.world_from_cam)
        bent = self._bent(world, t_tgt - t_cam, frames[0])
        xyz = transform(cam_from_world[cam], bent)
        own = transform(cam_from_world[tgt], world)
        uv_tgt = project(own, scene.cameras.intrinsics[tgt]) / [scene.width, scene.height]
        visible = np.where(scene.visible(asked, tgt), SURE, -SURE)
        displacement = rotate(cam_from_world[cam], world - then)
        normal = rotate(cam_from_world[cam], scene.normal(asked, tgt))
        confidence = np.full(len(source), SURE)

        moving = np.concatenate([[False], scene.moving])[asked.surface]
        asked_about = (uv_norm[source].astype(np.float32).view(np.uint32).T, t_src[source], t_tgt, t_cam)
        chance = Chance(frames, *asked_about[0], *asked_about[1:])
        faults = self.faults
        if faults.noise:
            xyz = xyz + faults.noise * np.abs(xyz[:, 2:]) * np.stack([chance.normal(i) for i in range(3)], axis=1)
        if faults.elsewhen:
            off = faults.elsewhen * np.stack([chance.normal(i) for i in (18, 19, 20)], axis=1)
            xyz = np.where((t_tgt != t_src[source])[:, None], xyz + off * np.abs(xyz[:, 2:]), xyz)
        if faults.unseen:
            in_cam = project(xyz, scene.cameras.intrinsics[cam]) / [scene.width, scene.height]
            unseen = (xyz[:, 2] <= 0) | (in_cam < 0).any(axis=1) | (in_cam > 1).any(axis=1)
            far = np.linalg.norm(xyz, axis=1, keepdims=True)
            guess = xyz + faults.unseen * far * np.stack([chance.normal(i) for i in (15, 16, 17)], axis=1)
            xyz = np.where(unseen[:, None], guess, xyz)
        if faults.uv_noise:
            uv_tgt = uv_tgt + faults.uv_noise * np.stack([chance.normal(i) for i in (3, 4)], axis=1)
        wrong = chance(5) < faults.wrong
        if wrong.any():
            z = 1 + 6 * chance(7)
            elsewhere = np.stack([(chance(8) - 0.5) * 1.2 * z, (chance(9) - 0.5) * z, z], axis=1)
            xyz = np.where(wrong[:, None], elsewhere, xyz)
            uv_tgt = np.where(wrong[:, None], np.stack([chance(10), chance(11)], axis=1), uv_tgt)
            visible = np.where(wrong, np.where(chance(12) < 0.5, SURE, -SURE), visible)
            told = np.where(moving, 2 * SURE, UNSURE + 4 * chance(6))
            confidence = np.where(wrong, told, confidence)
        xyz = transform(self.similarity(frames), xyz)
        answers = (xyz, uv_tgt, visible, displacement, normal, confidence)
        if faults.unknown:
            unknown = chance(14) < faults.unknown
            answers = (np.where(unknown.reshape(-1, *[1] * (x.ndim - 1)), np.nan, x) for x in answers)
        return Prediction(*(torch.tensor(x, dtype=torch.float32)[None] for x in answers))

    def _bent(self, world: np.ndarray, later: np.ndarray, first: int) -> np.ndarray:
        """Where the points (Q, 3) are believed to be that are so many frames later than the camera."""
        if not self.faults.bend:
            return world
        pose = self.scene.cameras.world_from_cam[first]
        turned = Rotation.from_rotvec(self.faults.bend * later[:, None] * [0.0, 1.0, 0.0]).as_matrix()
        local = transform(inverse(pose), world)
        return transform(pose, np.einsum("nij,nj->ni", turned, local))


class Chance:
    """Numbers from 0 to 1 that look random, the same for the same query about the same frames (splitmix64)."""

    def __init__(self, frames: np.ndarray, *parts: np.ndarray) -> None:
        key = np.full(len(parts[0]), hash(tuple(frames.tolist())) & (2**64 - 1), np.uint64)
        for part in parts:
            key = _mix(key ^ part.astype(np.uint64))
        self.key = key

    def __call__(self, salt: int) -> np.ndarray:
        return (_mix(self.key ^ np.uint64(salt + 1)) >> np.uint64(11)).astype(np.float64) / 2**53

    def normal(self, salt: int) -> np.ndarray:
        return ndtri(np.clip(self(salt), 1e-12, 1 - 1e-12))


def _mix(key: np.ndarray) -> np.ndarray:
    key = key + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
