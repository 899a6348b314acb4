"""Real raw frames to a registered model that tracks points in a real video."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.convert import convert
from pipelines.infer import infer
from train.config import PRESETS
from train.loop import run

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
TARTANAIR, VIDEO = DATA / "tartanair_v1", DATA / "video" / "camel.mp4"
STEPS = 4


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.skipif(
    not (TARTANAIR.is_dir() and VIDEO.is_file()), reason=f"the real sequence and video are not in {DATA}"
)
def test_real_frames_to_a_model_that_tracks_a_real_video(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    store = str(tmp_path / "clips")
    convert("tartanair", raw=str(TARTANAIR), store=store, frames=4, image_size=64, samples=2, queries=256)

    tiny = PRESETS["tiny"][1]
    config = replace(
        tiny,
        data=replace(tiny.data, mixture={store: 1.0}, clips_per_worker=2),
        optim=replace(tiny.optim, warmup_steps=1),
        steps=STEPS,
        log_every=2,
        checkpoint_every=STEPS,
        out=str(tmp_path / "runs"),
        name="real",
    )
    assert run(config) == "models:/d4rt/1"

    out = tmp_path / "results"
    infer(
        model="models:/d4rt@champion",
        video=[str(VIDEO)],
        out=str(out),
        tasks="tracks,depth,cameras",
        num_frames=4,
        step=5,
        grid=6,
    )
    result = json.loads((out / "camel" / "result.json").read_text())
    assert result["video"]["frame_numbers"] == [0, 5, 10, 15]
    assert (result["video"]["width"], result["video"]["height"]) == (960, 540)
    tracks = np.load(out / "camel" / "tracks.npz")
    assert tracks["xyz"].shape == (36, 4, 3) and np.isfinite(tracks["xyz"]).all()
    depth = np.load(out / "camel" / "depth.npz")["depth"]
    assert depth.shape == (4, 36, 64) and np.isfinite(depth).any()
    assert np.load(out / "camel" / "cameras.npz")["world_from_cam"].shape == (4, 4, 4)
    for picture in ("tracks.mp4", "depth.mp4", "cameras.png"):
        assert (out / "camel" / picture).stat().st_size > 1000
