"""What `ray job submit --working-dir .` takes along from a checkout in which README's commands were run."""

import logging
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parent.parent
MEGABYTE = 1 << 20

MADE = (  # by README's commands and make, in the folder they are called in
    ".venv/lib/python3.11/site-packages/torch/libtorch.so",
    "audit/room0000.png",
    "clips/rooms-inspect/sheet_000.png",
    "clips/rooms/data/room0000.zarr/video/c/0",
    "clips16/store.json",
    "demo-output/raw/train/tartanair/frame.png",
    "mlflow.env",
    "mlartifacts/1/model/weights.safetensors",
    "mlflow.db",
    "mlflow.db.lock",
    "mlruns/1/model/weights.safetensors",
    "model/__pycache__/d4rt.cpython-311.pyc",
    "my.mp4",
    "opend4rt.ckpt",
    "TARTANAIR/abandonedfactory/Easy/P000/depth_left/000000_left_depth.npy",
    "vit_b_k710_dl_from_giant.pth",
    "onnx/encoder.onnx.data",
    "raw/rooms/room0000/Easy/P000/depth_left/000000_left_depth.npy",
    "results/rooms/room0000/tracks.npz",
    "runs/tiny/step_0000100/model/weights.safetensors",
    "scores/held-out/metrics.json",
)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the tracked files, with a megabyte in each file that the commands make."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        (tmp_path / "d4rt" / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, tmp_path / "d4rt" / name)
    for name in MADE:
        (tmp_path / "d4rt" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d4rt" / name).write_bytes(bytes(MEGABYTE))
    return tmp_path / "d4rt"


def test_a_job_takes_the_source_along_and_nothing_that_was_made(checkout, tmp_path):
    sources = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()} - set(MADE)
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True, logger=logging.getLogger(__name__))
    with zipfile.ZipFile(package) as archive:
        taken = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}
    assert taken.keys() == sources
    assert sum(taken.values()) < 5 * MEGABYTE


def test_git_sees_nothing_of_what_was_made(checkout):
    subprocess.run(["git", "init", "--quiet"], cwd=checkout, check=True)
    seen = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", *MADE], cwd=checkout, capture_output=True, text=True
    )
    assert (seen.returncode, seen.stdout) == (0, "")
