"""MLflow for a team (`infra/mlflow`): what its server says to whom, and what our commands make of it."""

import re

import pytest
from mlflow.exceptions import MlflowException
from mlflow_team import COMPOSE, VARIABLE

from pipelines.models import tracking_uri
from pipelines.refusal import not_known, remedy

PAGE = COMPOSE.with_name("README.md")
SAID = "API request to endpoint /api/2.0/mlflow/runs/get failed with error code {} != 200. Response body: {}"


@pytest.mark.parametrize(
    ("code", "body", "user", "wanted"),
    [
        (401, "You are not authenticated. Please see", "", "the server asks who you are: set MLFLOW_TRACKING_USERNAME"),
        (401, "You are not authenticated. Please see", "ada", "the server does not know user ada with this password"),
        (403, "Permission denied", "ada", "user ada may not do this there"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "ada", "a name it does not answer to"),
    ],
)
def test_a_refusal_says_what_is_wanted_and_not_that_the_server_be_started(code, body, user, wanted, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    error = MlflowException(SAID.format(code, repr(body)))
    assert wanted in remedy(error)
    told = str(not_known("models:/d4rt@champion", "https://mlflow.example.com", error))
    assert wanted in told and "start its server" not in told and "check name" not in told


@pytest.mark.parametrize("words", ["Max retries exceeded with url", SAID.format(500, "''"), "no model 403 there"])
def test_what_is_no_refusal_has_no_such_remedy(words):
    assert remedy(MlflowException(words)) is None


@pytest.mark.parametrize("uri", ["https://ada:secret@mlflow.example.com", "postgresql://mlflow:secret@host/mlflow"])
def test_a_password_in_the_uri_is_refused_and_not_repeated(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI has a password in it") as refused:
        tracking_uri()
    assert "secret" not in str(refused.value)


def test_the_page_names_every_variable_of_the_compose_file():
    block = re.search(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    told = set(re.findall(r"^(\w+)=", block, re.MULTILINE))
    used = {name: rule for name, rule, _ in VARIABLE.findall(COMPOSE.read_text())}
    assert told <= set(used)
    assert {name for name, rule in used.items() if rule != "-"} <= told
