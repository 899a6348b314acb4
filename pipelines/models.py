"""A trained model by name, and where it runs.

| name                                   | is                                                                  |
|----------------------------------------|---------------------------------------------------------------------|
| `models:/d4rt@champion`                | the version of a registered model that an alias points to           |
| `models:/d4rt/3`                       | a version of a registered model                                     |
| `runs:/RUN_ID/PATH`                    | a model or a checkpoint folder logged by a run                      |
| a folder, or an s3:// URI              | a checkpoint (`model/checkpoints.py`); of a run: RUN/step_N          |

The registry is that of MLFLOW_TRACKING_URI, by default the file mlflow.db in the current folder. Actors
load the model themselves and are told which registry that is; on a cluster it must be one that they reach.
"""

import hashlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock
from torch import device as Device

from model import D4RT, checkpoints
from pipelines.partial import scratch_folder
from pipelines.raw.place import S3, open_place, reachable
from pipelines.refusal import not_known

# MLflow reads these when it is imported, which is done late because it takes seconds.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>.+)")
NUMBERED = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)")
SQLITE = "sqlite:///"
DEFAULT_DATABASE = f"{SQLITE}mlflow.db"
HOSTED = ("databricks", "databricks-uc", "uc")  # MLflow's names for registries that others run
# MLflow itself asks again for four minutes. That is good for registering a model, and too long to wait at the start.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
BROKEN_OFF = ("Connection broken", "Response ended prematurely")  # in the error of an answer that began
TRIES, ASK_AGAIN_SECONDS = 3, 1.0  # of these
CHECKPOINT = "checkpoint"  # what a registered model calls the checkpoint folder among its artifacts


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file mlflow.db in the current folder; the path of a file is made absolute.

    ValueError for a folder, which MLflow no longer keeps models in, and for a URI with a password.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_DATABASE
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
    if urlsplit(uri).password:
        raise ValueError(
            "MLFLOW_TRACKING_URI has a password in it, and the URI is printed and kept with runs: for a server set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, for PostgreSQL PGPASSWORD"
        )
    if uri.startswith("file:") or ("://" not in uri and uri not in HOSTED):
        path = Path(uri.removeprefix("file://").removeprefix("file:")).absolute()
        raise ValueError(
            f"MLFLOW_TRACKING_URI is {uri}, a folder, which keeps no models: name a database, "
            f"{SQLITE}{path}/mlflow.db, or a server, http://HOST:PORT"
        )
    return uri


def impatient() -> AbstractContextManager[None]:
    """MLflow answers soon, or not at all."""
    return environment(IMPATIENT)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """With these variables, which MLflow reads at each call. Those that are set already count more."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


Answer = TypeVar("Answer")


def asked_again(ask: Callable[[], Answer]) -> Answer:
    """What `ask` gets from MLflow, with another try where an answer breaks off in the middle.

    MLflow itself asks again where there is no answer at all. `ask` must be such that it does no harm twice.
    """
    for _ in range(TRIES - 1):
        try:
            return ask()
        except (_mlflow_error(), OSError) as error:
            if not any(words in str(error) for words in BROKEN_OFF):
                raise
            time.sleep(ASK_AGAIN_SECONDS)
    return ask()


@contextmanager
def opened_first(uri: str) -> Iterator[None]:
    """Around the first words of a process with MLflow, which makes the tables of a database that has none.

    For a SQLite file, others wait meanwhile: tables that two make at once can stay broken for good. ValueError for a
    file that is no database, or in which half of them are.
    """
    if not uri.startswith(SQLITE):
        yield
        return
    path = Path(uri.removeprefix(SQLITE))
    if not path.parent.is_dir():  # MLflow would try to make a database there for a minute
        raise ValueError(
            f"MLflow's database {uri}: there is no folder {path.parent}; make it, or let MLFLOW_TRACKING_URI name "
            "another"
        )
    if path.is_dir():
        raise ValueError(f"MLflow's database {uri} is a folder: name the file, {uri}/mlflow.db")
    with reachable(str(path)), FileLock(f"{path}.lock") if os.access(path.parent, os.W_OK) else nullcontext():
        _check_database(path)
        yield


def _check_database(path: Path) -> None:
    """ValueError for a SQLite file that MLflow would stumble over: at length, and not in these words."""
    if not path.exists():
        return
    remedy = "move it away, and a new one is made; or let MLFLOW_TRACKING_URI name another"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            versions = list(database.execute("SELECT * FROM alembic_version")) if "alembic_version" in tables else []
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            remedy = "another process writes to it; wait until it has ended, or look who holds it"
        raise ValueError(f"MLflow's database {path} cannot be read ({error}): {remedy}") from None
    if tables and not versions:
        kind = (
            "was left half made, by a first start that was cut short" if "experiments" in tables else "is not MLflow's"
        )
        raise ValueError(f"MLflow's database {path} {kind}: {remedy}")


def model_version(uri: str) -> str:
    """The name of exactly this model: an alias, which may be moved later, becomes `models:/NAME/VERSION`.

    Other names come back as they are. ValueError if the registry knows no such model or alias.
    """
    if not (match := ALIAS.fullmatch(uri)):
        return uri
    name, alias = match["name"], match["alias"]
    try:
        with impatient():
            found = _registry(uri).tracking.MlflowClient()
            version = asked_again(lambda: found.get_model_version_by_alias(name, alias).version)
            return f"models:/{name}/{version}"
    except _mlflow_error() as error:
        raise not_known(uri, tracking_uri(), error) from error


def model_versions(uri: str) -> list[str]:
    """All versions of `models:/NAME/*`, the oldest first; any other name is itself. ValueError if there are none."""
    if not uri.endswith("/*"):
        return [uri]
    name = uri.removeprefix("models:/").removesuffix("/*")
    try:
        with impatient():
            client = _registry(uri).tracking.MlflowClient()
            found = asked_again(lambda: client.search_model_versions(f"name='{name}'"))
    except _mlflow_error() as error:
        raise not_known(uri, tracking_uri(), error) from error
    if not found:
        raise ValueError(f"no model {name!r} in the registry {tracking_uri()}: check its name")
    return [f"models:/{name}/{number}" for number in sorted(int(each.version) for each in found)]


def tag_version(version: str, tags: dict[str, str]) -> None:
    """Tags of `models:/NAME/VERSION`; of a model that is not registered, nothing is done."""
    if not (match := NUMBERED.fullmatch(version)):
        return
    client = _registry(version).tracking.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(match["name"], match["version"], key, value)


def load_model(uri: str, device: Device | str = "cpu", *, registry: str | None = None) -> D4RT:
    """The model of that name, in eval mode. ValueError, saying what to do, if there is none or it is damaged.

    `registry`: the tracking URI to ask, by default this process's own; actors run elsewhere and are told.
    """
    with checkpoint_folder(uri, registry) as folder:
        return checkpoints.load(folder, device)


@contextmanager
def checkpoint_folder(uri: str, registry: str | None = None) -> Iterator[Path]:
    """A local folder with the two files of that model's checkpoint, for as long as the block runs."""
    if not uri.startswith(("models:/", "runs:/", S3)):
        _, path = open_place(uri)
        yield checkpoints.folder_of(path)
        return
    with scratch_folder() as scratch:
        if uri.startswith(S3):
            folder = _download(uri, scratch)
        else:
            try:
                artifacts = _registry(uri, registry).artifacts
                with impatient():  # with a question, not with what may take a server minutes before its first byte
                    asked_again(lambda: artifacts.list_artifacts(artifact_uri=uri))
                found = asked_again(lambda: artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch)))
            except (_mlflow_error(), OSError) as error:
                raise not_known(uri, tracking_uri(), error) from error
            folder = _checkpoint_in(Path(found), uri)
        try:
            yield folder
        except ValueError as error:  # of what was downloaded, the place it came from is what a user knows
            raise ValueError(str(error).replace(str(folder), uri)) from error


