"""The few MLflow calls: where runs are kept, what a run records, and how a checkpoint becomes a registered model."""

import hashlib
import logging
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

# Read when mlflow is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from model import D4RT, checkpoints
from model.confidence import Calibration
from pipelines.models import DEFAULT_DATABASE, SQLITE, checkpoint_folder, impatient, opened_first, tracking_uri
from pipelines.partial import scratch_folder, temporary_files_together
from pipelines.raw.place import lasting
from pipelines.store.reader import ClipStore
from train import provenance
from train.errors import RunStopped
from train.signature import example, signature

EXPERIMENT = "d4rt"
CLIP_FRAMES, STEPS = "clip_frames", "steps"  # tags of a version
PACKAGE = Path(__file__).parent
REQUIREMENTS = ("einops", "mlflow", "numpy", "pyyaml", "safetensors", "torch")
PARAMS_PER_CALL = 100  # limit of MLflow's REST interface
UNREACHABLE = (MlflowException, OSError)  # which is what the errors of requests are


@contextmanager
def before_training(uri: str) -> Iterator[None]:
    """ValueError, at once, if MLflow does not do what it is asked here."""
    try:
        with impatient():
            yield
    except UNREACHABLE as error:
        raise ValueError(
            f"MLflow at {uri} cannot be used, so nothing was trained ({str(error).splitlines()[0]}): start its server, "
            "or let MLFLOW_TRACKING_URI name another; without it, runs are kept in mlflow.db in the current folder"
        ) from error


def connect() -> str:
    """Use the server or database of MLFLOW_TRACKING_URI, else mlflow.db in the current folder. Returns its URI.

    The artifacts of a database go to `mlartifacts` beside it; a server decides for itself. ValueError if it cannot be
    used, or its experiment was deleted.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uri, artifacts = tracking_uri(), None
    if uri.startswith(SQLITE):
        given = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_DATABASE
        lasting(given.removeprefix(SQLITE), "MLFLOW_TRACKING_URI: the database")
        artifacts = (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts").as_uri()
    mlflow.set_tracking_uri(uri)
    with opened_first(uri), before_training(uri):
        experiment = mlflow.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            mlflow.create_experiment(EXPERIMENT, artifact_location=artifacts)
        elif experiment.lifecycle_stage != "active":
            raise ValueError(
                f"MLflow at {uri}: the experiment {EXPERIMENT} was deleted; `mlflow experiments restore "
                f"--experiment-id {experiment.experiment_id}` brings it back, `mlflow gc` removes it for good"
            )
        mlflow.set_experiment(EXPERIMENT)
        mlflow.MlflowClient().search_registered_models(max_results=1)  # the registry makes tables of its own
    return uri


def check_writable() -> None:
    """ValueError if MLflow, or the place of its artifacts, does not take what it is given."""
    uri = mlflow.get_tracking_uri()
    with before_training(uri):
        experiment = mlflow.get_experiment_by_name(EXPERIMENT)
        mlflow.MlflowClient().set_experiment_tag(experiment.experiment_id, "checked", time.strftime("%F %T"))
    place = experiment.artifact_location
    try:
        with impatient(), scratch_folder() as folder:
            (file := folder / f"checked-{uuid.uuid4().hex}").touch()
            artifacts = get_artifact_repository(place)
            artifacts.log_artifact(str(file))
            with suppress(Exception):  # then an empty file stays
                artifacts.delete_artifacts(file.name)
    except Exception as error:  # of any of the services that MLflow may keep artifacts in
        raise ValueError(
            f"MLflow at {uri} keeps models in {place}, which cannot be written ({_first_line(error)}): give this "
            "process access to it, or let the server hand artifacts on (mlflow server --artifacts-destination)"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_run(run_id: str, name: str) -> None:
    """ValueError if MLflow does not know the run that is to go on."""
    uri = mlflow.get_tracking_uri()
    with before_training(uri):
        try:
            stage = mlflow.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ValueError(
                f"run {name} was recorded as {run_id}, which MLflow at {uri} does not know: let MLFLOW_TRACKING_URI "
                "name the server or database it was begun with, or choose another --name"
            ) from None
    if stage != "active":
        raise ValueError(
            f"run {name} was recorded as {run_id}, which was deleted in MLflow at {uri}: `mlflow runs restore --run-id "
            f"{run_id}` brings it back; or choose another --name"
        )


def start_run(name: str, config: dict[str, Any], stores: list[ClipStore]) -> str:
    """Record all that a run depends on before its first step: config, code, data. Returns the run's id."""
    client = mlflow.MlflowClient()
    with before_training(mlflow.get_tracking_uri()):
        experiment = mlflow.get_experiment_by_name(EXPERIMENT)
        run_id = client.create_run(experiment.experiment_id, run_name=name).info.run_id
    with before_training(mlflow.get_tracking_uri()), ended(run_id):
        params = [Param(key, str(value)[:6000]) for key, value in flatten(config).items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
        commit, diff = git_state()
        tags = {"git_commit": commit, "git_dirty": str(bool(diff))}
        tags |= {f"store_digest.{number}": store.info["digest"] for number, store in enumerate(stores)}
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        client.log_dict(run_id, config, "config.json")
        client.log_dict(run_id, {store.uri: store.info for store in stores}, "stores.json")
        if diff:
            client.log_text(run_id, diff, "uncommitted.diff")
    return run_id


@contextmanager
def ended(run_id: str) -> Iterator[None]:
    """A run that does not get to the end of the block is over in MLflow too; going on with it ends it again.

    If MLflow is away, it stays RUNNING there.
    """
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, RunStopped | KeyboardInterrupt) else "FAILED"
        with impatient(), suppress(*UNREACHABLE):
            mlflow.MlflowClient().set_terminated(run_id, status=status)
        raise


