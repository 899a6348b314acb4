"""A job that is killed goes on behind its last window, and gives what it would have given undisturbed."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import torch

from model import D4RT, ModelConfig, checkpoints
from model.recipes import plan_windows
from pipelines.infer import infer
from pipelines.models import load_model
from pipelines.pictures.video_file import write_video
from pipelines.results.asked import Asked
from pipelines.results.reconstruct import new_frames, reconstruct
from pipelines.results.selection import Selection
from pipelines.results.sources import Source, read_video

FRAMES, COUNT = 14, 6  # windows of 4 frames, 2 in common
MARK = 0.5


def test_each_frame_is_read_once_for_all_windows():
    plan = plan_windows(FRAMES, 4)
    assert len(plan) == COUNT
    parts = new_frames(plan, range(COUNT))
    assert [t for part in parts for t in part] == list(range(FRAMES))
    for number, window in enumerate(plan.windows):
        known = {t for part in parts[: number + 1] for t in part}
        assert set(window) <= known
    later = new_frames(plan, range(3, COUNT))
    assert [t for part in later for t in part] == list(range(6, FRAMES)) and set(plan.windows[3]) == set(later[0])


def test_a_killed_job_goes_on_behind_its_last_window(joins_cluster, tmp_path):
    torch.manual_seed(1)
    checkpoint = str(checkpoints.save(D4RT(ModelConfig.preset("tiny")).eval(), tmp_path / "checkpoint"))
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, 36, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "Übung 1.mp4", noise, 10.0)
    out, clip = tmp_path / "out", str(tmp_path / "Übung 1.mp4")

    command = [sys.executable, "-m", "pipelines", "infer", "--model", checkpoint, "--video", clip, "--out", str(out)]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen([*command, "--grid", "4"], env=os.environ | joins_cluster, stdout=log, stderr=log)
        end = time.monotonic() + 240
        try:
            while len(kept := list(out.glob(".*.windows/0000[0-2].geometry.npz"))) < 3:
                assert job.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.01)
        finally:
            job.kill()
            job.wait()
    assert not (out / "Übung 1").exists()

    # What was kept gets a mark. If it is in the result, these windows were not asked again.
    folder = kept[0].parent
    for number in range(3):
        file = folder / f"{number:05d}.depth.npz"
        with np.load(file) as arrays:
            marked = dict(arrays) | {"confidence": np.full_like(arrays["confidence"], MARK)}
        np.savez(file, **marked)
    infer(model=checkpoint, video=[clip], out=str(out), grid=4)

    assert not list(out.glob(".*"))  # the windows are swept
    video = read_video(Source(clip), Selection(), 64)
    expected, report = reconstruct(load_model(checkpoint), video, Asked(grid=4))
    owner = plan_windows(FRAMES, 4).owner.numpy()
    expected["depth"]["confidence"][owner < 3] = MARK
    for task, arrays in expected.items():
        with np.load(out / "Übung 1" / f"{task}.npz") as found:
            for key, array in arrays.items():
                np.testing.assert_allclose(found[key], array, atol=1e-4, err_msg=f"{task} {key}")
    document = json.loads((out / "Übung 1" / "result.json").read_text())
    windows = [[window["first"] for window in windows] for windows in (document["windows"], report["windows"])]
    assert windows[0] == windows[1] == [window.start for window in plan_windows(FRAMES, 4).windows]
    np.testing.assert_allclose(document["video"]["seconds"], np.arange(FRAMES) / 10)
