"""`python -m pipelines evaluate clips --model M --data STORE --out OUT`: a model scored on held-out clips.

Three answer the same queries: the model, an untrained model of its config (seed 0), and a guess that needs no model:
every pixel lies at one constant depth on its ray, and neither it nor the camera moves.

Per clip, over all queries of all samples whose xyz is known; p is the answer, g the truth, both in the camera t_cam:
    s               median ||g|| / median ||p||: lengths are scale-free, so each clip has its scale, and nothing else
    error           e = ||s p - g||; a p that is not finite counts as infinitely wrong
    relative error  e / ||g||
    APD             share of queries with e <= d, mean over d in 0.1, 0.3, 0.5, 1.0 m (WorldTrack's thresholds); where
                    the dataset is not metric, d is in median ||g|| of the clip instead
    moving          queries on something that moves (flag `dynamic`) with t_tgt != t_src; s is still that of all
    depth AbsRel    mean |s z_p - z_g| / z_g over queries with t_src = t_tgt = t_cam
    visibility      share of right answers where visibility is known; the guess says always visible

Reported over the queries of all clips together: the median relative error, APD, and the last two.

| file         | holds                                                                                          |
|--------------|------------------------------------------------------------------------------------------------|
| metrics.json | the scores over all stores and per store, the model, the stores' digests                       |
| clip_N.png   | the first clips: where points should be and are, and their layout from above; depth against    |
|              | depth                                                                                          |
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray.data
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image
from tqdm import tqdm

from model import D4RT, Queries
from pipelines.clip_store import FLAG_BITS, VALID_BITS, ClipStore, open_store
from pipelines.cluster import connect
from pipelines.error_sheet import error_sheet
from pipelines.geometry import scaled_intrinsics, unproject
from pipelines.registered import actor_options, load_model, model_digest, model_version, tracking_uri
from pipelines.result_folder import require_new, result_folder

METRICS = "metrics.json"
METHODS = ("trained", "untrained", "guess")
THRESHOLDS = (0.1, 0.3, 0.5, 1.0)
PICTURES = 2  # clips drawn

Row = dict[str, Any]
Truth = dict[str, np.ndarray]


@dataclass(frozen=True)
class Answers:
    """To the Q queries of a clip."""

    xyz: Float32[np.ndarray, "Q 3"]
    visible: Bool[np.ndarray, "Q"]


@torch.inference_mode()
def ask(model: D4RT, video: UInt8[np.ndarray, "T S S 3"], aspect: float, truth: Truth) -> Answers:
    """What a model answers."""
    device = model.device
    times = (torch.from_numpy(truth[name].astype(np.int64))[None].to(device) for name in ("t_src", "t_tgt", "t_cam"))
    queries = Queries(torch.from_numpy(truth["uv_norm"])[None].to(device), *times)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        memory = model.encode(torch.from_numpy(video)[None].to(device), torch.tensor([aspect], device=device))
        prediction = model.decode(memory, queries)
    return Answers(prediction.xyz[0].float().cpu().numpy(), prediction.visible[0].cpu().numpy())


def constant_depth(truth: Truth, intrinsics_norm: Float[np.ndarray, "T 3 3"]) -> Answers:
    """The guess: depth 1 along the ray of the true camera t_src, the same point in every camera, always visible.

    The intrinsics are in units of the image's width and height.
    """
    uv_norm = truth["uv_norm"]
    xyz = unproject(uv_norm, np.ones(len(uv_norm), np.float32), intrinsics_norm[truth["t_src"]])
    return Answers(xyz.astype(np.float32), np.ones(len(uv_norm), bool))


def scale(truth: Truth, xyz: Float32[np.ndarray, "Q 3"]) -> float:
    """s of the definition; NaN if there is nothing to take it from."""
    known = truth["valid"] & VALID_BITS["xyz"] > 0
    asked = np.linalg.norm(truth["xyz"][known].astype(np.float64), axis=1)
    said = np.linalg.norm(xyz[known & np.isfinite(xyz).all(axis=1)].astype(np.float64), axis=1)
    middle = np.median(said) if said.size else 0.0
    return float(np.median(asked) / middle) if middle > 0 else float("nan")


def measure(truth: Truth, answers: Answers, *, is_metric: bool) -> dict[str, Float[np.ndarray, "n"]]:
    """The errors of one clip, one value per query that has it (see the top of this file).

    `relative` and `hits` (share of thresholds met) of the n queries with a known xyz, `moving` which of them are;
    `depth` and `visible` of those that ask for them.
    """
    known = truth["valid"] & VALID_BITS["xyz"] > 0
    s = scale(truth, answers.xyz)
    g, p = truth["xyz"].astype(np.float64), s * answers.xyz.astype(np.float64)
    norm = np.linalg.norm(g, axis=1)
    error = np.nan_to_num(np.linalg.norm(p - g, axis=1), nan=np.inf, posinf=np.inf)
    unit = 1.0 if is_metric or not known.any() else np.median(norm[known])
    moving = (truth["flags"] & FLAG_BITS["dynamic"] > 0) & (truth["t_tgt"] != truth["t_src"])
    own = known & (truth["t_src"] == truth["t_tgt"]) & (truth["t_tgt"] == truth["t_cam"])
    tell = truth["valid"] & VALID_BITS["visible"] > 0
    return {
        "relative": error[known] / norm[known],
        "hits": np.mean([error[known] <= threshold * unit for threshold in THRESHOLDS], axis=0),
        "moving": moving[known].astype(np.float64),
        "depth": np.abs(p[own, 2] - g[own, 2]) / g[own, 2],
        "visible": (answers.visible == truth["visible"])[tell].astype(np.float64),
    }


def summarise(clips: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The scores over the queries of all clips; None where no query asks. Infinite scores are None too."""

    def over(name: str, subset: str, reduce: Any) -> float | None:
        values = np.concatenate([clip[name] for clip in clips])
        if subset == "moving":
            values = values[np.concatenate([clip["moving"] for clip in clips]) > 0]
        score = reduce(values) if values.size else np.nan
        return float(score) if np.isfinite(score) else None

    subsets = ("all", "moving")
    return {
        "median_relative_error": {subset: over("relative", subset, np.median) for subset in subsets},
        "apd": {subset: over("hits", subset, np.mean) for subset in subsets},
        "depth_abs_rel": over("depth", "all", np.mean),
        "visibility_accuracy": over("visible", "all", np.mean),
        "queries": {
            "all": sum(clip["moving"].size for clip in clips),
            "moving": sum(int(c["moving"].sum()) for c in clips),
        },
        "not_finite": sum(int(np.isinf(clip["relative"]).sum()) for clip in clips),
    }


