"""Training for real: two CPU workers on Ray, MLflow on SQLite, a worker killed on the way, the model registered."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import torch
from plane_store import write_plane_store

from model import ModelConfig, Queries, checkpoints
from pipelines.clip_store import ClipStore
from train.__main__ import main
from train.config import PRESETS, DataConfig, LossConfig, OptimConfig, TrainConfig, cli
from train.errors import RunFailed

STEPS = 100
MODEL = replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=2)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a store, and an MLflow database of its own."""
    folder = tmp_path_factory.mktemp("train")
    write_plane_store(folder / "planes", clips=24, queries=64, seed=3)
    previous = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    yield folder
    os.environ.pop("MLFLOW_TRACKING_URI")
    if previous is not None:
        os.environ["MLFLOW_TRACKING_URI"] = previous


def config(folder: Path, name: str, **changes) -> TrainConfig:
    defaults = TrainConfig(
        model=MODEL,
        data=DataConfig(mixture={f"{folder}/planes": 1.0}, queries=48, clips_per_worker=2),
        loss=LossConfig(confidence_warmup_steps=5),
        optim=OptimConfig(lr=2e-3, final_lr=1e-4, warmup_steps=5, ema=0.9),
        steps=STEPS,
        workers=2,
        accumulate=2,
        precision="float32",
        checkpoint_every=20,
        log_every=1,
        keep_checkpoints=10,
        out=f"{folder}/runs",
        name=name,
        register_as=f"d4rt-{name}",
    )
    return replace(defaults, **changes)


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


def weights(done: TrainConfig, kind: str) -> dict[str, torch.Tensor]:
    return checkpoints.load(f"{done.out}/{done.name}/step_{STEPS:07d}/{kind}").state_dict()


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


@contextmanager
def worker_killed_after(checkpoint: str, done: TrainConfig) -> Iterator[None]:
    """kill -9 one training worker of this process's cluster once Ray Train knows of that checkpoint."""
    snapshot = Path(done.out, done.name, "checkpoint_manager_snapshot.json")

    def kill() -> bool:
        while not (snapshot.exists() and checkpoint in snapshot.read_text()):
            time.sleep(0.05)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # some are gone, or zombies
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.kill()
                    return True
        return False

    with ThreadPoolExecutor() as background:
        killed = background.submit(kill)
        yield
        assert killed.result(timeout=1)


@pytest.mark.slow
def test_killed_workers_and_a_failed_run_change_nothing(trained, workplace):
    """First beyond what is tolerated, so that the run fails and is called again; then a kill that is tolerated."""
    from train.loop import run

    killed = config(workplace, "killed", max_failures=0)
    with worker_killed_after("step_0000020", killed), pytest.raises(RunFailed, match="run killed failed"):
        run(killed)
    assert mlflow_run("killed").info.status == "FAILED"

    with worker_killed_after("step_0000040", killed):
        run(replace(killed, max_failures=1))
    for metric in ("loss", "grad_norm", "lr"):
        assert curve("killed", metric) == curve("straight", metric)  # every step once, and the same numbers
    for kind in ("model", "not_averaged"):
        expected = weights(trained, kind)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(killed, kind).items())


@pytest.mark.slow
def test_a_run_goes_on_only_as_it_was_begun(trained):
    from train.loop import run

    with pytest.raises(ValueError, match=r"run straight in .* is finished \(models:/d4rt-straight/1\)"):
        run(trained)
    record = Path(trained.out, trained.name, "run.json")
    finished = record.read_text()
    record.write_text(json.dumps({k: v for k, v in json.loads(finished).items() if k != "model"}))
    with pytest.raises(ValueError, match=r"begun with another config \(optim.lr: 0.002 there, 0.001 asked\)"):
        run(replace(trained, optim=replace(trained.optim, lr=1e-3)))
    record.write_text(finished)


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
def test_a_run_starts_from_a_registered_model_for_longer_clips(trained, workplace, capsys):
    """Learning rate 0, so that the weights at the end are those of the start."""
    from train.loop import run

    begun = config(
        workplace,
        "longer",
        init="models:/d4rt-straight@champion",
        model=replace(MODEL, clip_frames=6),
        optim=OptimConfig(lr=0.0, final_lr=0.0, warmup_steps=1),
        steps=2,
        checkpoint_every=2,
    )
    run(begun)
    assert "timestep tables resized from 4 to 6 frames (linear)" in capsys.readouterr().out
    assert mlflow_run("longer").data.params["init"] == "models:/d4rt-straight/1"  # the alias may move
    found = checkpoints.load(f"{begun.out}/longer/step_0000002/model").state_dict()
    for name, tensor in checkpoints.resize_tables(weights(trained, "model"), 6).items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.slow
