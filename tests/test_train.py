"""Training for real: two CPU workers on Ray, MLflow, all that can end a run on its way, the model registered."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import ray
import torch
from plane_store import cut_chunks, write_plane_store
from ray.train import Checkpoint, Result
from ray.train.torch import TorchTrainer
from upath import UPath

from benchmarks.servers import MlflowServer
from model import ModelConfig, Queries, checkpoints
from pipelines.models import load_model
from pipelines.store.reader import ClipStore
from train.__main__ import main
from train.config import PRESETS, LossConfig, OptimConfig, TrainConfig, parse
from train.errors import OutOfMemory, RunFailed
from train.failures import Failures
from train.progress import printed_progress
from train.start import pinned, read_start

STEPS = 50
WORDS = (
    "tiny --model.encoder-layers 2 --model.decoder-layers 2 --data.queries 48 --data.clips-per-worker 2 "
    "--loss.confidence-warmup-steps 5 --optim.lr 2e-3 --optim.final-lr 1e-4 --optim.warmup-steps 5 --dropout 0.05 "
    "--optim.ema 0.9 --accumulate 2 --data.augment "
    f"--steps {STEPS} --checkpoint-every 10 --log-every 1 --keep-checkpoints 3"
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a store, and an MLflow database of its own."""
    folder = tmp_path_factory.mktemp("train")
    write_plane_store(folder / "planes", clips=24, queries=64, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # or a run ends two seconds late
        yield folder


def words(folder: Path, name: str) -> list[str]:
    """A run on the command line."""
    return [
        *WORDS.split(),
        *("--data.mixture", f"{folder}/planes", "1", "--out", f"{folder}/runs"),
        *("--name", name, "--register-as", f"d4rt-{name}"),
    ]


def config(folder: Path, name: str, **changes) -> TrainConfig:
    return replace(parse(words(folder, name))[0], **changes)


@pytest.fixture(scope="module")
def trained(workplace, ray_cluster) -> TrainConfig:
    from train.loop import run

    done = config(workplace, "straight")
    assert run(done) == "models:/d4rt-straight/1"
    return done


def mlflow_run(name: str) -> mlflow.entities.Run:
    (run,) = mlflow.search_runs(experiment_names=["d4rt"], filter_string=f"run_name = '{name}'", output_format="list")
    return run


def curve(name: str, metric: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient().get_metric_history(mlflow_run(name).info.run_id, metric)
    return [(point.step, point.value) for point in history]


def weights(run: Path | str, kind: str, checkpoint: str = f"step_{STEPS:07d}") -> dict[str, torch.Tensor]:
    return load_model(f"{run}/{checkpoint}/{kind}").state_dict()


@pytest.mark.slow
def test_loss_falls(trained):
    steps, losses = zip(*curve("straight", "loss"), strict=True)
    assert steps == tuple(range(1, STEPS + 1))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


@pytest.mark.slow
def test_everything_a_run_depends_on_is_recorded(trained, workplace):
    run = mlflow_run("straight")
    store = ClipStore(f"{workplace}/planes")
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.002"
    assert run.data.tags["store_digest.0"] == store.info["digest"]
    recorded = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/config.json")
    assert recorded == json.loads(json.dumps(trained.to_dict()))
    assert mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/stores.json")[store.uri]["num_clips"] == 24
    assert re.fullmatch("[0-9a-f]{40}|unknown", run.data.tags["git_commit"])
    assert {"loss/l3d", "masked/uv_tgt/planes", "confidence", "z_ratio", "grad_norm", "data_wait_share"} <= set(
        run.data.metrics
    )


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def at_checkpoint(run: Path, step: int, action: Callable[[], object]) -> Iterator[None]:
    """While the block runs, once the checkpoint of that step is there whole: do something, which must succeed."""
    with at_file(run / f"step_{step:07d}*" / "position.json", action):  # of whichever command on this run
        yield


@contextmanager
def at_file(pattern: Path, action: Callable[[], object]) -> Iterator[None]:
    """While the block runs, once there is such a file: do something, which must succeed."""
    over, folder = threading.Event(), pattern.parent.parent

    def act() -> None:
        wait_for(lambda: any(folder.glob(f"{pattern.parent.name}/{pattern.name}")) or over.is_set())
        assert not over.is_set(), f"no {pattern}"
        action()

    with ThreadPoolExecutor() as background:
        done = background.submit(act)
        try:
            yield
        finally:
            over.set()
        done.result()


def training_workers() -> list[psutil.Process]:
    """Of this process's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # some are gone, or zombies
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    assert found
    return found


def kill_worker() -> None:
    """kill -9 one training worker."""
    training_workers()[0].kill()


def fill_disk() -> None:
    """What a full disk does to training workers: their files may not grow beyond so many bytes."""
    for process in training_workers():
        process.rlimit(psutil.RLIMIT_FSIZE, (500_000, 500_000))


@contextmanager
def command(arguments: list[str]) -> Iterator[subprocess.Popen]:
    """`python -m train` in a process of its own, which leaves nothing behind, whatever ended it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    family = psutil.Process(process.pid)
    try:
        yield process
    finally:
        children = family.children(recursive=True) if family.is_running() else []
        process.kill()
        process.communicate()
        psutil.wait_procs(children, timeout=60)
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def kill_in_the_middle_of_a_checkpoint(process: subprocess.Popen, run: Path) -> Path:
    """kill -9 the command and all its processes, as if the machine lost power; the half checkpoint."""
    tried = {path.name for path in run.glob("step_*")}
    while True:
        wait_for(lambda: any(path.name not in tried for path in run.glob("step_*")))
        (half,) = (path for path in run.glob("step_*") if path.name not in tried)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.Error):
                member.suspend()
        if not (half / "position.json").exists():
            break
        assert len(tried) < 2  # of four
        tried.add(half.name)  # too late: the next one
        for member in family:
            with suppress(psutil.Error):
                member.resume()
    for member in family:
        with suppress(psutil.Error):
            member.kill()
    return half


@pytest.mark.slow
def test_stopped_and_killed_in_every_way_a_run_ends_as_if_it_had_not(trained, workplace, s3_uri):
    """On S3: all processes at once, in the middle of a checkpoint; then a worker, which is tolerated."""
    from train.loop import run

    arguments = [*words(workplace, "killed"), "--out", s3_uri]
    folder = UPath(s3_uri, use_listings_cache=False) / "killed"
    with command(arguments) as process:
        wait_for((folder / "step_0000010/position.json").exists)
        half = kill_in_the_middle_of_a_checkpoint(process, folder)
    assert half.exists() and not (half / "position.json").exists()
    whole = max(int(path.parent.name[5:]) for path in folder.glob("*/position.json"))
    assert int(half.name[5:]) == whole + 10

    with at_checkpoint(folder, whole + 10, kill_worker):
        run(config(workplace, "killed", out=s3_uri, max_failures=1))
    for metric in ("loss", "grad_norm", "lr", "clips"):
        assert curve("killed", metric) == curve("straight", metric)  # every step once, and the same numbers
    for kind in ("model", "not_averaged"):
        expected = weights(Path(trained.out, "straight"), kind)
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in weights(folder, kind, f"step_{STEPS:07d}-2").items()
        )
    kept = {path.parent.name for path in folder.glob("step_*/optimisers.pt")}  # S3 may list empty folders
    assert kept == {"step_0000030-2", "step_0000040-2", "step_0000050-2"}  # of the second command


