"""ScanNet++: the RGB-D video of a phone beside its laser scan. Dataset notes D6, the variant.

    data/<scene>/iphone/
        rgb.mp4 or rgb.mkv          1920 x 1440, 60 fps; frame i of it is "frame_%06d" below
        depth.bin                   192 rows x 256 columns of each frame, 0 where unknown; either one raw deflate stream
                                    of float32 metres, or frame by frame u32 length and payload: an LZ4 block of u16
                                    millimetres, or a deflate stream of float32 metres
        pose_intrinsic_imu.json     {"frame_000000": {"aligned_pose": 4x4 world_from_cam, OpenCV axes, the metres of the
                                    laser scan; "intrinsic": 3x3 of 1920 x 1440; "pose": the phone's own world, ...}}

Colour and depth show the same, so the image is brought to the 256 x 192 of depth, the sensor's true resolution. The
pixel convention of the intrinsics is not told: corner origin is assumed, the other is 0.07 px away. Frames that the
JSON does not have are there, with unknown pose: video and depth go on counting.
"""

import json
import re
import zlib

import lz4.block
import numpy as np
from jaxtyping import Float32

from pipelines.datasets.scannet_layouts import Recording
from pipelines.geometry import scaled_intrinsics
from pipelines.raw.folder import RawFolder
from pipelines.raw.images import unreadable
from pipelines.raw.video import VideoFrames

MARKER = "pose_intrinsic_imu.json"
SIZE = 192, 256  # (H, W) of depth
NOMINAL_SIZE = 1440, 1920  # (H, W) of the images that the intrinsics are for
MILLIMETRES, METRES = 2 * SIZE[0] * SIZE[1], 4 * SIZE[0] * SIZE[1]  # bytes of a frame, as u16 and as float32
MAX_PAYLOAD = METRES + 4096  # no compression makes it larger
MAX_FRAMES = 200_000  # 55 minutes
MARK_EVERY = 64  # frames of one stream from which reading can go on
READ_BYTES = 1 << 18


def iphone(raw: RawFolder, folder: str) -> Recording:
    path = f"{folder}/{MARKER}"
    where = f"{path} in {raw.uri}"
    frames = _frames(raw.text(path), where)
    count = max(frames, default=-1) + 1
    poses, intrinsics = np.full((count, 4, 4), np.nan), np.full((count, 3, 3), np.nan)
    for number, frame in frames.items():
        try:
            poses[number] = np.array(frame["aligned_pose"], np.float64).reshape(4, 4)
            intrinsics[number] = np.array(frame["intrinsic"], np.float64).reshape(3, 3)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"frame_{number:06d} of {where} must have a 4x4 aligned_pose and a 3x3 intrinsic ({error!r}): download "
                "it again"
            ) from None
    told = np.array(sorted(frames))
    intrinsics = intrinsics[told[np.searchsorted(told, np.arange(count))]]  # of the next frame that has them
    names = [name for name in ("rgb.mp4", "rgb.mkv") if name in raw.listdir(folder)[1]] or ["rgb.mp4"]
    rgb = f"{folder}/{names[0]}"
    video, depths = VideoFrames(raw.open(rgb), f"{rgb} in {raw.uri}"), DepthFrames(raw, f"{folder}/depth.bin")
    ratio = {"width_ratio": video.size[1] / NOMINAL_SIZE[1], "height_ratio": video.size[0] / NOMINAL_SIZE[0]}
    depth_ratio = {"width_ratio": SIZE[1] / NOMINAL_SIZE[1], "height_ratio": SIZE[0] / NOMINAL_SIZE[0]}
    return Recording(
        where=where,
        numbers=np.arange(count),
        world_from_depth=poses,
        colour_from_depth=np.eye(4),
        colour_intrinsics=scaled_intrinsics(intrinsics, **ratio),
        depth_intrinsics=scaled_intrinsics(intrinsics, **depth_ratio),
        colour_size=video.size,
        depth_size=SIZE,
        colour=video.frame,
        depth=depths.metres,
    )


