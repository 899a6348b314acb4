"""MLflow's tracking: where runs are kept, and what a run records before its first step."""

import logging
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

# Read when mlflow is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipelines.models import (
    DEFAULT_DATABASE,
    SQLITE,
    asked_again,
    environment,
    impatient,
    opened_first,
    tracking_uri,
)
from pipelines.partial import scratch_folder
from pipelines.raw.place import lasting
from pipelines.refusal import remedy
from pipelines.store.reader import ClipStore
from train.errors import RunStopped

EXPERIMENT = "d4rt"
PACKAGE = Path(__file__).parent
# A large file may go from here to the server's bucket, past the server.
LARGE = mlflow.environment_variables.MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE.get()
AS_LARGE = {"MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": "1"}
PARAMS_PER_CALL = 100  # limit of MLflow's REST interface
BEGUN_AS = "begun_as"  # a tag of a run
UNREACHABLE = (MlflowException, OSError)  # which is what the errors of requests are
Answer = TypeVar("Answer")


@contextmanager
def plainly(outcome: str, to: str = "") -> Iterator[None]:
    """What MLflow raises becomes a ValueError, with what is to be done.

    `outcome`: what it means for the command; `to`: what MLflow was asked to do, if that tells more.
    """
    try:
        yield
    except UNREACHABLE as error:
        if getattr(error, "errno", None) is not None:  # of a file on this machine
            raise
        away = (
            "start its server, or let MLFLOW_TRACKING_URI name another; without it, runs are kept in mlflow.db in the "
            "current folder"
        )
        used = f"used to {to}" if to else "used"
        raise ValueError(
            f"MLflow at {mlflow.get_tracking_uri()} cannot be {used}, {outcome} ({_first_line(error)}): "
            f"{remedy(error) or away}"
        ) from error


def before_work(ask: Callable[[], Answer], to: str = "") -> Answer:
    """What MLflow answers. ValueError, soon, if it does not do what it is asked `to`; `ask` may be called again."""
    with impatient(), plainly("so nothing was begun", to):
        return asked_again(ask)


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
    with opened_first(uri):
        before_work(lambda: _use_experiment(artifacts))
    return uri


def _use_experiment(artifacts: str | None) -> None:
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        mlflow.create_experiment(EXPERIMENT, artifact_location=artifacts)
    elif experiment.lifecycle_stage != "active":
        raise ValueError(
            f"MLflow at {mlflow.get_tracking_uri()}: the experiment {EXPERIMENT} was deleted; `mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}` brings it back, `mlflow gc` removes it for good"
        )
    mlflow.set_experiment(EXPERIMENT)
    mlflow.MlflowClient().search_registered_models(max_results=1)  # the registry makes tables of its own


def check_writable(model: str, size: int) -> None:
    """ValueError if MLflow, or the place of its artifacts, does not take what it is given, or the registered `model` is
    another's. `size`: of its weights, in bytes; the way of a large file is tried for what will be one."""
    uri, now = mlflow.get_tracking_uri(), time.strftime("%F %T")
    experiment = before_work(lambda: mlflow.get_experiment_by_name(EXPERIMENT))
    client, number = mlflow.MlflowClient(), experiment.experiment_id
    before_work(lambda: client.set_experiment_tag(number, "checked", now), to=f"write experiment {EXPERIMENT}")
    if before_work(lambda: client.search_registered_models(f"name = '{model}'")):
        before_work(lambda: client.set_registered_model_tag(model, "checked", now), to=f"write model {model}")
    place = experiment.artifact_location
    try:
        with impatient(), environment(AS_LARGE if size >= LARGE else {}), scratch_folder() as folder:
            file = folder / f"checked-{uuid.uuid4().hex}"
            file.write_bytes(b"1")
            artifacts = get_artifact_repository(place)
            asked_again(lambda: artifacts.log_artifact(str(file)))
            with suppress(Exception):  # then the file stays
                artifacts.delete_artifacts(file.name)
    except Exception as error:  # of any of the services that MLflow may keep artifacts in
        if place.startswith("mlflow-artifacts:"):  # the server's own
            access = (
                "let its admin look why, in the server's log: at its bucket and credentials, or its disk; large files "
                "go from here to the bucket itself, unless MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=false"
            )
        else:
            access = (
                "give this process access to it, or let the server hand artifacts on (mlflow server "
                "--artifacts-destination)"
            )
        raise ValueError(
            f"MLflow at {uri} keeps models in {place}, which cannot be written ({_first_line(error)}): "
            f"{remedy(error) or access}"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_run(run_id: str, name: str) -> None:
    """ValueError if MLflow does not know the run that is to go on."""
    uri = mlflow.get_tracking_uri()

    def stage() -> str:
        try:
            return mlflow.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ValueError(
                f"run {name} was recorded as {run_id}, which MLflow at {uri} does not know: let MLFLOW_TRACKING_URI "
                "name the server or database it was begun with, or choose another --name"
            ) from None

    if before_work(stage) != "active":
        raise ValueError(
            f"run {name} was recorded as {run_id}, which was deleted in MLflow at {uri}: `mlflow runs restore --run-id "
            f"{run_id}` brings it back; or choose another --name"
        )


def start_run(name: str, config: dict[str, Any], stores: list[ClipStore]) -> str:
    """Record all that a run depends on before its first step: config, code, data. Returns the run's id."""
    token = uuid.uuid4().hex
    run_id = before_work(lambda: _begun(name, token))
    with ended(run_id):
        before_work(lambda: _record(run_id, config, stores))
    return run_id


def _begun(name: str, token: str) -> str:
    """The id of a new run. Where an answer is lost, MLflow itself asks again, and makes two."""
    client, number = mlflow.MlflowClient(), mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    client.create_run(number, run_name=name, tags={BEGUN_AS: token})
    run, *others = client.search_runs([number], f"tags.{BEGUN_AS} = '{token}'")
    for other in others:
        with tidying():
            client.delete_run(other.info.run_id)
    return run.info.run_id


def _record(run_id: str, config: dict[str, Any], stores: list[ClipStore]) -> None:
    client = mlflow.MlflowClient()
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


@contextmanager
def tidying() -> Iterator[None]:
    """Around deleting what is in nobody's way: it stays where this user may write, and not delete."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise


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