@pytest.mark.slow
def test_a_full_disk_another_number_of_workers_and_mlflow_away(trained, workplace, monkeypatch, capsys):
    """One run meets all three, after it began with weights of another one, for longer clips, which are gone then.

    Learning rate 0, so that the weights at the end are those of the start.
    """
    from train.loop import run

    start = shutil.copytree(f"{trained.out}/straight/step_{STEPS:07d}/model", workplace / "start")
    begun = config(
        workplace,
        "hindered",
        init=str(start),
        model=replace(trained.model, clip_frames=6),
        optim=OptimConfig(lr=0.0, final_lr=0.0, warmup_steps=1),
        steps=30,
        max_failures=0,
    )
    folder = Path(begun.out, begun.name)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with MlflowServer(workplace / "server") as server:
        full = r"checkpoint .*/step_0000020 could not be written \(.*File too large"
        with at_checkpoint(folder, 10, fill_disk), pytest.raises(RunFailed, match=full):
            run(begun)
        assert "timestep tables resized from 4 to 6 frames (linear)" in capsys.readouterr().out
        assert mlflow_run("hindered").info.status == "FAILED"
        checkpoints.load(folder / "step_0000010/model")
        shutil.rmtree(start)  # the checkpoint has all that is needed

        capsys.readouterr()
        alone = replace(begun, workers=1)
        away = r"hindered is trained, but MLflow at http.* did not take .*register --checkpoint .*0030-2/model"
        with at_checkpoint(folder, 20, server.kill), pytest.raises(RunFailed, match=away):
            run(alone)
        assert (
            "going on from the checkpoint of step 10, with clip 40 of the run; workers: 1, before 2; a step sees 2 "
            "clips, before 4, with the same learning rate (--data.clips-per-worker 4 keeps it at 4)"
        ) in capsys.readouterr().out
        assert (folder / "step_0000030-2/position.json").exists()

        with pytest.raises(ValueError, match=f"MLflow at {server.uri} cannot be used, so nothing was begun"):
            run(alone)
        server.start()
        assert run(alone) == "models:/d4rt-hindered/1"
        assert [step for step, _ in curve("hindered", "loss")] == list(range(1, 31))
        workers = [count for _, count in curve("hindered", "workers")]
        # Of steps that were done twice, from 11 to 20 and a few more, what reached MLflow the first time stands.
        assert workers[:10] == [2] * 10 and workers[25:] == [1] * 5 and workers == sorted(workers, reverse=True)
        # 10 steps of two workers with two clips each, 20 steps of one.
        assert curve("hindered", "clips")[-1] == (30, 10 * 4 + 20 * 2)
    assert json.loads((folder / "run.json").read_text())["config"]["workers"] == 1
    found = checkpoints.load(folder / "step_0000030-2/model").state_dict()
    for name, tensor in checkpoints.resize_tables(weights(Path(trained.out, "straight"), "model"), 6).items():
        assert torch.equal(found[name], tensor), name


