"""Kubric's MOVi sets as TensorFlow Datasets keep them (dataset notes D3): one TFRecord shard per scene."""

from pathlib import Path

from pipelines.synthesize.kubric import RAW_FROM_SCENE, scene, write_shard
from pipelines.synthesize.scene import Scene

__all__ = ["RAW_FROM_SCENE", "folder", "scene", "write"]


def folder(index: int) -> str:
    """A file, in fact."""
    return f"analytic-train.tfrecord-{index:05d}-of-10000"


def write(scene: Scene, folder: Path) -> None:
    """Write a shard that holds one scene."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_shard([scene], folder)
