"""The D4RT transformer: `D4RT` answers queries, `recipes` asks them, `checkpoints` keeps the weights.

What needs PyTorch is imported when it is first named, for PyTorch takes seconds: a command line knows `ModelConfig`
without it.
"""

from importlib import import_module
from typing import Any

from model.config import ModelConfig

HOMES = {
    "D4RT": "model.d4rt",
    "Memory": "model.d4rt",
    "Prediction": "model.decoder",
    "Queries": "model.queries",
    "load": "model.checkpoints",
}
ROOMS = ("checkpoints", "recipes")

__all__ = ["D4RT", "Memory", "ModelConfig", "Prediction", "Queries", "checkpoints", "load", "recipes"]


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return import_module(f"model.{name}")
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'model' has no attribute {name!r}")
