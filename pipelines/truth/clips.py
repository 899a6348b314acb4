"""One sequence to clips: which frames, resized how, with which queries. Plain functions; `convert` runs them on Ray."""

from dataclasses import astuple, dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from pipelines.catalog import Catalog
from pipelines.geometry import scaled_intrinsics
from pipelines.query_table import FLAG_BITS, VALID_BITS
from pipelines.sequence import Cameras, Sequence
from pipelines.store.layout import ClipData, StoreSettings
from pipelines.truth.crops import Crop, Cropped, Remembered
from pipelines.truth.ground_truth import GroundTruth
from pipelines.truth.queries import TooLittleSurface, draw_queries

CROP_ATTEMPTS = 5


@dataclass(frozen=True)
class Span:
    """The frames of a clip, counted within its sequence."""

    frames: tuple[int, ...]
    stride: int
    """From each frame to the next; 0 for photos that have no order."""

    @property
    def start(self) -> int:
        return self.frames[0]


def spans(sequence: Sequence, settings: StoreSettings) -> list[Span]:
    """Where the clips of a sequence lie: one every `hop` frames, each with a stride drawn from the settings' range.

    The stride is reduced until the clip fits; a clip never contains a frame whose pose is unknown, never bridges one,
    and is never padded. A clip of photos is a walk from neighbour to neighbour. Pure in (sequence name, settings).
    """
    rng = np.random.default_rng([settings.seed, *sequence.name.encode()])
    known = sequence.cameras.known
    if len(sequence) and sequence.neighbours(0) is not None:
        walks = [_walk(sequence, start, settings.frames, rng) for start in range(0, len(sequence), settings.hop)]
        return [Span(walk, 0) for walk in walks if len(walk) == settings.frames]

    steps = settings.frames - 1
    found = []
    for start in range(0, len(sequence) - steps, settings.hop):
        widest = (len(sequence) - 1 - start) // max(steps, 1)
        stride = int(rng.integers(settings.strides[0], settings.strides[1] + 1))
        stride = min(stride, widest) if steps else 1
        if stride >= settings.strides[0] and known[start : start + steps * stride + 1].all():
            found.append(Span(tuple(range(start, start + steps * stride + 1, stride)), stride))
    return found


def _walk(sequence: Sequence, start: int, length: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Up to `length` different photos, each seeing something of one before it: of the last one where that is possible.

    One of the three most alike is drawn, so that a walk neither stands still nor jumps.
    """
    known = sequence.cameras.known
    walk = [start] if known[start] else []
    while walk and len(walk) < length:
        for seen in reversed(walk):
            if options := [t for t in sequence.neighbours(seen) if known[t] and t not in walk]:
                walk.append(int(rng.choice(options[:3])))
                break
        else:
            break
    return tuple(walk)


def resize(frame: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """To a square without cropping: area average where it shrinks, bilinear where it grows (specification 2)."""
    height, width = frame.shape[:2]
    frame = cv2.resize(frame, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    return cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR)


def build_clips(sequence: Sequence, span: Span, catalog: Catalog, settings: StoreSettings) -> list[ClipData]:
    """The clip of one span, then its crops. Pure in its arguments.

    A crop that shows too little known surface is drawn again; ValueError if that goes on.
    """
    if settings.crops == 0:
        return [build_clip(sequence, span, catalog, settings)]

    frames = Remembered(sequence)
    clips = [build_clip(frames, span, catalog, settings)]

    rng = np.random.default_rng([settings.seed, settings.crops, span.start, *sequence.name.encode()])
    for number in range(1, settings.crops + 1):
        for attempts_left in reversed(range(CROP_ATTEMPTS)):
            crop = Crop.random(sequence.image_size, rng)
            try:
                clips.append(build_clip(Cropped(frames, crop), span, catalog, settings, crop=(number, crop)))
                break
            except TooLittleSurface:
                if attempts_left == 0:
                    raise
    return clips


def build_clip(
    sequence: Sequence,
    span: Span,
    catalog: Catalog,
    settings: StoreSettings,
    *,
    crop: tuple[int, Crop | None] = (0, None),
) -> ClipData:
    """Read the frames of one span and compute its query samples. `crop`: which one `sequence` is, for the index."""
    frames, times = np.array(span.frames), span.frames
    depth = np.empty((len(times), *sequence.image_size), np.float32)
    for k, t in enumerate(times):
        depth[k] = sequence.depth(t)  # one after the other, while it is in the cache
    instance = [sequence.instance(t) for t in times]
    cameras = Cameras(
        intrinsics=sequence.cameras.intrinsics[frames], world_from_cam=sequence.cameras.world_from_cam[frames]
    )

    truth = GroundTruth(
        cameras=cameras,
        depth=depth,
        instance=None if instance[0] is None else np.stack(instance),
        motion=sequence.motion(frames),
        tolerance=catalog.depth_tolerance,
    )
    queries = draw_queries(
        truth,
        lambda t, column, row: sequence.normal(times[t], column, row),
        np.random.default_rng([settings.seed, crop[0], span.start, *sequence.name.encode()]),
        samples=settings.samples,
        queries=settings.queries,
        image_size=settings.image_size,
    )

    height, width = depth.shape[1:]
    ratio = {"width_ratio": settings.image_size / width, "height_ratio": settings.image_size / height}
    xyz_known = queries["valid"] & VALID_BITS["xyz"] > 0
    visible_known = queries["valid"] & VALID_BITS["visible"] > 0
    own_depth = queries["xyz"][..., 2][xyz_known & (queries["t_cam"] == queries["t_tgt"])]

    return ClipData(
        video=np.stack([resize(sequence.image(t), settings.image_size) for t in times]),
        queries=queries,
        intrinsics=scaled_intrinsics(cameras.intrinsics, **ratio).astype(np.float32),
        world_from_cam=cameras.world_from_cam.astype(np.float32),
        frame_index=sequence.frame_numbers[frames],
        row={
            "sequence": sequence.name,
            "start": span.start,
            "stride": span.stride,
            "crop": None if crop[1] is None else list(astuple(crop[1])),
            "crop_number": crop[0],
            "aspect": width / height,
            "is_metric": catalog.is_metric,
            "share_valid": float(xyz_known.mean()),
            "share_dynamic": float((queries["flags"] & FLAG_BITS["dynamic"] > 0).mean()),
            "share_visible": float(queries["visible"].sum() / max(visible_known.sum(), 1)),
            "median_depth": float(np.median(own_depth)) if own_depth.size else float("nan"),
        },
    )
