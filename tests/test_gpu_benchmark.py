"""The GPU benchmark: a whole run, on a CPU; and on a GPU what only that can show."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_task import waits_per_step
from model import ModelConfig

ROOT = Path(__file__).parent.parent
TINY = ModelConfig.preset("tiny")
FORWARD = TINY.flops_encode(4) + TINY.flops_decode(256, 4)
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def run(device: str, folder: Path) -> tuple[dict, str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", device, "--preset", "tiny"]
    done = subprocess.run([*command, "--out", str(folder / "gpu.json")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "gpu.json").read_text()), done.stdout


def numbers(figures: object) -> list[float]:
    if isinstance(figures, dict | list):
        return [x for each in (figures.values() if isinstance(figures, dict) else figures) for x in numbers(each)]
    return [figures] if isinstance(figures, float) else []


def check(report: dict) -> None:
    """What holds on any device."""
    assert report["failed"] == {}
    assert all(map(math.isfinite, numbers(report)))
    tiny = report["presets"]["tiny"]
    assert list(tiny["answers"]) == ["encode", "decode 2,048", "decode 65,536", "dense 64x64"]
    assert tiny["left_out"] == [] and "flash" in tiny["attention"]
    for row in (*tiny["answers"].values(), *tiny["train"].values(), *tiny["attention"].values()):
        assert 0 < row["of_matmul"] < 1
        assert row["of_matmul"] == pytest.approx(row["tflops"] / report["matmul_tflops"])
    for name, row in tiny["train"].items():
        clips = 8 if "8 clips" in name else 1
        assert row["tflops"] * row["seconds"] == pytest.approx(3 * clips * FORWARD / 1e12)
        assert row["peak_gb"] > 0 and row["attention"]
    reckoned = {name: row["reckoned_gb"] for name, row in tiny["train"].items()}
    assert reckoned["train, 8 clips"] > reckoned["train, 8 clips, recompute"] > reckoned["train, 1 clip, recompute"]
    losses = report["same_steps"]["losses"]
    assert len(losses) == 20 and losses[-1] < losses[0] / 2  # so it did learn something


@pytest.mark.slow
def test_on_a_cpu(tmp_path):
    report, shown = run("cpu", tmp_path)
    check(report)
    tiny = report["presets"]["tiny"]
    assert set(numbers(tiny["outputs"])) == set(numbers(report["same_steps"]["difference"])) == {0.0}  # CPU and CPU
    assert tiny["checkpoint"]["difference"] == 0
    assert "tiny, decode 65,536" in shown and "flash_attention_for_cpu_backward" in shown


@pytest.mark.gpu
@ON_GPU
def test_on_a_gpu(tmp_path):
    report, _ = run("cuda", tmp_path)
    check(report)
    tiny = report["presets"]["tiny"]
    for row in tiny["train"].values():
        assert row["waits_per_step"] == 0 and not any("math" in kernel for kernel in row["attention"])
    assert max(tiny["outputs"]["float32"].values()) < 1e-3 and tiny["outputs"]["as answered"]["xyz"] < 0.1


@pytest.mark.gpu
@ON_GPU
def test_a_wait_is_counted():
    number = torch.ones(1, device="cuda")
    assert waits_per_step(number.item) == 1


def test_a_case_that_fails_is_told_and_costs_no_other(capsys):
    cases = gpu.Cases()
    assert cases.run("encode", lambda: 1 / 0) is None and cases.run("decode", abs, -2) == 2
    assert cases.failed == {"encode": "ZeroDivisionError: division by zero"}
    assert "encode" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit) as error:
        gpu.main([])
    assert error.value.code == 2 and "--device cpu --preset tiny" in capsys.readouterr().err
