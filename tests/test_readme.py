"""README's commands, run as they stand and in their order, in a folder that has nothing yet.

They join the cluster of the tests: that a command starts one of its own, other tests see, and eleven take minutes.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shared_data import SHARED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TARTANAIR, VIDEO = SHARED / "tartanair_v1", SHARED / "video" / "camel.mp4"

BY_HAND, ON_REAL_DATA = re.findall(r"^```bash run\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(script: str, folder: Path, variables: dict[str, str]) -> str:
    """The script in bash, which ends at the first command that fails; what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "TMPDIR")}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= variables
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.slow
def test_by_hand(folder, joins_cluster):
    """From synthetic rooms to scores on others; nothing printed is a traceback or a warning of Ray's."""
    said = run(BY_HAND, folder, joins_cluster)
    assert "Traceback" not in said and "constructor arguments in the object store" not in said
    assert "was trained on" not in said  # the rooms it is judged by are others

    metrics = json.loads((folder / "scores/held-out/metrics.json").read_text())
    errors = {method: scores["median_relative_error"]["all"] for method, scores in metrics["scores"].items()}
    assert errors["trained"] < errors["untrained"]
    results = folder / "results/held-out"
    assert len(list(results.glob("*/**/tracks.npz"))) == 2
    assert (folder / "clips/rooms-inspect/summary.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not (TARTANAIR.is_dir() and VIDEO.is_file()), reason=f"the real sequence and video are not in {SHARED}"
)
def test_on_real_data(folder, joins_cluster):
    """Real frames to a model that tracks points in a real video."""
    script = ON_REAL_DATA.replace("TARTANAIR", str(TARTANAIR)).replace("my.mp4", str(VIDEO))
    run(script, folder, joins_cluster)
    result = folder / "results/my" / VIDEO.stem
    assert (folder / "results/my/index.html").exists() and (result / "page.html").exists()
    about = json.loads((result / "result.json").read_text())
    assert about["video"]["frame_numbers"] == [0, 4, 8, 12]
    assert (about["video"]["width"], about["video"]["height"]) == (960, 540)
    tracks = np.load(result / "tracks.npz")
    assert tracks["xyz"].shape == (256, 4, 3) and np.isfinite(tracks["xyz"]).all()
    depth = np.load(result / "depth.npz")["depth"]
    assert depth.shape == (4, 36, 64) and np.isfinite(depth).any()
    assert np.load(result / "cameras.npz")["world_from_cam"].shape == (4, 4, 4)
    for picture in ("tracks.mp4", "depth.mp4", "cameras.png", "points.ply"):
        assert (result / picture).stat().st_size > 1000