def test_a_stop_is_at_once_while_there_are_no_workers_to_hear_of_it(ray_cluster):
    """Say, because they wait for GPUs that others have."""
    from train.loop import fit

    over = threading.Event()

    class Waiting(TorchTrainer):
        def __init__(self) -> None: ...

        def fit(self) -> Result:
            assert over.wait(60)
            return Result(metrics=None, checkpoint=None, error=None, path="a run", metrics_dataframe=None)

    def terminate() -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    def terminate_and_finish() -> None:
        terminate()
        wait_for(lambda: ray.get(heard.stopping.remote()), seconds=30)
        time.sleep(0.5)
        over.set()

    assert threading.current_thread() is threading.main_thread()  # which alone hears of signals
    with ThreadPoolExecutor() as background, printed_progress("one") as unheard, printed_progress("two") as heard:
        background.submit(terminate)
        with pytest.raises(KeyboardInterrupt):
            fit(Waiting(), unheard)
        ray.get(heard.workers_are_up.remote(True))
        finished = background.submit(terminate_and_finish)
        assert fit(Waiting(), heard).path == "a run"
        finished.result()


def test_failures_are_counted_since_the_last_checkpoint(ray_cluster):
    died = {1: ray.exceptions.RayActorError()}
    with printed_progress("one") as progress:
        gets_on = Failures(1, progress)
        for _ in range(5):
            gets_on.after_exception(None, died)
            gets_on.after_report(None, [], Checkpoint("/a/checkpoint"))

        stuck = Failures(1, progress)
        stuck.after_exception(None, died)
        stuck.after_report(None, [], None)
        with pytest.raises(RunFailed, match=r"worker 1 died: .* \(2 times, without a new checkpoint\)"):
            stuck.after_exception(None, died)

        with pytest.raises(RunFailed, match=r"^a step does not fit$"):  # and never will
            Failures(9, progress).after_exception(None, {0: OutOfMemory("a step does not fit")})


