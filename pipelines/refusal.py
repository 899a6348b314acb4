"""What the errors mean that MLflow raises, and what is to be done: it tells of all with one exception."""

import os
import re

from pipelines.raw.place import NoRoom


def remedy(error: Exception) -> str | None:
    """In words, what to do about the answer of a server with passwords and names (infra/mlflow); None for any other
    error. MLflow tells of these only in the text of what it raises."""
    words = str(error)
    if "Invalid Host header" in words:
        return (
            "the server is called by a name it does not answer to; write MLFLOW_TRACKING_URI as its admin says, or let "
            "the admin add this name, with its port, to HOSTS (mlflow server --allowed-hosts)"
        )
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if re.search(r"error code 401|\b401 Client Error", words):
        known = f"the server does not know user {user} with this password" if user else "the server asks who you are"
        return f"{known}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if re.search(r"error code 403|\b403 Client Error", words):
        who = f"user {user}" if user else "you"
        return (
            f'{who} may not do this there: let its owner or the admin give permission (infra/mlflow/README.md, "Users")'
        )
    return None


def not_known(uri: str, registry: str, error: Exception) -> ValueError:
    """Why there is no model of the name `uri` in that registry."""
    words = str(error)
    if "No space left" in words:
        return NoRoom(f"the folder for temporary files (TMPDIR) is full: {uri} cannot be fetched; free some of it")
    if wanted := remedy(error):
        return ValueError(f"the registry {registry} does not hand out {uri} ({words}): {wanted}")
    if any(hint in words for hint in ("Max retries", "Connection", "timed out")):
        return ValueError(
            f"the registry {registry} gives no answer about {uri} ({words}): start its server, or set "
            "MLFLOW_TRACKING_URI to the registry that has it"
        )
    return ValueError(
        f"no model {uri!r} in the registry {registry} ({error}): check name, version and alias, or set "
        "MLFLOW_TRACKING_URI to the registry that has it"
    )
