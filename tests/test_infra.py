"""`infra/`: every manifest fits its schema, every command in it the command line it is for, and no secret is in any."""

import copy
import gzip
import importlib
import importlib.util
import json
import re
import shlex
import string
import typing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import mlflow_team
import pytest
import yaml
from command_lines import commands_in, require_understood
from jsonschema import Draft7Validator, Draft202012Validator
from kustomized import rendered
from plane_store import write_plane_store
from ray.serve.schema import ServeDeploySchema
from shared_data import SHARED

ROOT = Path(__file__).parent.parent
INFRA = ROOT / "infra"
KUBERNETES = INFRA / "kubernetes"
JOBS = sorted((KUBERNETES / "jobs").glob("*.yaml"))
PAGES = sorted([*INFRA.rglob("*.md"), *(ROOT / "docs").glob("*.md")])
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def package_file(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported."""
    return Path(importlib.util.find_spec(package).origin).parent / path


def kuberay_schema(kind: str) -> dict[str, Any]:
    """Of the stored version of a KubeRay kind, with unknown fields refused, which the published one lets pass."""
    file = SHARED / f"kuberay/ray.io_{kind.lower()}s.yaml.gz"
    if not file.is_file():
        pytest.skip(f"KubeRay's schemas are not in {SHARED}")
    definition = yaml.load(gzip.decompress(file.read_bytes()), Loader=yaml.CSafeLoader)
    assert definition["spec"]["names"]["kind"] == kind
    (stored,) = [each for each in definition["spec"]["versions"] if each["storage"]]
    assert stored["name"] == "v1"
    return closed(stored["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(each) for key, each in schema.items()}
    open_to_all = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not open_to_all:
        inner["additionalProperties"] = False
    return inner


def problems(schema: dict[str, Any], document: Any) -> list[str]:
    found = Draft202012Validator(schema).iter_errors(document)
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in found]


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    return rendered(KUBERNETES)


def test_the_cluster_fits_kuberays_schema_and_a_misspelt_field_does_not(objects):
    schema, cluster = kuberay_schema("RayCluster"), objects["RayCluster"]
    assert cluster["apiVersion"] == "ray.io/v1"
    assert problems(schema, cluster) == []
    broken = copy.deepcopy(cluster)
    broken["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imge"] = "d4rt"
    assert "'imge' was unexpected" in problems(schema, broken)[0]


def test_the_jobs_fit_kuberays_schema_and_their_commands_the_command_line(objects, monkeypatch):
    """With the values of kustomization.yaml, as a shell on the head fills them in."""
    schema, values = kuberay_schema("RayJob"), objects["ConfigMap"]["data"]
    assert {path.stem for path in JOBS} == {"convert", "train", "evaluate", "infer"}
    for path in JOBS:
        job = yaml.safe_load(path.read_text())
        assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
        assert problems(schema, job) == []
        assert job["metadata"]["namespace"] == objects["RayCluster"]["metadata"]["namespace"]
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": objects["RayCluster"]["metadata"]["name"]}
        command = string.Template(job["spec"]["entrypoint"]).substitute(values)  # KeyError for one without a value
        assert path.stem in command
        require_understood(command)


@pytest.mark.parametrize("kind", ["Namespace", "NetworkPolicy", "ConfigMap"])
def test_what_is_kubernetes_own_fits_its_schema(kind, objects):
    kubernetes_validate.validate(objects[kind], "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(objects[kind] | {"spce": {}}, "1.33", strict=True)


def test_the_cluster_is_closed_and_its_sizes_fit_each_other(objects):
    spec, values = objects["RayCluster"]["spec"], objects["ConfigMap"]["data"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == version("ray")
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for template in [spec["headGroupSpec"]["template"], *(group["template"] for group in groups.values())]:
        (container,) = template["spec"]["containers"]
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        assert container["securityContext"] == RESTRICTED == spec["autoscalerOptions"]["securityContext"]
        assert container["image"] == "registry.example.com/d4rt:0.1.0"
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        secrets = [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source]
        assert secrets == ["d4rt-credentials"]
    gpu = groups["gpu"]
    gpus = int(gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert gpu["minReplicas"] == gpu["maxReplicas"] == int(values["GPU_NODES"])
    assert gpus * gpu["maxReplicas"] == int(values["WORKERS"]) >= int(values["MIN_WORKERS"])
    assert groups["cpu"]["maxReplicas"] == int(values["MAX_CPU_NODES"]) > groups["cpu"]["minReplicas"] == 0


def test_the_service_fits_kuberays_schema_and_its_application_what_serves_it():
    schema, objects = kuberay_schema("RayService"), rendered(KUBERNETES / "service")
    service, cluster = objects["RayService"], rendered(KUBERNETES)["RayCluster"]
    assert service["apiVersion"] == "ray.io/v1" and problems(schema, service) == []
    assert problems(schema, service | {"spec": service["spec"] | {"serveConfig": ""}})
    kubernetes_validate.validate(objects["NetworkPolicy"], "1.33", strict=True)

    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, name = application.import_path.split(":")
    settings = typing.get_type_hints(getattr(importlib.import_module(module), name))["settings"](**application.args)

    spec = service["spec"]["rayClusterConfig"]
    (gpu,) = spec["workerGroupSpecs"]
    assert settings.replicas == gpu["replicas"] == gpu["minReplicas"] == gpu["maxReplicas"]
    assert spec["authOptions"] == {"mode": "token"} and spec["rayVersion"] == version("ray")
    image = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    for template in (spec["headGroupSpec"]["template"], gpu["template"]):
        (container,) = template["spec"]["containers"]
        assert template["spec"]["securityContext"]["runAsNonRoot"] and container["securityContext"] == RESTRICTED
        assert container["image"] == image
        assert {"name": "serve", "containerPort": config.http_options.port} in container["ports"]
    (rule,) = objects["NetworkPolicy"]["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": config.http_options.port}]


def image_steps() -> list[tuple[str, str]]:
    """Instruction and what follows it, of each step of the image."""
    lines = [line for line in (INFRA / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines()]


def test_the_image_takes_what_exists_and_ends_as_nobody():
    steps = image_steps()
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["1000"]
    assert steps.index(("USER", "1000")) < next(place for place, step in enumerate(steps) if step[0] == "COPY")
    listed = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    taken = {line.removeprefix("!") for line in listed if line.startswith("!")}
    assert taken >= {"constraints.txt", "pyproject.toml", "catalogs", "model", "pipelines", "train"}
    assert all((ROOT / name).exists() for name in taken)
    (command,) = [json.loads(rest) for word, rest in steps if word == "CMD"]
    assert command == ["python", "-m", "pipelines", "--help"]
    for _, rest in steps:
        for install in re.findall(r"(?:uv )?pip install[^&]*", rest):
            assert "--constraint constraints.txt" in install


def test_the_image_has_what_others_call_in_it():
    """The slim base has neither: KubeRay's probe of a node that serves is a `wget`, torch.compile looks for g++."""
    (installed,) = re.findall(r"apt-get install ([^&]*)", " ".join(rest for _, rest in image_steps()))
    assert set(installed.split()) >= {"g++", "wget"}


def test_every_build_argument_of_a_page_is_one_of_the_image():
    known = {rest.partition("=")[0] for word, rest in image_steps() if word == "ARG"}
    told = re.findall(r"--build-arg (\w+)=", "".join(file.read_text() for file in [INFRA / "Dockerfile", *PAGES]))
    assert set(told) == known


def test_the_machines_fit_rays_schema():
    """The one that `ray up` checks a cluster file against."""
    schema = json.loads(package_file("ray", "autoscaler/ray-schema.json").read_text())
    cluster = yaml.safe_load((INFRA / "vm-cluster.yaml").read_text())
    assert problems(schema, cluster) == []
    assert problems(schema, cluster | {"max_worker": 3})
    kinds = cluster["available_node_types"]
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) <= cluster["max_workers"]
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert len([start for start in starts if "ray start" in start and start.startswith("RAY_AUTH_MODE=token")]) == 2
    for start in starts:
        require_understood(start.replace("~/venv/bin/", "").replace("$RAY_HEAD_IP", "10.0.0.1"))


