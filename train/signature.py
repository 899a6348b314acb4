"""What a registered model takes and gives, as MLflow writes it down: for `mlflow models serve`, and for people."""

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec


def signature(image_size: int) -> ModelSignature:
    """B clips of T frames, Q queries of each; -1 stands for any."""

    def tensor(name: str, dtype: type, *shape: int) -> TensorSpec:
        return TensorSpec(np.dtype(dtype), (-1, *shape), name)

    times = [tensor(name, np.int64, -1) for name in ("t_src", "t_tgt", "t_cam")]
    inputs = [
        tensor("video", np.uint8, -1, image_size, image_size, 3),
        tensor("aspect", np.float32),
        tensor("uv_norm", np.float32, -1, 2),
        *times,
    ]
    outputs = [
        tensor("xyz", np.float32, -1, 3),
        tensor("uv_tgt", np.float32, -1, 2),
        tensor("visible", np.bool_, -1),
        tensor("displacement", np.float32, -1, 3),
        tensor("normal", np.float32, -1, 3),
        tensor("confidence", np.float32, -1),
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def example(image_size: int) -> dict[str, np.ndarray]:
    """A grey clip of two frames, and where the middle of the first is seen in both."""
    return {
        "video": np.full((1, 2, image_size, image_size, 3), 128, np.uint8),
        "aspect": np.ones(1, np.float32),
        "uv_norm": np.full((1, 2, 2), 0.5, np.float32),
        "t_src": np.zeros((1, 2), np.int64),
        "t_tgt": np.array([[0, 1]]),
        "t_cam": np.array([[0, 1]]),
    }
