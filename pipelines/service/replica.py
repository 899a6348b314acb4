"""A model with the clips it has encoded: encodes, answers, and says no in words."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8

from model import Queries
from model.chunks import free_memory
from model.decoder import Prediction
from pipelines.models import load_model
from pipelines.service.batches import Batches
from pipelines.service.clips import Clips
from pipelines.service.limits import Limits, Refusal, busy, held_bytes, wrong
from pipelines.service.wire import Arrays, answered
from pipelines.telemetry import show

Done = TypeVar("Done")


class Answerer:
    """What a replica is. What cannot be done comes back as a `Refusal`, which Ray Serve would log as a failure if it
    were raised."""

    def __init__(self, model: str, registry: str, memory_gb: float | None, limits: Limits) -> None:
        """`memory_gb`: what encoded clips may take together; None: half of what is free. ValueError if the model cannot
        be loaded, or no clip of it be held."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_model(model, device, registry=registry)
        self._clips = Clips(held_bytes(memory_gb, self._model.config, free_memory(self._model.device)))
        self._limits = limits
        self._batches = Batches(self._answer, limits.batch, limits.waiting)
        self._encoding = 0
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    async def holds(self, clip: str) -> bool:
        return clip in self._clips

    async def encode(self, clip: str, frames: UInt8[np.ndarray, "T S S 3"], aspect: float) -> Refusal | None:
        """Hold it from now on. `aspect`: width / height of the frames before they were resized."""
        return await _told(self._encode_in_turn(clip, frames, aspect))

    async def ask(self, clip: str, queries: Queries) -> Refusal | Arrays:
        """The answers to (1, Q, ...) queries, each (Q, ...)."""
        return await _told(self._ask(clip, queries))

    async def drop(self, clip: str) -> None:
        """Hold it no longer."""
        self._clips.drop(clip)

    def check_health(self) -> None:
        """Asked by Ray Serve, which starts another replica if the device answers no more."""
        float(torch.ones(1, device=self._model.device).sum())
        self._show()

    async def _encode_in_turn(self, clip: str, frames: np.ndarray, aspect: float) -> None:
        if self._encoding >= self._limits.videos:
            raise busy(f"{self._encoding} videos wait to be encoded already")
        self._encoding += 1
        try:
            await asyncio.wrap_future(self._batches.alone(self._encode, clip, frames, aspect))
        finally:
            self._encoding -= 1

    async def _ask(self, clip: str, queries: Queries) -> Arrays:
        memory = self._clips.get(clip)
        try:
            queries.check_range(memory.num_frames)
        except ValueError as error:
            raise wrong(str(error)) from None
        return answered(await asyncio.wrap_future(self._batches.ask(clip, queries)))

    @torch.inference_mode()
    def _encode(self, clip: str, frames: np.ndarray, aspect: float) -> None:
        if clip in self._clips:  # by now: two have sent it at the same time
            return
        began, device = time.monotonic(), self._model.device
        video = torch.from_numpy(frames.copy())[None].to(device)  # Ray's arrays are read-only
        self._clips.put(clip, self._model.encode(video, torch.tensor([aspect], device=device)))
        self._show(encode_seconds=time.monotonic() - began)

    @torch.inference_mode()
    def _answer(self, clip: str, queries: Queries) -> Prediction:
        began = time.monotonic()
        answers = self._model.decode(self._clips.get(clip), queries.to(self._model.device))
        answers = Prediction(*(tensor.cpu() for tensor in vars(answers).values()))
        self._show(batch_queries=len(queries), batch_seconds=time.monotonic() - began)
        return answers

    def _show(self, **measured: float) -> None:
        held = {"clips": len(self._clips), "clip_bytes": self._clips.bytes, "waiting": self._batches.waiting}
        show("service", held | measured, replica=self._name)


async def _told(work: Awaitable[Done]) -> Done | Refusal:
    try:
        return await work
    except Refusal as refusal:
        return refusal
