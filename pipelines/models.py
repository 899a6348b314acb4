"""A trained model by name, and where it runs.

| name                                   | is                                                                  |
|----------------------------------------|---------------------------------------------------------------------|
| `models:/d4rt@champion`                | the version of a registered model that an alias points to           |
| `models:/d4rt/3`                       | a version of a registered model                                     |
| `runs:/RUN_ID/PATH`                    | a model or a checkpoint folder logged by a run                      |
| a folder, or an s3:// URI              | a checkpoint (`model/checkpoints.py`)                               |

The registry is that of MLFLOW_TRACKING_URI, by default the file mlflow.db in the current folder. Actors
load the model themselves and are told which registry that is; on a cluster it must be one that they reach.
"""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import fsspec
from torch import device as Device

from model import D4RT, checkpoints

# MLflow reads these when it is imported, which is done late because it takes seconds.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>.+)")
CHECKPOINT = "checkpoint"  # what a registered model calls the checkpoint folder among its artifacts


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file mlflow.db in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def model_version(uri: str) -> str:
    """The name of exactly this model: an alias, which may be moved later, becomes `models:/NAME/VERSION`.

    Other names come back as they are. ValueError if the registry knows no such model or alias.
    """
    if not (match := ALIAS.fullmatch(uri)):
        return uri
    name, alias = match["name"], match["alias"]
    found = _registry(uri).tracking.MlflowClient()
    try:
        return f"models:/{name}/{found.get_model_version_by_alias(name, alias).version}"
    except _mlflow_error() as error:
        raise _unknown(uri, error) from None


def load_model(uri: str, device: Device | str = "cpu", *, registry: str | None = None) -> D4RT:
    """The model of that name, in eval mode. ValueError, saying what to do, if there is none or it is damaged.

    `registry`: the tracking URI to ask, by default this process's own; actors run elsewhere and are told.
    """
    if uri.startswith(("models:/", "runs:/")):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                folder = _registry(uri, registry).artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch)
            except (_mlflow_error(), OSError) as error:
                raise _unknown(uri, error) from None
            return checkpoints.load(_checkpoint_in(Path(folder), uri), device)
    fs, path = fsspec.core.url_to_fs(uri)
    if "file" in fs.protocol:
        return checkpoints.load(path, device)
    fs.invalidate_cache()  # what this process saw there before may be out of date
    with tempfile.TemporaryDirectory() as scratch:
        try:
            fs.get(f"{path}/", f"{scratch}/", recursive=True)
        except FileNotFoundError:
            raise ValueError(f"no checkpoint at {uri}: a checkpoint is a folder with config.json") from None
        return checkpoints.load(scratch, device)


def model_digest(model: D4RT) -> str:
    """Of config and weights: equal digests, equal answers."""
    digest = hashlib.blake2b(json.dumps(model.config.to_dict(), sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def _registry(uri: str, where: str | None = None) -> Any:
    """MLflow, pointed at the registry. ValueError if that is a file which does not exist, rather than creating it."""
    where = where or tracking_uri()
    if where.startswith("sqlite:///") and not Path(where.removeprefix("sqlite:///")).exists():
        raise ValueError(
            f"cannot look up {uri}: there is no model registry at {where}. Train a model in this folder first, set "
            "MLFLOW_TRACKING_URI to the registry that has it, or give a checkpoint folder"
        )
    import mlflow

    mlflow.set_tracking_uri(where)
    return mlflow


def _mlflow_error() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    return MlflowException


def _unknown(uri: str, error: Exception) -> ValueError:
    return ValueError(
        f"no model {uri!r} in the registry {tracking_uri()} ({error}): check name, version and alias, or set "
        "MLFLOW_TRACKING_URI to the registry that has it"
    )


def _checkpoint_in(folder: Path, uri: str) -> Path:
    """A run may have logged the checkpoint folder itself, or a model that has it among its artifacts."""
    if not (folder / "MLmodel").exists():
        return folder
    from mlflow.models import Model

    artifacts = Model.load(str(folder)).flavors.get("python_function", {}).get("artifacts", {})
    if CHECKPOINT not in artifacts:
        raise ValueError(
            f"{uri} holds no artifact {CHECKPOINT!r} but {sorted(artifacts)}: it was not registered by this project; "
            "register its checkpoint with `python -m train register`"
        )
    return folder / artifacts[CHECKPOINT]["path"]