def _download(uri: str, folder: Path) -> Path:
    """The two files of a checkpoint on S3, of a training checkpoint the `model` in it, into `folder`."""
    fs, path = open_place(uri)
    with reachable(uri):
        for place in (path, f"{path}/{checkpoints.MODEL}"):
            if fs.exists(f"{place}/{checkpoints.CONFIG}"):
                break
        else:
            raise ValueError(f"no checkpoint at {uri}: a checkpoint is a folder with {checkpoints.CONFIG}")
        for name in (checkpoints.CONFIG, checkpoints.WEIGHTS):
            fs.get_file(f"{place}/{name}", str(folder / name))
    return folder


def model_digest(model: D4RT) -> str:
    """Of config, weights and calibration: equal digests, equal answers."""
    digest = hashlib.blake2b(json.dumps(model.config.to_dict(), sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy())
    if model.calibration is not None:
        digest.update(model.calibration.to_json().encode())
    return digest.hexdigest()


def _registry(uri: str, where: str | None = None) -> Any:
    """MLflow, pointed at the registry. ValueError if that is a file which does not exist, rather than creating it."""
    where = where or tracking_uri()
    if where.startswith(SQLITE) and not Path(where.removeprefix(SQLITE)).exists():
        raise ValueError(
            f"cannot look up {uri}: there is no model registry at {where}. Train a model in this folder first, set "
            "MLFLOW_TRACKING_URI to the registry that has it, or give a checkpoint folder"
        )
    import mlflow

    mlflow.set_tracking_uri(where)
    if where.startswith(SQLITE):
        with opened_first(where):
            mlflow.MlflowClient().search_registered_models(max_results=1)
    return mlflow


def _mlflow_error() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    return MlflowException


def _checkpoint_in(folder: Path, uri: str) -> Path:
    """A run may have logged the checkpoint folder itself, or a model that has it among its artifacts."""
    if not (folder / "MLmodel").exists():
        return checkpoints.folder_of(folder)
    from mlflow.models import Model

    artifacts = Model.load(str(folder)).flavors.get("python_function", {}).get("artifacts", {})
    if CHECKPOINT not in artifacts:
        raise ValueError(
            f"{uri} holds no artifact {CHECKPOINT!r} but {sorted(artifacts)}: it was not registered by this project; "
            "register its checkpoint with `python -m train register`"
        )
    place = folder / artifacts[CHECKPOINT]["path"]
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{uri} names a checkpoint outside itself ({artifacts[CHECKPOINT]['path']}): it is damaged")
    return checkpoints.folder_of(place)
