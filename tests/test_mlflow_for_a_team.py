"""MLflow for a team (`infra/mlflow`): what its server says to whom, and what our commands make of it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import psutil
import pytest
import requests
import torch
from mlflow.exceptions import MlflowException
from mlflow_team import COMPOSE, VARIABLE, Postgres, TeamServer, compose

from benchmarks.servers import BUCKET, free_ports
from model import D4RT, ModelConfig, checkpoints
from pipelines.models import load_model, tracking_uri
from pipelines.refusal import not_known, remedy
from train.__main__ import main

PAGE = COMPOSE.with_name("README.md")
SAID = "API request to endpoint /api/2.0/mlflow/runs/get failed with error code {} != 200. Response body: {}"
PASSWORDS = {"admin": "admin-admin-admin", "ada": "ada-ada-ada-ada", "bob": "bob-bob-bob-bob"}
SECRETS = {
    "POSTGRES_PASSWORD": "the-password-of-the-database",
    "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"],
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "the-key-that-signs-forms",
}
USERS, GRANT = "2.0/mlflow/users/create", "3.0/mlflow/users/permissions/grant"


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


@pytest.fixture(scope="module")
def team(s3_server) -> Iterator[tuple[TeamServer, Postgres]]:
    """The server and its database, with users ada and bob."""
    folder = Path(tempfile.mkdtemp(prefix="team-"))
    folder.chmod(0o755)  # the database is another user's
    for name in ("database", "mlflow"):
        (folder / name).mkdir()
    (port,) = free_ports(1)
    values = SECRETS | {
        "BUCKET": BUCKET,
        "HOSTS": f"mlflow.example.com,127.0.0.1:{port}",
        "ORIGINS": "https://mlflow.example.com",
        "AWS_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
        "MLFLOW_S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
    }
    try:
        with (
            Postgres(folder / "database", SECRETS["POSTGRES_PASSWORD"]) as database,
            TeamServer(folder / "mlflow", values, port, database) as server,
        ):
            for name in ("ada", "bob"):
                ask(server, "admin", USERS, username=name, password=PASSWORDS[name]).raise_for_status()
            yield server, database
    finally:
        mlflow.set_tracking_uri(None)
        shutil.rmtree(folder)


def ask(server: TeamServer, who: str, place: str, headers: dict[str, str] | None = None, **body) -> requests.Response:
    account = (who, PASSWORDS[who]) if who else None
    return requests.post(f"{server.uri}/api/{place}", json=body, auth=account, headers=headers, timeout=120)


@pytest.fixture
def run(monkeypatch, capfd) -> Callable[..., tuple[int, str]]:
    """`python -m train ...` of a user: its exit code, and all that it said."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # a busy machine is not what is tested here

    def run_as(who: str, words: str, password: str | None = None) -> tuple[int, str]:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", who)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password or PASSWORDS[who])
        code = main(words.split())
        shown = capfd.readouterr()
        return code, shown.out + shown.err

    return run_as


def refusal(ended: tuple[int, str]) -> str:
    code, said = ended
    assert code == 2, said
    assert "Traceback" not in said
    return said


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_server_of_the_compose_file_answers_its_users_by_its_own_names(team):
    server, _ = team
    assert subprocess.run([sys.executable, *server.health[1:]]).returncode == 0
    told = set(compose()["services"]["mlflow"]["environment"]) | {"PATH", "HOME"}
    assert set(psutil.Process(server.process.pid).environ()) <= told  # what works here works there
    assert not ask(server, "ada", USERS, username="eve", password="eve-eve-eve-eve").ok
    for who, headers, code in [
        ("", {}, 401),
        ("ada", {"Host": "mlflow.example.org"}, 403),
        ("ada", {"Host": "mlflow.example.com"}, 200),
        ("ada", {"Origin": "https://mlflow.example.com"}, 200),  # what a browser says of the own pages
        ("ada", {"Origin": "https://mlflow.example.org"}, 403),
    ]:
        assert ask(server, who, "2.0/mlflow/experiments/search", headers, max_results=1).status_code == code


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_one_registers_the_other_reads_and_is_refused_and_all_outlives_kills(team, run, tmp_path, monkeypatch):
    server, database = team
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = D4RT(replace(ModelConfig.preset("tiny"), encoder_layers=2, decoder_layers=1))
    checkpoints.save(model, tmp_path / "checkpoint")
    register = "register --checkpoint checkpoint --name"
    promote = "promote --name d4rt --version 1 --alias challenger --because better"

    def versions() -> list[tuple[str, str]]:
        return sorted((each.name, each.version) for each in mlflow.MlflowClient().search_model_versions())

    code, said = run("ada", f"{register} d4rt")
    assert code == 0, said
    assert "registered models:/d4rt/1, alias champion" in said
    assert "does not know user ada with this password" in refusal(run("ada", f"{register} d4rt", "another-password"))
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MLFLOW_TRACKING_URI", f"http://localhost:{server.port}")
        assert "a name it does not answer to" in refusal(run("ada", f"{register} d4rt"))

    assert "cannot be used to write experiment d4rt" in refusal(run("bob", f"{register} of-bob"))
    page = PAGE.read_text()
    assert USERS in page and GRANT in page
    (number,) = re.findall('"resource_id": "([0-9]+)"', page)
    assert mlflow.get_experiment_by_name("d4rt").experiment_id == number
    share = {"username": "bob", "resource_type": "experiment", "resource_id": number, "permission": "EDIT"}
    assert not ask(server, "bob", GRANT, **share).ok
    assert ask(server, "ada", GRANT, **share).ok

    runs = len(mlflow.search_runs(experiment_names=["d4rt"]))
    assert "cannot be used to write model d4rt" in refusal(run("bob", f"{register} d4rt"))
    assert "user bob may not do this there" in refusal(run("bob", promote))
    assert len(mlflow.search_runs(experiment_names=["d4rt"])) == runs
    assert versions() == [("d4rt", "1")]
    assert mlflow.MlflowClient().get_registered_model("d4rt").aliases == {"champion": "1"}
    weights = load_model("models:/d4rt@champion").state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert run("bob", f"{register} of-bob")[0] == 0

    server.kill()
    server.start()
    assert versions() == [("d4rt", "1"), ("of-bob", "1")]
    assert run("ada", promote)[0] == 0

    database.kill()
    assert "so nothing was begun" in refusal(run("ada", f"{register} d4rt"))
    database.start()
    assert versions() == [("d4rt", "1"), ("of-bob", "1")]


@pytest.mark.long
def test_no_secret_is_in_the_logs_or_on_a_command_line(team):
    server, database = team
    processes = psutil.Process(server.process.pid)
    shown = [server.log.read_text(), database.log.read_text()]
    shown += [" ".join(process.cmdline()) for process in [processes, *processes.children(recursive=True)]]
    for secret in {*PASSWORDS.values(), *SECRETS.values(), os.environ["AWS_SECRET_ACCESS_KEY"]}:
        assert not [text for text in shown if secret in text]
