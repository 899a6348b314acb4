"""What Prometheus is told, and that the dashboard asks for nothing else."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from pipelines import telemetry

DASHBOARD = json.loads((Path(__file__).parent.parent / "infra/grafana-dashboard.json").read_text())
SERVED_SECONDS = 60  # Ray hands metrics on every ten


def test_the_dashboard_asks_for_what_there_is_and_for_all_of_it():
    asked = set()
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            (name,) = re.findall(r"ray_(d4rt_\w+)", target["expr"])
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) | set(
                re.findall(r"(\w+)=~", target["expr"])
            )
            assert labels <= set(telemetry.METRICS[name][1]), target
            asked.add(name)
    assert asked == telemetry.METRICS.keys()
    for variable in DASHBOARD["templating"]["list"][1:]:
        name, label = re.fullmatch(r"label_values\(ray_(\w+), (\w+)\)", variable["query"]).groups()
        assert label in telemetry.METRICS[name][1]


@pytest.mark.slow
def test_a_ray_node_serves_them_to_prometheus(ray_cluster):
    telemetry.show("job", {"done": 3, "failed": 1, "of no interest": 7}, job="a test")
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + SERVED_SECONDS
    while True:
        served = urllib.request.urlopen(url, timeout=10).read().decode()
        found = dict(re.findall(r'^ray_(d4rt_\w+)\{[^\n]*job="a test"[^\n]*\} (\S+)$', served, re.MULTILINE))
        if found or time.monotonic() > end:
            break
        time.sleep(0.5)
    assert found == {"d4rt_job_done": "3.0", "d4rt_job_failed": "1.0"}
