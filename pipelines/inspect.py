"""`python -m pipelines inspect STORE`: what is in a clip store, as numbers and as pictures.

| file          | holds                                                                                     |
|---------------|-------------------------------------------------------------------------------------------|
| summary.json  | counts, shares and distributions over all queries of all clips; the table printed         |
| sheet_NNN.png | one clip, up to eight of its frames, three times: queries with where they go; which of    |
|               | them lie near an edge or on something that moves; the depth of the points                 |

The queries are counted by a Ray Data job.
"""

import json
from collections import Counter
from functools import partial
from shlex import quote
from typing import Any, get_args

import numpy as np
from jaxtyping import Float, Int64

from model.command_line import loading
from pipelines.datasets import HeldOutKey
from pipelines.problems import alike, counted
from pipelines.query_table import FLAG_BITS, VALID_BITS
from pipelines.raw.place import absolute, lasting
from pipelines.store.reader import Clip, ClipStore, evenly, open_store
from pipelines.store.wholeness import require_whole
from pipelines.whole import require_new, require_writable, result_folder, sizes

# Ray and Matplotlib take a second to import and are not needed to print help or refuse a typing error: see below.

SUMMARY = "summary.json"
CLIPS_PER_ROW = 64  # counted between two steps of the progress bar
DEPTH_EDGES = 10 ** np.linspace(-3, 5, 8 * 20 + 1)  # of the depth histogram: 12 % wide, millimetres to 100 km
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
TIMES = ("t_src", "t_tgt", "t_cam")


def count_clips(row: dict[str, Any], *, store: str) -> Counter[str]:
    """The counts of the clips from number "first" to before "last". ValueError for one that cannot be read."""
    totals: Counter[str] = Counter()
    for number in range(row["first"], row["last"]):
        for name, count in count_queries(open_store(store)[number]).items():
            totals[name] = totals[name] + count
    return totals


def count_queries(clip: Clip) -> dict[str, Int64[np.ndarray, "n"]]:
    """Counts over all query samples of a clip, each an array, so that clips are summed by adding."""
    queries = clip.all_queries()
    valid = {name: queries["valid"] & bit > 0 for name, bit in VALID_BITS.items()}
    flags = {name: queries["flags"] & bit > 0 for name, bit in FLAG_BITS.items()}
    t_src, t_tgt, t_cam = (queries[name] for name in TIMES)
    depth = queries["xyz"][:, 2][valid["xyz"]]
    in_bins = np.histogram(depth, DEPTH_EDGES)[0]
    single = {
        "queries": len(t_src),
        **{f"valid_{name}": mask.sum() for name, mask in valid.items()},
        **{f"flag_{name}": mask.sum() for name, mask in flags.items()},
        "visible": (queries["visible"] & valid["visible"]).sum(),
        "target_is_camera": (t_tgt == t_cam).sum(),
        "all_times_equal": ((t_src == t_tgt) & (t_tgt == t_cam)).sum(),
        "behind_camera": (depth <= 0).sum(),
        "depth_outside_histogram": len(depth) - in_bins.sum() - (depth <= 0).sum(),
    }
    frames = len(clip.frame_index)
    histograms = {name: np.bincount(queries[name], minlength=frames) for name in TIMES}
    counts = {name: np.array([count]) for name, count in single.items()} | histograms | {"depth": in_bins}
    return {name: count.astype(np.int64) for name, count in counts.items()}


def percentiles(counts: Int64[np.ndarray, "bins"], edges: Float[np.ndarray, "edges"]) -> dict[str, float] | None:
    """Percentiles of what fell into a histogram with logarithmic bins, as if spread evenly within each bin."""
    if not counts.sum():
        return None
    reached = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    return {f"p{p}": float(np.exp(np.interp(p / 100, reached, np.log(edges)))) for p in PERCENTILES}


def inspect(store: str, /, *, out: str | None = None, clips: int = 6) -> None:
    """Count what is in a clip store and draw some of its clips.

    Args:
        store: Folder or s3:// URI of a clip store.
        out: Folder or s3:// URI to write, which must be new; by default the store's name with -inspect.
        clips: Number of clips to draw, spread evenly over the store.
    """
    if clips < 0:
        raise ValueError(f"--clips {clips} must not be negative")
    out = lasting(out or f"{store.rstrip('/')}-inspect", "--out")
    opened = ClipStore(absolute(store))
    if not len(opened):
        raise ValueError(f"store {store} has no clips: run convert with another --split or more raw data")
    require_whole(opened.uri, opened.column("group"))
    require_new(out)
    require_writable(out, "--out")

    loading("Ray")
    from pipelines import jobs
    from pipelines.pictures.contact_sheet import contact_sheet
    from pipelines.pictures.drawing import save

    firsts = range(0, len(opened), CLIPS_PER_ROW)
    rows = [{"first": first, "last": min(first + CLIPS_PER_ROW, len(opened))} for first in firsts]
    work = partial(count_clips, store=opened.uri)
    totals: Counter[str] = Counter()
    for outcome in jobs.run_tasks(work, rows, label=f"inspect, {CLIPS_PER_ROW} clips at a time", unit="part"):
        if outcome.failed:
            raise ValueError(outcome.reason)  # a damaged store
        for name, count in outcome.result.items():
            totals[name] = totals[name] + count

    summary = store_summary(opened, totals)
    with result_folder(out, last=SUMMARY) as folder:
        chosen = evenly(len(opened), clips)
        for number, i in enumerate(chosen):
            save(folder / f"sheet_{number:03}.png", contact_sheet(opened[i]))
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    print(summary_text(summary))
    print(f"{out}: {SUMMARY} and {counted(len(chosen), 'contact sheet')}")
    if opened.settings.dataset not in get_args(HeldOutKey):
        print(f"next: python -m train PRESET --data.mixture.{quote(opened.uri)} 1")