class Score:
    """The actor: {"store", "clip", "picture"} -> the "errors" of the three methods, and the "picture" if asked for."""

    def __init__(self, model: str, registry: str) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        trained = load_model(model, device, registry=registry)
        torch.manual_seed(0)
        self.models = {"trained": trained, "untrained": D4RT(trained.config).to(device).eval()}

    def __call__(self, row: Row) -> Row:
        try:
            clip = open_store(row["store"])[row["clip"]]
            video, truth = clip.video, clip.all_queries()
        except ValueError as error:  # a damaged store
            return {"store": row["store"], "errors": b"", "picture": b"", "clip": row["clip"], "reason": str(error)}
        answers = {name: ask(model, video, clip.aspect, truth) for name, model in self.models.items()}
        size = video.shape[1]
        to_norm = scaled_intrinsics(clip.intrinsics, width_ratio=1 / size, height_ratio=1 / size)
        answers["guess"] = constant_depth(truth, to_norm)
        errors, picture = io.BytesIO(), io.BytesIO()
        measured = {method: measure(truth, given, is_metric=clip.is_metric) for method, given in answers.items()}
        np.savez(
            errors,
            **{
                f"{method}.{name}": values.astype(np.float32)
                for method, parts in measured.items()
                for name, values in parts.items()
            },
        )
        if row["picture"]:
            scaled = {name: scale(truth, given.xyz) * given.xyz for name, given in answers.items()}
            Image.fromarray(error_sheet(clip, video, truth, scaled["trained"], scaled["guess"])).save(picture, "png")
        return {
            "store": row["store"],
            "clip": row["clip"],
            "errors": errors.getvalue(),
            "picture": picture.getvalue(),
            "reason": "",
        }