def _frames(text: str, where: str) -> dict[int, dict]:
    """What the file tells of each frame, by its number."""
    try:
        entries = json.loads(text).items()
    except (AttributeError, ValueError, RecursionError) as error:
        raise unreadable(where, "a JSON object of frames", error) from None
    frames = {re.fullmatch(r"frame_(\d{6})", key): value for key, value in entries}
    if not frames or None in frames or max(int(match[1]) for match in frames) >= MAX_FRAMES:
        raise ValueError(f"{where} must have keys from frame_000000 on, below {MAX_FRAMES}: download it again")
    return {int(match[1]): value for match, value in frames.items()}


class DepthFrames:
    """The frames of a depth.bin, decompressed when asked for; going forward through one stream costs one pass."""

    def __init__(self, raw: RawFolder, path: str) -> None:
        self._where = f"{path} in {raw.uri}"
        self._file = raw.open(path)
        self._size = self._file.seek(0, 2)
        self._payloads = self._index()
        # Of one stream: frame -> how to go on from there, and at which byte.
        self._marks, self._next, self._at = {0: (zlib.decompressobj(-15), 0)}, 0, 0
        self._inflater = self._marks[0][0].copy()

    def metres(self, t: int) -> Float32[np.ndarray, "192 256"]:
        """0 where unknown."""
        content = self._from_stream(t) if self._payloads is None else self._from_payload(t)
        if len(content) == MILLIMETRES:
            depth = np.frombuffer(content, "<u2") / np.float32(1000)
        else:
            depth = np.frombuffer(content, "<f4").astype(np.float32)
        return np.where(np.isfinite(depth), depth, np.float32(0)).reshape(SIZE)

    def _index(self) -> list[tuple[int, int]] | None:
        """Where payloads are, if lengths lead from each to the next up to the end of the file; else one stream."""
        payloads, at = [], 0
        while at < self._size:
            self._file.seek(at)
            length = int.from_bytes(self._file.read(4), "little")
            at += 4
            if not 0 < length <= min(MAX_PAYLOAD, self._size - at):
                return None
            payloads.append((at, length))
            at += length
        return payloads

    def _from_payload(self, t: int) -> bytes:
        if t >= len(self._payloads):
            raise ValueError(
                f"{self._where} has {len(self._payloads)} frames, number {t} is asked for: truncated, or of another "
                "video; download it again"
            )
        start, length = self._payloads[t]
        self._file.seek(start)
        payload = self._file.read(length)
        try:
            if len(content := lz4.block.decompress(payload, uncompressed_size=MILLIMETRES)) == MILLIMETRES:
                return content
        except lz4.block.LZ4BlockError:
            pass
        for header in (-zlib.MAX_WBITS, zlib.MAX_WBITS):  # a raw stream, as the toolkit has it, or with zlib's header
            inflater = zlib.decompressobj(header)
            try:
                content = inflater.decompress(payload, METRES + 1)
            except zlib.error:
                continue
            if inflater.eof and len(content) in (MILLIMETRES, METRES):
                return content
        raise unreadable(f"depth of frame {t} of {self._where}", "192 x 256 values", "neither LZ4 nor deflate of them")

    def _from_stream(self, t: int) -> bytes:
        mark = max(frame for frame in self._marks if frame <= t)
        if t < self._next or mark > self._next:
            inflater, self._at = self._marks[mark]
            self._next, self._inflater = mark, inflater.copy()
        while self._next <= t:
            content = self._inflate()
            self._next += 1
            if self._next % MARK_EVERY == 0 and self._next not in self._marks:
                self._marks[self._next] = self._inflater.copy(), self._at
        return content

    def _inflate(self) -> bytes:
        """The next frame of the one stream."""
        content, problem = b"", "it ends"
        try:
            while len(content) < METRES and not self._inflater.eof:
                if not (data := self._inflater.unconsumed_tail):
                    self._file.seek(self._at)
                    data = self._file.read(READ_BYTES)
                    self._at += len(data)
                content += (more := self._inflater.decompress(data, METRES - len(content)))
                if not data and not more:
                    break
        except zlib.error as error:
            problem = str(error)
        if len(content) < METRES:
            wanted = f"frames led by their lengths, nor as one stream of more than {self._next} frames"
            raise unreadable(self._where, wanted, problem)
        return content