def test_a_damaged_store_fails_the_run_with_the_clip(workplace, ray_cluster, capsys):
    store = write_plane_store(workplace / "broken", clips=4, queries=64, video="zstd")
    for chunk in (workplace / "broken/data/planes.zarr/video/c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:-100])
    words = f"tiny --data.mixture.{store} 1 --data.queries 64 --steps 60 --max-failures 0 --out {workplace}/runs"
    assert main(words.split()) == 1
    assert "failed: video of clip plane000" in capsys.readouterr().err


# --- the command line ------------------------------------------------------------------------------------------------


def test_command_line_overrides_a_preset():
    words = "tiny --steps 200 --data.mixture.s3://bucket/my_store 1 --data.mixture.stores/b=0.5 --optim.lr 0.01"
    given = cli(words.split())
    assert given.data.mixture == {"s3://bucket/my_store": 1.0, "stores/b": 0.5}
    assert (given.steps, given.optim.lr, given.model) == (200, 0.01, ModelConfig.preset("tiny"))
    assert given.name.startswith("tiny-")


def test_a_mixture_file_gives_the_weights_of_the_stores_in_a_folder(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tartanair: 2\npoint_odyssey: 0.5\n")
    given = cli(f"tiny --mixture {path} --stores=s3://bucket/clips/ --steps 200".split())
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
        confidence_warmup_steps=0,
    )
    assert preset.optim == OptimConfig(
        lr=4e-6, final_lr=4e-7, warmup_steps=500, weight_decay=0.03, decay_all=True, betas=(0.9, 0.999), clip_norm=10.0
    )


def test_the_recipe_on_the_command_line():
    words = "tiny --loss.dynamic-reweight kubric median tartanair relative_mean --optim.freeze encoder --accumulate 4"
    given = cli(f"{words} --optim.ema 0.99 --data.augment --optim.decay-all --data.mixture.clips 1".split())
    assert given.loss.dynamic_reweight == {"kubric": "median", "tartanair": "relative_mean"}
    assert (given.optim.freeze, given.accumulate, given.optim.ema) == (("encoder",), 4, 0.99)
    assert given.data.augment and given.optim.decay_all and not PRESETS["tiny"][1].data.augment


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tyni", "unknown preset 'tyni': did you mean 'tiny'?"),
        ("", "{tiny, small, base, large, huge, giant, opend4rt-refine}"),
        ("tiny --stepz 3", "--steps INT"),
        ("tiny --data.queires 3", "--data.queries INT"),
        ("tiny --steps 3", "optim.warmup_steps (50) must be below steps (3)"),
        ("tiny --checkpoint-every 30", "checkpoint_every (30) must be a multiple of log_every (20)"),
        ("tiny --data.queries 3", "data.queries (3) must be at least 16"),
        ("tiny --accumulate 3", "data.clips_per_worker (8) must be a multiple of accumulate (3)"),
        ("tiny --optim.freeze encoder decoder", "optim.freeze: with encoder and decoder frozen nothing learns"),
        ("tiny --optim.freeze head", "invalid choice 'head' for argument '--optim.freeze'"),
        ("tiny --optim.encoder-lr 0.1", "optim.encoder_lr (0.1) must be positive and at most optim.lr (0.001)"),
        ("tiny --optim.encoder-lr 1e-4 --optim.freeze encoder", "optim.encoder_lr has no meaning with optim.freeze"),
        ("tiny --optim.ema 1", "optim.ema (1.0) must be from 0, for none, to below 1"),
        ("tiny --loss.max-weight 0.5", "loss.max_weight (0.5) must be at least 1"),
        ("tiny --loss.dynamic-reweight kubric mean", "pair_q75_or_mean"),
        ("tiny --loss.ldepth -1", "loss.ldepth (-1.0) must not be negative"),
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