def test_rays_own_reader_takes_the_runtime_environment():
    from ray._private.runtime_env.uv import _expand_env_vars
    from ray.runtime_env import RuntimeEnv

    environment = RuntimeEnv(**yaml.safe_load((INFRA / "runtime-env.yaml").read_text()))
    (package,) = environment["uv"]["packages"]
    options = environment["uv"]["uv_pip_install_options"]
    here = {"RAY_RUNTIME_ENV_CREATE_WORKING_DIR": str(ROOT)}
    assert _expand_env_vars(package, here) == f"-e {ROOT}[jobs]"
    assert Path(_expand_env_vars(options[1], here)).samefile(ROOT / "constraints.txt")
    assert int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def test_compose_fits_its_schema_and_its_server_mlflows_command_line():
    compose = mlflow_team.compose()
    schema = json.loads(package_file("check_jsonschema", "builtin_schemas/vendor/compose-spec.json").read_text())
    validator = Draft7Validator if "draft-07" in schema["$schema"] else Draft202012Validator
    assert [error.message for error in validator(schema).iter_errors(compose)] == []
    assert list(validator(schema).iter_errors(compose | {"servces": {}}))

    given = {"BUCKET": "b", "HOSTS": "mlflow.example.com", "ORIGINS": "https://mlflow.example.com"}
    command = mlflow_team.filled(compose["services"]["mlflow"]["command"], given)
    require_understood(command)
    require_closed(shlex.split(command))


