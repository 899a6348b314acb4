"""What MLflow knows of a registered model's versions, and what an evaluation leaves with one."""

import mlflow
import pytest

from pipelines.evaluation.benchmarks import load_benchmark
from pipelines.evaluation.benchmarks.job import version_tags
from pipelines.models import model_versions, tag_version


def test_all_versions_are_found_and_bear_the_scores(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    client.create_registered_model("rooms")
    for _ in range(2):
        client.create_model_version("rooms", source=str(tmp_path))
    assert model_versions("models:/rooms/*") == ["models:/rooms/1", "models:/rooms/2"]
    assert model_versions("models:/rooms/2") == ["models:/rooms/2"]
    with pytest.raises(ValueError, match="no model 'others'"):
        model_versions("models:/others/*")

    metrics = {
        "known_intrinsics": True,
        "scores": {"sintel": {"sim3.ate": 0.25}},
        "overall": None,
        "title": "Camera pose",
        "data": {"digest": "d"},
        "code": {"digest": "c"},
    }
    tag_version("models:/rooms/2", version_tags(load_benchmark("pose"), metrics, "s3://scores"))
    tags = client.get_model_version("rooms", "2").tags
    assert tags["benchmark/pose.known_intrinsics/sintel/sim3.ate"] == "0.25"
    assert '"out": "s3://scores"' in tags["benchmark/pose.known_intrinsics/about"]
    tag_version("checkpoint", {"a": "b"})  # is not registered: nothing to tag
