"""A training run on Ray, the command's side; `train/worker.py` has what each worker does.

A run is a folder (see `train/run_folder.py`). If a worker dies, all restart from the last checkpoint; if the command
dies or is stopped, calling it again with the same --name goes on from there. Either way the run continues as if nothing
had happened: same weights, same clips, each logged step once. Other numbers of workers go on with the clips that come
next.
"""

import os
import re
import signal
import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace

import ray
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, ValidationConfig
from ray.train.torch import TorchTrainer

from pipelines import cluster
from pipelines.raw.place import absolute
from pipelines.store.reader import ClipStore
from train import curves, lease, run_folder, tracking