def evaluate(
    benchmark: Literal["clips"],
    /,
    *,
    model: str,
    data: list[str],
    out: str,
    clips: int | None = None,
) -> dict[str, Any]:
    """Score a model on held-out clips, beside an untrained one and a guess. Returns the content of metrics.json.

    Args:
        benchmark: clips: clip stores, by their own queries.
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/..., or a checkpoint folder.
        data: Clip stores, folders or s3:// URIs, of scenes the model was not trained on.
        out: Folder or s3:// URI to write, which must be new.
        clips: Clips to score per store, spread evenly over it; by default all.
    """
    if clips is not None and clips < 1:
        raise ValueError(f"--clips {clips} must be at least 1")
    if not data:
        raise ValueError("no clip store given: name at least one after --data")
    out = out.rstrip("/")
    require_new(out)
    version = model_version(model)
    loaded = load_model(version)
    stores = [ClipStore(uri) for uri in dict.fromkeys(data)]
    for store in stores:
        _require_fit(store, loaded)
    about = {"uri": model, "version": version, "digest": model_digest(loaded), "config": loaded.config.to_dict()}
    del loaded
    rows = [
        {"store": store.uri, "clip": int(i)}
        for store in stores
        for i in np.unique(np.linspace(0, len(store) - 1, min(clips or len(store), len(store))).round().astype(int))
    ]
    rows = [row | {"picture": number < PICTURES} for number, row in enumerate(rows)]
    connect()
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Score, fn_constructor_kwargs={"model": version, "registry": tracking_uri()}, **actor_options(len(rows))
    )
    scored = []
    for result in tqdm(results.iter_rows(), total=len(rows), desc="evaluate clips", unit="clip"):
        if result["reason"]:
            raise ValueError(result["reason"])
        scored.append(result)
    places = [(row["store"], row["clip"]) for row in rows]
    scored.sort(key=lambda result: places.index((result["store"], result["clip"])))
    metrics = {
        "schema": 1,
        "benchmark": benchmark,
        "model": about,
        "data": {store.uri: store.info["digest"] for store in stores},
        "clips": len(rows),
        "scores": _scores(scored),
        "stores": {store.uri: _scores([row for row in scored if row["store"] == store.uri]) for store in stores},
    }
    with result_folder(out, last=METRICS) as folder:
        for number, result in enumerate(scored[:PICTURES]):
            Path(folder, f"clip_{number}.png").write_bytes(result["picture"])
        Path(folder, METRICS).write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    print(f"{table(metrics['scores'])}\n{out}: {METRICS} and {min(PICTURES, len(rows))} pictures")
    return metrics


def _require_fit(store: ClipStore, model: D4RT) -> None:
    settings, config = store.settings, model.config
    if not len(store):
        raise ValueError(f"store {store.uri} has no clips")
    if settings.image_size != config.image_size or settings.frames > config.clip_frames:
        raise ValueError(
            f"store {store.uri} has clips of {settings.frames} frames, {settings.image_size} x {settings.image_size}; "
            f"this model takes up to {config.clip_frames}, {config.image_size} x {config.image_size}: convert with "
            f"--frames {config.clip_frames} --image-size {config.image_size}"
        )


def _scores(rows: list[Row]) -> dict[str, Any]:
    """Method -> its scores."""
    errors = [dict(np.load(io.BytesIO(row["errors"]), allow_pickle=False)) for row in rows]
    names = ("relative", "hits", "moving", "depth", "visible")
    return {
        method: summarise([{name: clip[f"{method}.{name}"] for name in names} for clip in errors]) for method in METHODS
    }


def table(scores: dict[str, Any]) -> str:
    """The scores as text, a row per method."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    rows = [
        ("", "relative error %", "", "APD %", "", "depth", "visible"),
        ("", *("all", "moving") * 2, "AbsRel %", "right %"),
    ]
    for method, score in scores.items():
        pairs = [score[name][subset] for name in ("median_relative_error", "apd") for subset in ("all", "moving")]
        rows.append((method, *map(percent, [*pairs, score["depth_abs_rel"], score["visibility_accuracy"]])))
    text = "\n".join(f"  {row[0]:10}" + "".join(f"{cell:>17}" for cell in row[1:]) for row in rows)
    queries = scores["trained"]["queries"]
    return f"{text}\n  {queries['all']} queries, {queries['moving']} of them on something that moved"
