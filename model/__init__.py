"""The D4RT transformer: `D4RT` answers queries, `recipes` asks them, `checkpoints` keeps the weights."""

from model import checkpoints, recipes
from model.checkpoints import load
from model.config import ModelConfig
from model.d4rt import D4RT, Memory
from model.decoder import Prediction
from model.queries import Queries

__all__ = ["D4RT", "Memory", "ModelConfig", "Prediction", "Queries", "checkpoints", "load", "recipes"]