def git_state() -> tuple[str, str]:
    """(commit, uncommitted changes to tracked files) of this code.

    Outside a git checkout, such as in a Ray job, the commit is what GIT_COMMIT says, else "unknown".
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=PACKAGE, capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_COMMIT", "unknown"), ""


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; but values by URI or dataset stay together, as one."""
    flat = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and key not in ("mixture", "dynamic_reweight")
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def log_json(run_id: str, content: dict[str, Any], name: str) -> None:
    mlflow.MlflowClient().log_dict(run_id, content, name)


def bearer(name: str, alias: str) -> tuple[str, dict[str, str]] | None:
    """(number, tags) of the version of registered model `name` that has this alias; None if none has."""
    client = mlflow.MlflowClient()
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    if (number := model.aliases.get(alias)) is None:
        return None
    return str(number), client.get_model_version(name, str(number)).tags


def register(
    checkpoint: str | Path,
    name: str,
    alias: str | None,
    run_id: str | None = None,
    tags: dict[str, str] | None = None,
    calibration: Calibration | None = None,
) -> int:
    """Make a checkpoint the newest version of registered model `name`, move the alias to it, and return it.

    `checkpoint`: whatever names a model (`pipelines/models.py`). Without an `alias` none moves. `run_id` is the run it
    came from, whose last losses and scores become metrics `final/...` of the model, and which has one version, however
    often this is done; without one it gets a run of its own. The version gets the `tags` and those of
    `train/provenance.py`, and the `calibration` in place of its own, if one is given. The model carries its own code
    and needs neither this repository nor the checkpoint any more.
    ValueError, before anything is written, if it is none.
    """
    with temporary_files_together() as scratch, checkpoint_folder(str(checkpoint)) as folder:
        model = checkpoints.load(folder)  # refuses what could not be loaded later
        if calibration is not None:
            model.calibration = calibration
            folder = checkpoints.save(model, scratch / "calibrated")
        connect()
        check_writable()
        origin = provenance.of_run(run_id) if run_id else provenance.of_checkpoint(str(checkpoint))
        tags = {CLIP_FRAMES: str(model.config.clip_frames)} | origin | (tags or {})
        number = _version(name, run_id, model, folder, tags)
    client = mlflow.MlflowClient()
    try:
        if alias is not None:
            client.set_registered_model_alias(name, alias, number)
    except UNREACHABLE:
        with suppress(*UNREACHABLE):  # no version stays that nothing points to: it is made again
            client.delete_model_version(name, number)
        raise
    return int(number)


def _version(name: str, run_id: str | None, model: D4RT, folder: Path, tags: dict[str, str]) -> str:
    """The number of a new version, or of the one that this run has from a command that was killed afterwards. A version
    is there as soon as all of it is, with its tags: nobody sees half of one."""
    last = mlflow.get_run(run_id).data.metrics if run_id else {}
    run_name = None if run_id else f"register {name}"
    # MLflow asks for type hints; the signature says it all.
    with mlflow.start_run(run_id=run_id, run_name=run_name), redirect_stderr(StringIO()):
        before = run_id and mlflow.MlflowClient().search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if before:
            return str(before[0].version)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PACKAGE / "registered_model.py"),
            code_paths=[str(PACKAGE.parent / "model")],
            artifacts={"checkpoint": str(folder.absolute())},
            signature=signature(model.config.image_size),
            input_example=example(model.config.image_size),
            metadata={"config": model.config.to_dict()},
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in REQUIREMENTS],
        )
        final = {f"final/{key}": value for key, value in last.items() if key.startswith(("loss", "val/"))}
        mlflow.log_metrics(final, model_id=info.model_id)
        return str(mlflow.register_model(info.model_uri, name, tags=tags).version)


def register_opend4rt(checkpoint: Path, config: Path, name: str, alias: str) -> int:
    """The same with the pair of files of an OpenD4RT release; the version is tagged with where it came from."""
    model = checkpoints.load_opend4rt(checkpoint, config)
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{checkpoint}: all {len(model.state_dict())} tensors fit, {parameters:,} parameters, sha256 {digest}")
    tags = {"compat": "opend4rt", "source_sha256": digest, "parameters": str(parameters)}
    with scratch_folder() as folder:
        return register(checkpoints.save(model, folder), name, alias, tags=tags)