@pytest.mark.slow
def test_a_run_goes_on_only_as_it_was_begun(trained, capsys):
    from train.loop import run

    assert run(trained) == "models:/d4rt-straight/1" and "is finished, nothing to do" in capsys.readouterr().out
    record = Path(trained.out, trained.name, "run.json")
    finished = record.read_text()
    record.write_text(json.dumps({k: v for k, v in json.loads(finished).items() if k != "model"}))
    with pytest.raises(ValueError, match=r"begun with another config \(optim.lr: 0.002 there, 0.001 asked\)"):
        run(replace(trained, optim=replace(trained.optim, lr=1e-3)))
    record.write_text(finished)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device gpu: PyTorch finds no GPU on this machine"):
            run(replace(trained, name="another", device="gpu"))


# None in sys.modules is a package that is not installed; `model` must be the copy kept with the registered model.
PREDICT = """
import sys
import mlflow, numpy as np
sys.modules.update(train=None, pipelines=None)
inputs = dict(np.load("inputs.npz"))
np.savez("outputs.npz", **mlflow.pyfunc.load_model("models:/d4rt-straight@champion").predict(inputs))
assert not sys.modules["model"].__file__.startswith(sys.argv[1]), sys.modules["model"].__file__
"""


@pytest.mark.slow
def test_registered_model_predicts_the_same_far_from_this_code(trained, tmp_path):
    rng = np.random.default_rng(0)
    inputs = {
        "video": rng.integers(0, 256, (2, 4, 64, 64, 3), dtype=np.uint8),
        "aspect": np.array([1.0, 1.5], np.float32),
        "uv_norm": rng.random((2, 5, 2), dtype=np.float32),
        **{name: rng.integers(0, 4, (2, 5)) for name in ("t_src", "t_tgt", "t_cam")},
    }
    np.savez(tmp_path / "inputs.npz", **inputs)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    checkout = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", PREDICT, checkout], cwd=tmp_path, env=environment, check=True)
    outputs = np.load(tmp_path / "outputs.npz")

    model = checkpoints.load(f"{trained.out}/{trained.name}/step_{STEPS:07d}/model")
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    queries = Queries(*(tensors[name] for name in ("uv_norm", "t_src", "t_tgt", "t_cam")))
    with torch.inference_mode():
        prediction = model(tensors["video"], tensors["aspect"], queries)
    assert set(outputs) == {"xyz", "uv_tgt", "visible", "displacement", "normal", "confidence"}
    for name in outputs:
        np.testing.assert_allclose(outputs[name], getattr(prediction, name).numpy(), rtol=1e-5, atol=1e-6)

    with pytest.raises(mlflow.exceptions.MlflowException, match="Failed to enforce schema"):
        wrong = inputs | {"video": inputs["video"].astype(np.float32)}
        mlflow.pyfunc.load_model("models:/d4rt-straight@champion").predict(wrong)


@pytest.mark.slow
def test_register_command_makes_the_next_version_and_moves_the_alias(trained, capsys):
    folder = f"{trained.out}/{trained.name}/step_{STEPS:07d}/model"
    assert main(["register", "--checkpoint", folder, "--name", "d4rt-straight", "--alias", "candidate"]) == 0
    assert "registered models:/d4rt-straight/2, alias candidate" in capsys.readouterr().out
    registry = mlflow.MlflowClient()
    assert registry.get_model_version_by_alias("d4rt-straight", "candidate").version in (2, "2")
    assert registry.get_model_version_by_alias("d4rt-straight", "champion").version in (1, "1")


