"""Questions and answers as they travel: JSON with lists, or MessagePack with the bytes of arrays (docs/service.md)."""

import json
from typing import Any

import msgpack
import numpy as np
import torch
from jaxtyping import Shaped

from model import Queries
from model.decoder import Prediction
from pipelines.service.limits import wrong

JSON, MSGPACK = "application/json", "application/msgpack"
TIMES = ("t_src", "t_tgt", "t_cam")
ASKED = {"uv_norm": ("<f4", 2)} | dict.fromkeys(TIMES, ("<i4", 1))
"""Of each array, what its numbers are in MessagePack, and how many a query has."""

Arrays = dict[str, Shaped[np.ndarray, "..."]]


def read_questions(body: bytes, kind: str, most: int) -> Queries:
    """(1, Q, ...) as they were asked; that they fit the clip is not known here. `Refusal` (422) for what is none.

    A number in place of a list of times stands for all.
    """
    content = _unpacked(body, kind)
    if not isinstance(content, dict) or content.keys() != ASKED.keys():
        raise wrong(f"a question has the fields {', '.join(ASKED)}, and no other")
    arrays = {name: _array(name, content[name], *ASKED[name]) for name in ASKED}
    count = len(arrays["uv_norm"])
    if not 1 <= count <= most:
        raise wrong(f"{count} queries: from 1 to {most} can be asked at once")
    for name in TIMES:
        if arrays[name].shape not in ((), (count,)):
            raise wrong(f"{name} has shape {arrays[name].shape}: give {count} frames, one for each uv_norm, or one")
    uv_norm = torch.from_numpy(arrays["uv_norm"].astype(np.float32))
    times = (torch.from_numpy(np.broadcast_to(arrays[name], count).astype(np.int64)) for name in TIMES)
    return Queries(*(tensor[None] for tensor in (uv_norm, *times)))


def _unpacked(body: bytes, kind: str) -> Any:
    try:
        if kind == MSGPACK:
            return msgpack.unpackb(body)
        if kind == JSON:
            return json.loads(body)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise wrong(f"the body is no {kind} ({error})") from None
    raise wrong(f"Content-Type is {kind or 'missing'}: send {JSON} or {MSGPACK}")


def _array(name: str, value: Any, dtype: str, width: int) -> Shaped[np.ndarray, "..."]:
    """Numbers, (Q, 2) for positions, (Q,) or () for times."""
    try:
        array = np.frombuffer(value, dtype) if isinstance(value, bytes) else np.array(value)
        array = array.reshape(-1, width) if isinstance(value, bytes) and width > 1 else array
    except ValueError as error:
        raise wrong(f"{name} is no array ({error})") from None
    whole = width == 1
    if array.dtype.kind not in ("iu" if whole else "iuf"):
        raise wrong(f"{name} must be {'whole numbers, frames from 0' if whole else 'numbers, u and v from 0 to 1'}")
    if not whole and (array.ndim != 2 or array.shape[1] != width):
        raise wrong(f"{name} has shape {array.shape}: it must be (Q, {width}), u and v of each query")
    return array


def answered(prediction: Prediction) -> Arrays:
    """What is told of (1, Q, ...) answers, each (Q, ...)."""
    told = {
        "xyz": prediction.xyz,
        "uv_norm": prediction.uv_tgt,
        "visible": prediction.visible,
        "confidence": prediction.confidence,
        "displacement": prediction.displacement,
        "normal": prediction.normal,
    }
    return {name: tensor[0].cpu().numpy() for name, tensor in told.items()}


def write_answers(answers: Arrays, kind: str) -> bytes:
    """As the question came."""
    if kind == MSGPACK:
        return msgpack.packb({name: array.tobytes() for name, array in answers.items()})
    return json.dumps({name: array.tolist() for name, array in answers.items()}, allow_nan=False).encode()
