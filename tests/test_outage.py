"""S3 is away for a while during training: a run that may fail a few times waits, and ends as if nothing had been."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from plane_store import write_plane_store
from proxy import Proxy
from upath import UPath

from pipelines.models import load_model
from pipelines.store.reader import ClipStore
from train import run_folder
from train.errors import NotShared

STEPS = 60
WORDS = (
    "tiny --model.encoder-layers 2 --model.decoder-layers 1 --data.queries 48 --data.clips-per-worker 2 --workers 1 "
    f"--optim.warmup-steps 5 --steps {STEPS} --checkpoint-every 10 --log-every 1 --max-failures 2 --name cut"
)


def test_a_place_that_is_away_is_waited_for_and_one_that_stays_away_is_not(s3_uri, monkeypatch):
    monkeypatch.setattr(run_folder, "ASK_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(run_folder, "OUTAGE_SECONDS", 1.0)
    answers, said = [ValueError("away"), ValueError("away"), b"there"], []

    def ask(_: str) -> bytes:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, ValueError):
            raise answer
        return answer

    monkeypatch.setattr(run_folder, "read_file", ask)
    run_folder.wait_for(["run.json", "store.json"], said.append)
    assert len(said) == 2
    answers[:] = [ValueError("away for good")]
    with pytest.raises(ValueError, match="away for good"):
        run_folder.wait_for(["run.json"], said.append)


def test_a_run_on_a_disk_that_this_node_does_not_share_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "ASK_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(run_folder, "UNSEEN_SECONDS", 0.3)
    (tmp_path / "there.json").write_bytes(b"{}")
    said = []
    with pytest.raises(NotShared, match=r"run\.json is not there on node .*disk that all nodes share"):
        run_folder.wait_for([f"{tmp_path}/there.json", f"{tmp_path}/run.json"], said.append)
    assert "run.json is not there" in said[0]


@pytest.mark.long
def test_a_short_outage_of_s3_is_waited_out(s3_uri, tmp_path):
    """Clips and checkpoints lie there. Every connection breaks for twenty seconds, after the first checkpoint."""
    write_plane_store(f"{s3_uri}/planes", clips=8, queries=64)
    folder = UPath(s3_uri, use_listings_cache=False) / "runs/cut"
    with Proxy(int(re.search(r":(\d+)$", os.environ["AWS_ENDPOINT_URL"])[1])) as proxy:
        places = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        }
        command = [*WORDS.split(), f"--data.mixture.{s3_uri}/planes", "1", "--out", f"{s3_uri}/runs"]
        process = subprocess.Popen(
            [sys.executable, "-m", "train", *command],
            cwd=tmp_path,
            env={**os.environ, **places},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            end = time.monotonic() + 300
            while not list(folder.glob("step_*/position.json")):
                assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
                time.sleep(0.2)
            proxy.cut()
            time.sleep(20)
            proxy.mend()
            said, _ = process.communicate(timeout=400)
        finally:
            process.kill()
    assert process.returncode == 0, said
    model = load_model(f"{s3_uri}/runs/cut/step_{STEPS:07d}")
    assert model.trained_on == {ClipStore(f"{s3_uri}/planes").info["digest"]}