@pytest.mark.slow
def test_a_registered_model_is_a_start(trained, workplace):
    begun = pinned(config(workplace, "next", init="models:/d4rt-straight@champion"))
    assert begun.init == "models:/d4rt-straight/1"  # the alias may move
    found, expected = read_start(begun).weights, weights(Path(trained.out, "straight"), "model")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_a_damaged_store_fails_the_run_with_the_clip(workplace, ray_cluster, capsys):
    store = write_plane_store(workplace / "broken", clips=4, queries=64, video="zstd")
    cut_chunks(store, "video")
    words = f"tiny --data.mixture.{store} 1 --data.queries 64 --steps 60 --max-failures 0 --workers 1"
    assert main([*words.split(), "--out", f"{workplace}/runs"]) == 1
    assert "failed: video of clip plane000" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_diverges_ends_at_once(workplace, ray_cluster, capsys):
    """Decay that makes weights a hundred times as large at each step. Another try would go on from its checkpoint, and
    say so."""
    words = "--data.queries 64 --steps 40 --checkpoint-every 1 --log-every 1 --optim.warmup-steps 1"
    words += " --optim.optimiser adamw --optim.lr 10 --optim.final-lr 10 --optim.weight-decay 10 --optim.decay-all"
    arguments = f"tiny --data.mixture.{workplace}/planes 1 {words} --out {workplace}/runs --name diverges"
    assert main(arguments.split()) == 1
    shown = capsys.readouterr()
    said = re.search(r"run diverges failed: (loss|gradient) is not finite at step (\d+)", shown.err)
    assert said, shown.err
    assert "step  1/40" in shown.out and "going on" not in shown.out
    assert (workplace / f"runs/diverges/step_{int(said[2]):07d}/position.json").exists()
    assert mlflow_run("diverges").info.status == "FAILED"


# --- the command line ------------------------------------------------------------------------------------------------


def test_a_step_that_does_not_fit_is_refused_before_anything_starts(workplace, capsys):
    """Not only in a dry run. On a cluster of others, each worker looks at its own memory."""
    words = f"--data.clips-per-worker 100000 --out {workplace}/runs --name large"
    assert main(f"tiny --data.mixture.{workplace}/planes 1 --data.queries 64 {words}".split()) == 2
    shown = capsys.readouterr()
    assert "a step takes each worker about" in shown.err
    assert "raise --accumulate, lower --data.clips-per-worker or --data.queries, or add --recompute" in shown.err
    assert "starting Ray" not in shown.out and not (workplace / "runs/large").exists()


def test_command_line_overrides_a_preset():
    words = "tiny --steps 200 --data.mixture.s3://bucket/my_store 1 --data.mixture.stores/b=0.5 --optim.lr 0.01"
    given, _ = parse(words.split())
    assert given.data.mixture == {"s3://bucket/my_store": 1.0, "stores/b": 0.5}
    assert (given.steps, given.optim.lr, given.model) == (200, 0.01, ModelConfig.preset("tiny"))
    assert given.name.startswith("tiny-")


