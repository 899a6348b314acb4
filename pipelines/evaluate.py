"""`python -m pipelines evaluate clips --model M --data STORE --out OUT`: a model scored on held-out clips.

Three answer the same queries: the model, an untrained model of its config (seed 0), and a guess that needs no model:
every pixel lies at one constant depth on its ray, and neither it nor the camera moves.

The scores are defined at the top of `pipelines/evaluation/scores.py`.

| file         | holds                                                                                          |
|--------------|------------------------------------------------------------------------------------------------|
| metrics.json | the scores over all stores and per store, the model, the stores' digests                       |
| clip_N.png   | the first clips: where points should be and are, depth, their layout from above, depth against |
|              | depth                                                                                          |
"""

import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray.data
import torch
from PIL import Image
from tqdm import tqdm

from model import D4RT
from pipelines.cluster import connect
from pipelines.evaluation.error_sheet import error_sheet
from pipelines.evaluation.scores import ask, constant_depth, measure, require_fit, summarise, table
from pipelines.models import actor_options, load_model, model_digest, model_version, tracking_uri
from pipelines.store.reader import ClipStore, evenly, open_store
from pipelines.whole import require_new, result_folder

METRICS = "metrics.json"
METHODS = ("trained", "untrained", "guess")
PICTURES = 2  # clips drawn

Row = dict[str, Any]


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
        answers["guess"] = constant_depth(truth, clip.intrinsics, video.shape[1])
        errors, picture = io.BytesIO(), io.BytesIO()
        measured = {
            method: measure(truth, given, clip.world_from_cam, is_metric=clip.is_metric)
            for method, given in answers.items()
        }
        np.savez(
            errors,
            **{
                f"{method}.{name}": values.astype(np.float32)
                for method, parts in measured.items()
                for name, values in parts.items()
            },
        )
        if row["picture"]:
            Image.fromarray(error_sheet(self.models["trained"], clip)).save(picture, "png")
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
        require_fit(store, loaded.config)
    about = {"uri": model, "version": version, "digest": model_digest(loaded), "config": loaded.config.to_dict()}
    del loaded
    rows = [{"store": store.uri, "clip": i} for store in stores for i in evenly(len(store), clips)]
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


def _scores(rows: list[Row]) -> dict[str, Any]:
    """Method -> its scores."""
    errors = [dict(np.load(io.BytesIO(row["errors"]), allow_pickle=False)) for row in rows]

    def of(method: str) -> list[dict[str, np.ndarray]]:
        prefix = f"{method}."
        return [{name.removeprefix(prefix): clip[name] for name in clip if name.startswith(prefix)} for clip in errors]

    return {method: summarise(of(method)) for method in METHODS}
