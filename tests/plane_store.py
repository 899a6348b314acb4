"""A clip store whose answers are known in closed form: tilted planes, seen by a camera that moves without turning."""

from pathlib import Path

import numpy as np

from pipelines.query_table import FLAG_BITS, VALID_BITS, query_dtype
from pipelines.store.index import finish
from pipelines.store.layout import ClipData, StoreSettings
from pipelines.store.marks import Origin, begin
from pipelines.store.writer import write_group


def write_plane_store(
    uri,
    *,
    clips=8,
    frames=4,
    size=64,
    samples=2,
    queries=128,
    dataset="planes",
    seed=0,
    video="jpeg",
    known=tuple(VALID_BITS),
    facts=None,
) -> str:
    """Write `clips` clips, and return the URI. Everything is static and metric, and `known` for all queries. `facts`:
    for store.json."""
    settings = StoreSettings(
        dataset=dataset,
        split="train",
        frames=frames,
        image_size=size,
        strides=(1, 1),
        hop=frames,
        samples=samples,
        queries=queries,
        video=video,
        seed=seed,
    )
    rng = np.random.default_rng(seed)
    begin(str(uri), settings)
    made = [plane_clip(settings, rng, i, known) for i in range(clips)]
    origin = Origin(sequence="planes", first=0, frames=(tuple(range(frames)),) * clips, labels={}, files={})
    finish(str(uri), settings, [write_group(str(uri), origin, settings, made)], facts or {})
    return str(uri)


def cut_chunks(store: str, array: str) -> None:
    """Damage every clip: the files that hold this array lose their second half."""
    for file in Path(store).glob(f"data/*/*.zarr/{array}/c/**/*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def plane_clip(settings: StoreSettings, rng: np.random.Generator, number: int, known: tuple[str, ...]) -> ClipData:
    frames, size = settings.frames, settings.image_size
    normal = np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), -1.0])
    normal /= np.linalg.norm(normal)
    offset = normal @ [0, 0, rng.uniform(2, 6)]
    centres = np.outer(np.arange(frames), rng.uniform(-0.15, 0.15, 3))  # of the camera, in the world

    def lift(uv_norm: np.ndarray, t: np.ndarray) -> np.ndarray:
        """World points under these pixels; the focal length is the image's width."""
        ray = np.concatenate([uv_norm - 0.5, np.ones((*uv_norm.shape[:-1], 1))], -1)
        depth = (offset - centres[t] @ normal) / (ray @ normal)
        return centres[t] + depth[..., None] * ray

    grid = np.stack(np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2), -1)
    video = np.empty((frames, size, size, 3), np.uint8)
    for t in range(frames):
        points = lift(grid, np.full((size, size), t))
        video[t] = 127 + 100 * np.sin(points * [4, 5, 6] + [0, 1, 2])

    records = np.zeros((settings.samples, settings.queries), query_dtype(frames))
    shape = records.shape
    t_src, t_tgt, t_cam = rng.integers(0, frames, (3, *shape))
    uv = rng.uniform(0, 1, (*shape, 2))
    point = lift(uv, t_src)
    at_target = point - centres[t_tgt]
    uv_tgt = at_target[..., :2] / at_target[..., 2:] + 0.5
    inside = ((uv_tgt >= 0) & (uv_tgt <= 1)).all(-1)
    valid = np.full(shape, sum(VALID_BITS[name] for name in known))
    valid[~inside] &= ~VALID_BITS["uv_tgt"]
    for name, values in {
        "uv_norm": uv,
        "t_src": t_src,
        "t_tgt": t_tgt,
        "t_cam": t_cam,
        "xyz": point - centres[t_cam],
        "uv_tgt": uv_tgt,
        "visible": inside,
        "normal": normal,
        "valid": valid,
        "flags": np.where(rng.random(shape) < 0.3, FLAG_BITS["edge"], 0),
    }.items():
        records[name] = values
    intrinsics = np.array([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]], np.float32)
    poses = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    poses[:, :3, 3] = centres
    return ClipData(
        video=video,
        queries=records,
        intrinsics=np.tile(intrinsics, (frames, 1, 1)),
        world_from_cam=poses,
        frame_index=np.arange(frames),
        row={
            "sequence": f"plane{number:04}",
            "start": 0,
            "stride": 1,
            "aspect": 1.5,
            "is_metric": True,
        }
        | {"share_valid": float("xyz" in known), "share_dynamic": 0.0, "share_visible": 1.0, "median_depth": 4.0},
    )
