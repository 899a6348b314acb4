"""`python -m train promote`: an alias of a registered model goes to another version, by hand and with a reason.

Training moves `champion` by itself, by scores (`train/champion.py`). What a person decides is a tag of the version,
`promoted/ALIAS`, that stays when the alias goes on.
"""

import getpass
import time

import mlflow
from mlflow.exceptions import MlflowException

from pipelines.models import not_known
from train import tracking


def move_alias(name: str, version: int, alias: str, because: str) -> str:
    """Move it, and say so in words. ValueError if there is no such version, or it bears the alias already."""
    tracking.connect()
    client, number, uri = mlflow.MlflowClient(), str(version), f"models:/{name}/{version}"
    try:
        client.get_model_version(name, number)
    except MlflowException as error:
        raise not_known(uri, error) from None
    before, _ = tracking.bearer(name, alias) or (None, {})
    if before == number:
        raise ValueError(f"{uri} is {alias} already: nothing to move")
    from_where = f"from version {before}" if before else "which no version had"
    told = f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}, by {getpass.getuser()}, {from_where}: {because}"
    client.set_model_version_tag(name, number, f"promoted/{alias}", told)
    client.set_registered_model_alias(name, alias, number)
    return f"{alias} of {name} is version {number} now, {from_where}: {because}"