def test_the_chart_starts_a_server_that_mlflow_understands():
    values = yaml.safe_load((INFRA / "mlflow/helm-values.yaml").read_text())
    options = values["server"]["value_options"]
    command = ["mlflow", "server", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]
    require_understood(shlex.join(command))
    require_closed(" ".join(command).replace("=", " ").split())
    assert values["image"]["tag"] == f"v{version('mlflow')}-full"
    for entry in values["env"]:
        assert not re.search("PASSWORD|SECRET|KEY", entry["name"]) or "secretKeyRef" in entry["valueFrom"]


def require_closed(words: list[str]) -> None:
    """An MLflow server that asks for a password and answers to its own names alone."""
    assert words[words.index("--app-name") + 1] == "basic-auth"
    assert "*" not in words[words.index("--allowed-hosts") + 1]
    assert "--disable-security-middleware" not in words


def test_no_secret_is_in_any_file():
    """Whatever is called like one is a reference: to a variable, a secret of Kubernetes, or a file of the user's."""
    for service in mlflow_team.compose()["services"].values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY", name):
                assert re.fullmatch(r"\$\{\w+(:\?[^}]+)?\}", value), name
    for path in INFRA.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|eyJ[A-Za-z0-9_-]{20}|://[^/\s:$]+:[^$@\s/]+@", text), (
                path
            )
            assert "kind: Secret" not in text, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_understood(page):
    for command in commands_in(page):
        require_understood(command.replace(" scans ", " tartanair "))  # what docs/your_dataset.md makes


def test_every_link_of_a_page_leads_somewhere():
    for page in [*PAGES, ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{target} in {page}"


def test_the_python_of_the_page_on_formats_reads_a_store(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/formats.md").read_text(), re.MULTILINE | re.DOTALL)
    write_plane_store(tmp_path / "clips/rooms", clips=2, frames=4)
    monkeypatch.chdir(tmp_path)
    exec(code, found := {})
    assert found["world_from_cam"].shape == (4, 4, 4)