def test_a_mixture_file_gives_the_weights_of_the_stores_in_a_folder(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tartanair: 2\npoint_odyssey: 0.5\n")
    given, _ = parse(f"tiny --mixture {path} --stores=s3://bucket/clips/ --steps 200".split())
    assert given.data.mixture == {"s3://bucket/clips/tartanair": 2.0, "s3://bucket/clips/point_odyssey": 0.5}
    assert given.steps == 200


def test_presets_follow_the_paper():
    for name in ("base", "large", "huge", "giant"):
        preset = PRESETS[name][1]
        assert preset.model == ModelConfig.preset(name)
        assert preset.workers * preset.data.clips_per_worker == 64
        assert (preset.steps, preset.optim.warmup_steps, preset.data.queries) == (500_000, 2_500, 2048)
        assert (preset.optim.lr, preset.optim.final_lr, preset.precision) == (1e-4, 1e-6, "bfloat16")
        assert preset.data.augment


def test_opend4rts_refinement_is_as_published():
    preset = PRESETS["opend4rt-refine"][1]
    assert (preset.model.compat, preset.model.clip_frames, preset.model.encoder_width) == ("opend4rt", 48, 1408)
    assert preset.workers * preset.data.clips_per_worker == 16
    assert (preset.data.queries, preset.data.augment, preset.steps) == (4096, False, 30_000)
    assert preset.loss == LossConfig(
        l3d=1.0,
        l2d=0.1,
        lvis=0.1,
        ldisp=0.1,
        lconf=0.2,
        lnormal=0.4,
        displacement_norm="metric",
        confidence="paper",
        confidence_warmup_steps=0,
    )
    assert preset.optim == OptimConfig(
        lr=4e-6, final_lr=4e-7, warmup_steps=500, weight_decay=0.03, decay_all=True, betas=(0.9, 0.999), clip_norm=10.0
    )


def test_the_recipe_on_the_command_line():
    words = "tiny --loss.dynamic-reweight kubric median tartanair relative_mean --optim.freeze encoder --accumulate 4"
    given, _ = parse(f"{words} --optim.ema 0.99 --data.augment --optim.decay-all --data.mixture.clips 1".split())
    assert given.loss.dynamic_reweight == {"kubric": "median", "tartanair": "relative_mean"}
    assert (given.optim.freeze, given.accumulate, given.optim.ema) == (("encoder",), 4, 0.99)
    assert given.data.augment and given.optim.decay_all and not PRESETS["tiny"][1].data.augment


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tyni", "unknown preset 'tyni': did you mean 'tiny'?"),
        ("tiny --stepz 3", "--steps INT"),
        ("tiny --data.queires 3", "--data.queries INT"),
        ("tiny --steps 3", "--optim.warmup-steps (50) must be below --steps (3)"),
        ("tiny --checkpoint-every 30", "--checkpoint-every (30) must be a multiple of --log-every (20)"),
        ("tiny --data.queries 3", "data.queries (3) must be from 16 to"),
        ("tiny --accumulate 3", "--data.clips-per-worker (8) must be a multiple of --accumulate (3)"),
        ("tiny --optim.freeze encoder decoder", "optim.freeze: with encoder and decoder frozen nothing learns"),
        ("tiny --optim.freeze encoder encoder", "optim.freeze encoder encoder: a part is named twice"),
        ("tiny --optim.freeze head", "invalid choice 'head' for argument '--optim.freeze'"),
        ("tiny --optim.encoder-lr 0.1", "--optim.encoder-lr (0.1) must be positive and at most --optim.lr (0.005)"),
        ("tiny --optim.encoder-lr 1e-4 --optim.freeze encoder", "--optim.encoder-lr has no meaning with --optim."),
        ("tiny --optim.ema 1", "optim.ema (1.0) must be from 0 to 0.999999"),
        ("tiny --loss.max-weight 0.5", "--loss.max-weight (0.5) must be from 1 to"),
        ("tiny --loss.dynamic-reweight kubric mean", "pair_q75_or_mean"),
        ("tiny --loss.ldepth -1", "loss.ldepth (-1.0) must be from 0 to"),
        (
            "tiny --data.mixture.planes 1 --data.queries 64 --loss.dynamic-reweight kubrik median",
            "names kubrik, but the",
        ),
        ("tiny", "data.mixture is empty"),
        ("tiny --data.mixture.nowhere 1", "nowhere: not a clip store"),
        ("tiny --data.mixture.nowhere", "--data.mixture"),
        ("tiny --mixture nine", "--mixture and --stores go together"),
        ("tiny --mixture ten --stores clips", "no mixture 'ten': in mixtures/ there are dynamic, nine"),
        ("tiny --data.mixture.planes 1 --data.queries 64 --init nowhere", "nowhere/config.json does not exist"),
        ("tiny --data.mixture.planes 1 --data.queries 64 --init timm:resnet18", "timm:resnet18.a1_in1k holds 0 patch"),
        ("register --checkpoint nowhere", "nowhere/config.json does not exist"),
    ],
)
def test_bad_input_is_refused_with_advice(words, message, workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "200")
    try:
        code = main(words.split())
    except SystemExit as ended:
        code = ended.code
    shown = capsys.readouterr()
    assert code == 2
    assert message in shown.err + shown.out
    assert "Traceback" not in shown.err
