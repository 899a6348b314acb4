"""`make demo`: the whole way on this machine, from raw frames to a registered model that tracks points.

Every step is a public command; here they share one process, so that Ray starts once. Everything lands in demo-output/.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

from model.command_line import exit_code, loading
from pipelines.catalog import load_mixture
from pipelines.datasets import DatasetKey
from train.config import PRESETS, DataConfig
from train.errors import RunFailed

OUT = Path("demo-output")
# Rooms to learn from, about as many sequences of each dataset as its weight in the mixture, and unseen ones to be
# judged by. Virtual KITTI 2 and Dynamic Replica film each with two cameras.
SCENES = {
    "train": {
        "point_odyssey": 75,
        "dynamic_replica": 45,
        "kubric": 60,
        "tartanair": 120,
        "virtual_kitti2": 45,
        "scannet": 100,
        "blended_mvs": 135,
        "co3d": 100,
        "mvs_synth": 90,
    },
    "val": dict.fromkeys(get_args(DatasetKey), 4),
}
MODEL = "models:/d4rt@champion"


def step(title: str, *commands: str) -> None:
    """Say what comes next, and how to do it by hand."""
    print(f"\n=== {time.perf_counter() - STARTED:4.0f} s  {title}")
    for command in commands:
        print(f"    $ {command}")


def raw(split: str, dataset: str) -> str:
    return f"{OUT}/raw/{split}/{dataset}"


def store(split: str, dataset: str) -> str:
    return f"{OUT}/clips/{split}/{dataset}"


def main() -> None:
    if OUT.exists():
        raise ValueError(f"{OUT} is there already, and may hold results of yours: move it, or remove it (rm -r {OUT})")
    loading("PyTorch", "MLflow", "Ray")  # which are not needed to print help
    from pipelines.convert import convert
    from pipelines.evaluate import evaluate
    from pipelines.infer import infer
    from pipelines.inspect import inspect
    from pipelines.synthesize.job import write_scenes
    from train.loop import run

    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{OUT.absolute()}/mlflow.db")
    registry = f"MLFLOW_TRACKING_URI={os.environ['MLFLOW_TRACKING_URI']}"

    step(
        "small raw datasets in nine official layouts, different rooms for training and for judging",
        f"python -m pipelines synthesize tartanair --out {raw('train', 'tartanair')} --scenes 120 --frames 4 ...",
    )
    for seed, (split, scenes) in enumerate(SCENES.items()):
        wanted = {dataset: (raw(split, dataset), count) for dataset, count in scenes.items()}
        written = write_scenes(wanted, frames=4, size="small", seed=seed)
        print(f"{OUT}/raw/{split}: {sum(scenes.values())} scenes, {sum(written.values()) / 1e6:.0f} MB")

    step(
        "raw datasets to clip stores; every sequence is audited on the way",
        f"python -m pipelines convert tartanair --raw {raw('train', 'tartanair')} "
        f"--store {store('train', 'tartanair')} --split all --frames 4 --image-size 64 --queries 512 ...",
        f"python -m pipelines inspect {store('train', 'virtual_kitti2')}",
    )
    for split, scenes in SCENES.items():
        for dataset in scenes:
            convert(
                dataset,
                raw=raw(split, dataset),
                store=store(split, dataset),
                split="all",
                frames=4,
                image_size=64,
                strides=(1, 1),
                queries=512,
            )
    inspect(store("train", "virtual_kitti2"), out=f"{OUT}/inspect")

    mixture = {store("train", dataset): weight for dataset, weight in load_mixture("nine").items()}
    preset = PRESETS["tiny"][1]
    step(
        f"training `tiny` for {preset.steps} steps on {preset.workers} workers, then into the registry",
        f"{registry} python -m train tiny --mixture nine --stores {OUT}/clips/train --out {OUT}/runs --name demo",
    )
    data = replace(preset.data, mixture=mixture)
    run(replace(preset, data=DataConfig(**vars(data)), out=f"{OUT}/runs", name="demo"))
    draw_curve()

    held_out = [store("val", dataset) for dataset in SCENES["val"]]
    step(
        "the registered model on rooms it has not seen, against the exact truth",
        f"{registry} python -m pipelines evaluate clips --model {MODEL} --data {' '.join(held_out)} "
        f"--out {OUT}/evaluation",
    )
    evaluate("clips", model=MODEL, data=held_out, out=f"{OUT}/evaluation")

    step(
        "a held-out video to tracks, depth and cameras",
        f"{registry} python -m pipelines infer --model {MODEL} --dataset tartanair --video {raw('val', 'tartanair')} "
        f"--out {OUT}/results",
    )
    infer(model=MODEL, video=[raw("val", "tartanair")], dataset="tartanair", out=f"{OUT}/results")

    print(f"\nDone in {time.perf_counter() - STARTED:.0f} s. Look at:")
    for picture in ("inspect", "loss.png", "evaluation", "results"):
        print(f"    {OUT}/{picture}")
    print("The model, asked about a video of yours, and the curves of its training:")
    print(f"    {registry} python -m pipelines infer --model {MODEL} --video VIDEO --out {OUT}/mine")
    print(f"    {registry} mlflow ui")


def draw_curve() -> None:
    """The run's loss over its steps, as MLflow has it, to loss.png."""
    import mlflow  # after `train`, which sets what it reads when imported
    from matplotlib import pyplot

    (training,) = mlflow.search_runs(experiment_names=["d4rt"], output_format="list")
    client = mlflow.MlflowClient()
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, label in (("loss", "all terms"), ("loss/l3d", "position")):
        points = sorted((point.step, point.value) for point in client.get_metric_history(training.info.run_id, name))
        axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="step", ylabel="training loss", yscale="log", title="tiny, two workers")
    axes.legend()
    figure.savefig(OUT / "loss.png", dpi=110)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m demo", description=__doc__).parse_args()
    STARTED = time.perf_counter()
    sys.exit(exit_code(main, RunFailed))