def store_summary(store: ClipStore, totals: dict[str, Int64[np.ndarray, "n"]]) -> dict[str, Any]:
    """The content of summary.json. Shares are of all queries unless said otherwise; no such queries give None."""

    def total(name: str) -> int:
        return int(totals[name][0])

    def share(name: str, of: str = "queries") -> float | None:
        return total(name) / total(of) if total(of) else None

    info, settings = store.info, store.settings
    columns = {name: store.column(name) for name in ("stride", "aspect")}
    psnr = store.column("psnr")
    psnr = psnr[np.isfinite(psnr)]
    frames = settings.frames
    return {
        "schema": 1,
        "store": store.uri,
        "digest": info["digest"],
        "dataset": settings.dataset,
        "split": settings.split,
        "is_metric": bool(store.column("is_metric").all()),
        "clips": len(store),
        "frames_per_clip": frames,
        "image_size": settings.image_size,
        "samples_per_clip": settings.samples,
        "queries_per_sample": settings.queries,
        "queries": total("queries"),
        "valid": {name: share(f"valid_{name}") for name in VALID_BITS},
        "visible_of_known": share("visible", "valid_visible"),
        "flags": {name: share(f"flag_{name}") for name in FLAG_BITS},
        "target_is_camera": share("target_is_camera"),
        "all_times_equal": share("all_times_equal"),
        "times": {name: (totals[name] / total("queries")).tolist() for name in TIMES},
        "depth": {
            "of": "points with a known xyz, along z of the camera t_cam; bins are 12 % wide",
            "percentiles": percentiles(totals["depth"], DEPTH_EDGES),
            "behind_camera": share("behind_camera", "valid_xyz"),
            "outside_histogram": total("depth_outside_histogram"),
        },
        "psnr": {  # dB; null if the pixels are exact
            name: float(reduce(psnr)) if len(psnr) else None
            for name, reduce in (("min", np.min), ("median", np.median))
        },
        "aspect": sorted(set(columns["aspect"].round(3).tolist())),
        "strides": {str(stride): count for stride, count in sorted(Counter(columns["stride"].tolist()).items())},
        "bytes_per_clip": bytes_per_clip(store),
        "clips_per_sequence": dict(sorted(Counter(store.column("sequence").tolist()).items())),
        "failed": info.get("failed", {}),
        "skipped": info.get("skipped", {}),
        "noted": info.get("noted", {}),
    }


def bytes_per_clip(store: ClipStore) -> dict[str, float]:
    """Stored bytes, by array."""
    stored: Counter[str] = Counter()
    for file, size in sizes(f"{store.uri}/data").items():
        inside = file.partition(".zarr/")[2].split("/")
        stored[inside[0] if len(inside) > 1 else "metadata"] += size
    return {name: size / len(store) for name, size in sorted(stored.items())} | {"total": stored.total() / len(store)}


def summary_text(summary: dict[str, Any]) -> str:
    """The summary as text."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    def spread(values: list[float]) -> str:
        """A histogram over frames in at most 12 columns."""
        groups = np.array_split(np.array(values), min(12, len(values)))
        return " ".join(f"{100 * group.sum():.1f}" for group in groups) + " %"

    per_sequence = list(summary["clips_per_sequence"].values())
    depth, size = summary["depth"], summary["image_size"]
    unit = "m" if summary["is_metric"] else "(not metric)"
    lines = {
        "dataset": f"{summary['dataset']}, split {summary['split']}, digest {summary['digest']}",
        "clips": f"{summary['clips']} of {summary['frames_per_clip']} frames, {size} x {size}",
        "sequences": _sequences(per_sequence),
        "strides": ", ".join(f"{stride}: {count}" for stride, count in summary["strides"].items()),
        "queries": f"{summary['queries']}, of a clip {summary['samples_per_clip']} x {summary['queries_per_sample']}",
        "known": ", ".join(f"{name} {percent(value)}" for name, value in summary["valid"].items()),
        "visible": f"{percent(summary['visible_of_known'])} of those known",
        "flags": ", ".join(f"{name} {percent(value)}" for name, value in summary["flags"].items()),
        **{name: spread(values) + "  (first frames to last)" for name, values in summary["times"].items()},
        "t_tgt = t_cam": f"{percent(summary['target_is_camera'])}; = t_src too {percent(summary['all_times_equal'])}",
        "depth": ", ".join(f"{name} {value:.3g}" for name, value in (depth["percentiles"] or {}).items()) + f" {unit}",
        "behind camera": f"{percent(depth['behind_camera'])} of points, seen from t_cam",
        "PSNR": ", ".join(
            f"{name} {'exact' if value is None else f'{value:.1f} dB'}" for name, value in summary["psnr"].items()
        ),
        "kB per clip": ", ".join(f"{name} {value / 1000:.1f}" for name, value in summary["bytes_per_clip"].items()),
        **{name: _reasons(summary[name]) for name in ("failed", "skipped", "noted")},
    }
    return "\n".join(f"  {name:14} {text}" for name, text in lines.items())


def _reasons(listed: dict[str, str]) -> str:
    """How many sequences, and one of each kind of reason."""
    return f"{len(listed)}" + "".join(f"\n{'':17}{line}" for line in alike(listed))


def _sequences(clips: list[int]) -> str:
    """`clips`: how many each has."""
    fewest, most = min(clips), max(clips)
    each = f"{fewest} clip{'s'[: fewest != 1]}" if fewest == most else f"{fewest} to {most} clips"
    return f"{len(clips)}, each of {each}"
