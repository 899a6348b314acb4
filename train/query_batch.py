"""What the model is trained on: B clips, Q queries of each, and the true answers."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from model import Queries
from pipelines.query_table import FLAG_BITS, VALID_BITS


@dataclass(frozen=True, kw_only=True)
class QueryBatch:
    """B clips with Q queries each: what is asked, and the true answers. Targets are 0 where they are not known."""

    video: UInt8[Tensor, "B T S S 3"]
    """RGB."""
    aspect: Float32[Tensor, "B"]
    """Width / height of the raw frames."""
    uv_norm: Float32[Tensor, "B Q 2"]
    """Where the point is in frame t_src, from 0 to 1; u to the right."""
    t_src: Int64[Tensor, "B Q"]
    """The frame in which the point is pointed at."""
    t_tgt: Int64[Tensor, "B Q"]
    """The time at which we want to know it."""
    t_cam: Int64[Tensor, "B Q"]
    """The frame whose camera expresses xyz, displacement and normal."""
    xyz: Float32[Tensor, "B Q 3"]
    """The point at t_tgt, in the dataset's unit."""
    uv_tgt: Float32[Tensor, "B Q 2"]
    """Its projection into frame t_tgt, from 0 to 1."""
    visible: Bool[Tensor, "B Q"]
    """Seen in frame t_tgt."""
    displacement: Float32[Tensor, "B Q 3"]
    """The point at t_tgt minus the point at t_src."""
    normal: Float32[Tensor, "B Q 3"]
    """Of its surface at t_tgt, unit length, towards the camera that saw it at t_src."""
    xyz_valid: Bool[Tensor, "B Q"]
    """xyz is known; likewise below."""
    uv_tgt_valid: Bool[Tensor, "B Q"]
    visible_valid: Bool[Tensor, "B Q"]
    displacement_valid: Bool[Tensor, "B Q"]
    normal_valid: Bool[Tensor, "B Q"]
    edge: Bool[Tensor, "B Q"]
    """Next to a depth or motion edge."""
    dynamic: Bool[Tensor, "B Q"]
    """On something that moves."""
    dataset: Int64[Tensor, "B"]
    """Which of `datasets` each clip is from."""
    datasets: tuple[str, ...]
    """Names of all datasets of the mixture."""

    @property
    def queries(self) -> Queries:
        return Queries(self.uv_norm, self.t_src, self.t_tgt, self.t_cam)

    def to(self, device: torch.device | str) -> "QueryBatch":
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def parts(self, count: int) -> "list[QueryBatch]":
        """The clips in `count` batches of equal size, as views."""
        size = len(self.aspect) // count
        return [self.map(lambda tensor, i=i: tensor[i * size : (i + 1) * size]) for i in range(count)]

    def map(self, function: Callable[[Tensor], Tensor]) -> "QueryBatch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "datasets"}
        return type(self)(**{name: function(tensor) for name, tensor in tensors.items()}, datasets=self.datasets)

    @classmethod
    def from_columns(cls, columns: dict[str, np.ndarray | Tensor], datasets: tuple[str, ...]) -> "QueryBatch":
        """From what `read_clip` gives of several clips, and `dataset`. Tensors are views of it where they can be."""
        tensors = {name: torch.as_tensor(column) for name, column in columns.items()}
        valid, flags = tensors.pop("valid"), tensors.pop("flags")
        for name in ("t_src", "t_tgt", "t_cam"):
            tensors[name] = tensors[name].long()
        tensors["normal"] = tensors["normal"].float()
        tensors |= {f"{name}_valid": valid & bit > 0 for name, bit in VALID_BITS.items()}
        tensors |= {name: flags & bit > 0 for name, bit in FLAG_BITS.items()}
        return cls(**tensors, datasets=datasets)
