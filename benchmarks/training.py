"""Do two workers on two cores do twice the work of one on one core, and does either wait for data?

    python -m benchmarks.training [--preset small] [--steps 60] [--rounds 2] [--out FILE]

Every case is a real run of `python -m train`, with a Ray cluster, readers and checkpoints of its own, whose process may
use so many cores. Besides: two runs of one worker at the same time, which share nothing but the machine, so that what
they lose no distributed training could win. Wall time, so the machine must be quiet; clips/s and data wait are medians
over the points of the curves after the first, which has the start of the readers in it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import keep, parser_of
from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS, open_sequence
from pipelines.raw.folder import RawFolder
from pipelines.store.index import finish
from pipelines.store.layout import StoreSettings
from pipelines.store.marks import Origin
from pipelines.store.writer import write_group
from pipelines.synthesize.job import write_sequence
from pipelines.truth.clips import build_clip, spans
from train.config import PRESETS, DataConfig, TrainConfig

SCENES = 8
EFFICIENCY, DATA_WAIT = 0.9, 0.05  # at least; at most
CASES = {"one": [(1, {0})], "two": [(2, {0, 1})], "apart": [(1, {0}), (1, {1})]}
"""Runs at the same time, each with its workers and cores."""


def write_store(path: Path, config: TrainConfig) -> str:
    """Clips as the recipe takes them, JPEG, of synthetic rooms."""
    frames = config.model.clip_frames
    settings = StoreSettings(
        dataset="tartanair",
        split="all",
        frames=frames,
        image_size=config.model.image_size,
        strides=(1, 1),
        hop=1,
        samples=4,
        queries=2 * config.data.queries,
        video="jpeg",
        seed=0,
    )
    catalog, groups = Catalog.load("tartanair"), []
    for index in range(SCENES):
        raw = path / f"raw{index}"
        write_sequence(
            {"dataset": "tartanair", "root": str(raw), "index": index}, frames=2 * frames, size="small", seed=0
        )
        (name,) = DATASETS["tartanair"].find(RawFolder(str(raw)))
        sequence = open_sequence("tartanair", str(raw), name)
        clips = [build_clip(sequence, span, catalog, settings) for span in spans(sequence, settings)]
        origin = Origin(sequence=name, first=index, frames=(), labels={}, files={})
        groups.append(write_group(str(path / "store"), origin, settings, clips))
    finish(str(path / "store"), settings, groups, {})
    return str(path / "store")


def train(preset: str, store: str, workers: int, steps: int, out: str) -> None:
    """One run, in a process of its own; prints its figures."""
    import mlflow

    from train.loop import run

    config = PRESETS[preset][1]
    run(
        replace(
            config,
            data=DataConfig(
                mixture={store: 1.0}, queries=config.data.queries, clips_per_worker=config.data.clips_per_worker
            ),
            optim=replace(config.optim, warmup_steps=1),
            steps=steps,
            workers=workers,
            log_every=steps // 6,
            checkpoint_every=steps // 6 * 3,
            out=out,
            name="run",
        )
    )
    (found,) = mlflow.search_runs(experiment_names=["d4rt"], output_format="list")

    def median(metric: str) -> float:
        history = mlflow.MlflowClient().get_metric_history(found.info.run_id, metric)
        return statistics.median(point.value for point in sorted(history, key=lambda point: point.step)[1:])

    print(json.dumps({"clips_per_second": median("clips_per_second"), "data_wait": median("data_wait_share")}))


def measure(case: str, preset: str, store: str, steps: int) -> dict[str, float]:
    """Clips per second of all runs of a case together, and the largest data wait."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for number, (workers, cores) in enumerate(CASES[case]):
            out = Path(folder, str(number))
            out.mkdir()
            environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{out}/mlflow.db"}
            arguments = [preset, store, str(workers), str(steps), str(out)]
            runs.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.training", "--run", *arguments],
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                    preexec_fn=lambda cores=cores: os.sched_setaffinity(0, cores),
                )
            )
        shown = [process.communicate()[0] for process in runs]
        if any(process.returncode for process in runs):
            raise SystemExit("a run failed, see above")
        found = [json.loads(text.splitlines()[-1]) for text in shown]
    return {
        "clips_per_second": sum(run["clips_per_second"] for run in found),
        "data_wait": max(run["data_wait"] for run in found),
    }


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--steps", type=int, default=60, help="of each run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of all cases (default: %(default)s)")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)  # what the processes of the cases are told
    arguments = parser.parse_args(argv)
    if arguments.run:
        preset, store, workers, steps, out = arguments.run
        return train(preset, store, int(workers), int(steps), out)

    rounds: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder), PRESETS[arguments.preset][1])
        for _ in range(arguments.rounds):
            for case, measured in rounds.items():
                measured.append(measure(case, arguments.preset, store, arguments.steps))
                print(f"{case:6} {measured[-1]['clips_per_second']:6.2f} clips/s", flush=True)
    figures = {
        case: {name: statistics.median(run[name] for run in measured) for name in measured[0]}
        for case, measured in rounds.items()
    }
    one = figures["one"]["clips_per_second"]
    print(f"\n{'':24}{'clips/s':>8}{'of twice one':>14}{'data wait':>11}")
    labels = {"one": "one worker, one core", "two": "two workers, two cores", "apart": "two runs of one"}
    for case, label in labels.items():
        row = figures[case]
        row["efficiency"] = row["clips_per_second"] / one / sum(workers for workers, _ in CASES[case])
        print(f"{label:24}{row['clips_per_second']:8.2f}{row['efficiency']:14.2f}{row['data_wait']:11.1%}")
    print(f"targets: at least {EFFICIENCY} of twice one; data wait below {DATA_WAIT:.0%}")
    keep({"preset": arguments.preset, "rounds": rounds, **figures}, arguments.out)


if __name__ == "__main__":
    main()
