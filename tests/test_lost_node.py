"""A cluster that loses machines in the middle of a job, which ends as if nothing had been: Ray nodes on this one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model import D4RT, ModelConfig, checkpoints
from pipelines.convert import convert
from pipelines.pictures.video_file import write_video
from pipelines.results.reading import read_result
from pipelines.store.reader import ClipStore
from pipelines.synthesize.job import write_sequence

CLIPS = {"split": "all", "frames": 4, "image_size": 64, "queries": 64}
SEQUENCES, VIDEOS, FRAMES = 40, 3, 24

# Each job is disturbed as soon as there is a file of the pattern that follows it: every node but the first one is
# killed, and others come.
PROGRAM = """
import os, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 200 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(**node)
codes = []
for words, place, pattern in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    job = subprocess.Popen([sys.executable, "-m", *words.split()], env={**os.environ, "RAY_ADDRESS": cluster.address})
    end = time.monotonic() + 240
    while not list(Path(place).glob(pattern)) and job.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert job.poll() is None, "it ended undisturbed"
    for lost in list(cluster.worker_nodes):
        cluster.remove_node(lost, allow_graceful=False)
    for _ in range(2):
        cluster.add_node(**node)
    codes.append(job.wait(300))
cluster.shutdown()
print("exit codes", *codes)
"""


@pytest.mark.long
def test_convert_and_infer_survive_lost_nodes(ray_cluster, tmp_path):
    raw, store, out = tmp_path / "raw", tmp_path / "store", tmp_path / "out"
    for index in range(SEQUENCES):
        write_sequence({"dataset": "tartanair", "root": str(raw), "index": index}, frames=4, size="small", seed=0)
    convert("tartanair", raw=str(raw), store=f"{tmp_path}/undisturbed", **CLIPS)
    checkpoints.save(D4RT(ModelConfig.preset("tiny")), tmp_path / "model")
    videos = [tmp_path / f"{number}.mp4" for number in range(VIDEOS)]
    for video in videos:
        write_video(video, np.random.default_rng(0).integers(0, 256, (FRAMES, 48, 64, 3), dtype=np.uint8), 10.0)

    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in CLIPS.items())
    jobs = [
        (f"pipelines convert tartanair --raw {raw} --store {store} {options}", store, "groups/*/*.json"),
        (
            f"pipelines infer --model {tmp_path}/model --grid 4 --out {out} --video {' '.join(map(str, videos))}",
            out,
            ".*.windows/00002.geometry.npz",
        ),
    ]
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(word) for job in jobs for word in job)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=560,
    ).stdout
    assert "exit codes 0 0" in shown, shown
    assert ClipStore(str(store)).info["digest"] == ClipStore(f"{tmp_path}/undisturbed").info["digest"]
    assert sorted(os.listdir(out)) == [*map(str, range(VIDEOS)), "index.html"]
    for number in range(VIDEOS):
        assert len(read_result(f"{out}/{number}").arrays("depth")["depth"]) == FRAMES
