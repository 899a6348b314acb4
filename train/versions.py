"""MLflow's registry: how a checkpoint becomes a version of a registered model, and which version bears an alias."""

import hashlib
from contextlib import redirect_stderr, suppress
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from model import D4RT, checkpoints
from model.confidence import Calibration
from pipelines.models import asked_again, checkpoint_folder
from pipelines.partial import scratch_folder, temporary_files_together
from train import provenance, tracking
from train.signature import example, signature

CLIP_FRAMES, STEPS = "clip_frames", "steps"  # tags of a version
PACKAGE = Path(__file__).parent
REQUIREMENTS = ("einops", "mlflow", "numpy", "pyyaml", "safetensors", "torch")


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
        tracking.connect()
        tracking.check_writable(name, sum(x.nbytes for x in model.parameters()))
        origin = provenance.of_run(run_id) if run_id else provenance.of_checkpoint(str(checkpoint))
        tags = {CLIP_FRAMES: str(model.config.clip_frames)} | origin | (tags or {})
        number = _version(name, run_id, model, folder, tags)
    client = mlflow.MlflowClient()
    try:
        if alias is not None:
            asked_again(lambda: client.set_registered_model_alias(name, alias, number))
    except tracking.UNREACHABLE:
        with suppress(*tracking.UNREACHABLE):  # no version stays that nothing points to: it is made again
            client.delete_model_version(name, number)
        raise
    return int(number)


def _version(name: str, run_id: str | None, model: D4RT, folder: Path, tags: dict[str, str]) -> str:
    """The number of a new version, or of the one that this run has from a command that was killed afterwards. A version
    is there as soon as all of it is, with its tags: nobody sees half of one."""
    last = mlflow.get_run(run_id).data.metrics if run_id else {}
    run_name = None if run_id else f"register {name}"
    # MLflow asks for type hints; the signature says it all.
    with mlflow.start_run(run_id=run_id, run_name=run_name) as run, redirect_stderr(StringIO()):
        client, mine = mlflow.MlflowClient(), f"name = '{name}' and run_id = '{run.info.run_id}'"
        if before := client.search_model_versions(mine):
            return str(before[0].version)
        for half in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
            with tracking.tidying():
                client.delete_logged_model(half.model_id)  # which another try left
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
        mlflow.register_model(info.model_uri, name, tags=tags)
        # Where the answer to it was lost, MLflow itself has asked again, and made two.
        first, *others = sorted(client.search_model_versions(mine), key=lambda found: int(found.version))
        for other in others:
            with tracking.tidying():
                client.delete_model_version(name, other.version)
        return str(first.version)


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
