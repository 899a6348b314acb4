"""The query service without Ray Serve: what it holds, what it answers together, what it refuses and how."""

import json
import threading
import weakref
from collections import Counter
from dataclasses import replace
from http import HTTPStatus

import msgpack
import numpy as np
import pytest
import torch

from benchmarks.servers import free_ports
from model import D4RT, ModelConfig, Queries, checkpoints
from model.decoder import Prediction
from pipelines import cluster
from pipelines.pictures.video_file import write_video
from pipelines.serve import serve
from pipelines.service.batches import Batches
from pipelines.service.clips import Clips, bytes_of
from pipelines.service.footage import Chosen, read_clip
from pipelines.service.limits import Places, Refusal, clip_bytes, held_bytes
from pipelines.service.router import home
from pipelines.service.wire import JSON, MSGPACK, answered, read_questions, write_answers

TINY = replace(ModelConfig.preset("tiny"), clip_frames=8, image_size=32)


@pytest.fixture(scope="module")
def model() -> D4RT:
    torch.manual_seed(0)
    return D4RT(TINY).eval()


@torch.no_grad()
def encoded(model: D4RT, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (1, 8, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return model.encode(video, torch.ones(1))


def some_queries(count: int, seed: int = 0) -> Queries:
    generator = torch.Generator().manual_seed(seed)
    times = (torch.randint(0, 8, (1, count), generator=generator) for _ in range(3))
    return Queries(torch.rand(1, count, 2, generator=generator), *times)


def test_what_is_held_has_a_bound_in_bytes_and_the_memory_of_the_oldest_is_given_back(model):
    memories = [encoded(model, seed) for seed in range(4)]
    one = bytes_of(memories[0])
    assert one == clip_bytes(TINY)  # known before any clip is encoded
    clips = Clips(3 * one)
    gone = weakref.ref(memories[1])
    for number in range(3):
        clips.put(f"clip{number}", memories[number])
    clips.get("clip0")  # asked about last: clip1 is the oldest now
    clips.put("clip3", memories[3])
    memories.clear()
    assert gone() is None and "clip1" not in clips and len(clips) == 3 and clips.bytes == 3 * one
    clips.put("clip3", encoded(model, 3))  # the same once more
    clips.drop("clip0")
    clips.drop("nothing")
    assert len(clips) == 2 and clips.bytes == 2 * one
    with pytest.raises(Refusal, match="no clip clip1 is held, or not any more: send the video again") as refused:
        clips.get("clip1")
    assert refused.value.status == 404 and refused.value.headers == {}


def test_a_device_must_have_room_for_one_clip():
    assert held_bytes(0.001, TINY, 0) == 1_000_000 and held_bytes(None, TINY, 8_000_000) == 4_000_000
    with pytest.raises(ValueError, match=r"a clip of this model takes \S+ GB .* 1e-06 GB for clips: .*--memory-gb"):
        held_bytes(1e-6, TINY, 1 << 40)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"replicas": 0}, "--replicas 0 must be at least 1"),
        ({"memory_gb": -1.0}, "--memory-gb -1 must be above 0"),
        ({"port": 70000}, "--port 70000 must be from 1 to 65535"),
        ({"memory_gb": 1e-6}, "a clip of this model takes .*: give more with --memory-gb"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_served_is_refused_before_ray_starts(model, tmp_path, monkeypatch, options, words):
    checkpoints.save(model, tmp_path / "checkpoint")
    monkeypatch.setattr(cluster, "connect", lambda: pytest.fail("Ray starts"))
    with pytest.raises(ValueError, match=words):
        serve(**{"model": str(tmp_path / "checkpoint"), "port": free_ports(1)[0]} | options)


def test_what_comes_while_the_model_is_busy_is_answered_together_and_each_gets_its_own(model):
    """Six ask about clip a and one about b while the model is kept busy: three decodes, of which b's is the second."""
    memories, decoded = {"a": encoded(model, 0), "b": encoded(model, 1)}, []

    @torch.no_grad()
    def answer(clip: str, queries: Queries) -> Prediction:
        decoded.append((clip, len(queries)))
        return model.decode(memories[clip], queries)

    batches, go_on = Batches(answer, batch=50, waiting=1000), threading.Event()
    batches.alone(go_on.wait)
    asked = [("a", some_queries(10, 0)), ("b", some_queries(7, 1)), *(("a", some_queries(10, k)) for k in range(2, 7))]
    futures = [batches.ask(clip, queries) for clip, queries in asked]
    assert batches.waiting == 67
    go_on.set()
    for (clip, queries), future in zip(asked, futures, strict=True):
        got = future.result(timeout=30)
        with torch.no_grad():
            expected = model.decode(memories[clip], queries)
        torch.testing.assert_close(got.xyz, expected.xyz, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.visible_logit, expected.visible_logit, rtol=1e-4, atol=1e-4)
    assert decoded == [("a", 50), ("b", 7), ("a", 10)] and batches.waiting == 0


def test_too_much_that_waits_is_refused_and_what_was_given_up_is_not_answered():
    decoded, go_on = [], threading.Event()

    def answer(clip: str, queries: Queries) -> Prediction:
        decoded.append(len(queries))
        raise RuntimeError("the device is gone")

    batches = Batches(answer, batch=100, waiting=20)
    batches.alone(go_on.wait)
    given_up, failed = batches.ask("a", some_queries(8)), batches.ask("b", some_queries(9))
    with pytest.raises(Refusal, match="17 queries wait already: try again in a moment") as refused:
        batches.ask("a", some_queries(4))
    assert refused.value.status == 429 and refused.value.headers == {"Retry-After": "1"}
    given_up.cancel()
    go_on.set()
    with pytest.raises(RuntimeError, match="the device is gone"):
        failed.result(timeout=30)
    assert decoded == [9] and batches.waiting == 0
    assert batches.alone(lambda: "still works").result(timeout=30) == "still works"


def test_places_are_refused_when_none_is_free():
    places = Places(1, "1 video is read")
    with places.taken(), pytest.raises(Refusal, match="1 video is read: try again"), places.taken():
        pass
    with pytest.raises(ZeroDivisionError), places.taken():
        raise ZeroDivisionError
    with places.taken():
        pass


GOOD = {"uv_norm": [[0.25, 0.5], [0.5, 0.75]], "t_src": [0, 1], "t_tgt": [2, 3], "t_cam": 0}


def test_json_and_messagepack_ask_the_same_and_are_answered_alike():
    packed = {
        "uv_norm": np.array(GOOD["uv_norm"], "<f4").tobytes(),
        "t_src": np.array([0, 1], "<i4").tobytes(),
        "t_tgt": np.array([2, 3], "<i4").tobytes(),
        "t_cam": 0,
    }
    for body, kind in ((json.dumps(GOOD).encode(), JSON), (msgpack.packb(packed), MSGPACK)):
        queries = read_questions(body, kind, 2)
        assert queries.uv_norm.tolist() == [GOOD["uv_norm"]] and queries.uv_norm.dtype == torch.float32
        assert queries.t_src.tolist() == [[0, 1]] and queries.t_tgt.tolist() == [[2, 3]]
        assert queries.t_cam.tolist() == [[0, 0]]
    channels = torch.arange(26, dtype=torch.float32).view(1, 2, 13)
    answers = answered(Prediction.from_channels(channels))
    told = json.loads(write_answers(answers, JSON))
    assert told["xyz"] == [[0, 1, 2], [13, 14, 15]] and told["uv_norm"] == [[3, 4], [16, 17]]
    assert told["visible"] == [True, True] and told["displacement"] == [[6, 7, 8], [19, 20, 21]]
    binary = msgpack.unpackb(write_answers(answers, MSGPACK))
    assert np.frombuffer(binary["xyz"], "<f4").tolist() == [0, 1, 2, 13, 14, 15]
    assert np.frombuffer(binary["visible"], "?").tolist() == [True, True] and binary.keys() == told.keys()


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"{", JSON, "the body is no application/json"),
        (b"[" * 100_000, JSON, "the body is no application/json"),
        (b"\xc1", MSGPACK, "the body is no application/msgpack"),
        (b"\x91" * 100_000, MSGPACK, "the body is no application/msgpack"),
        (b"{}", "text/plain", "Content-Type is text/plain: send application/json or application/msgpack"),
        (b"", "", "Content-Type is missing"),
        (b"[]", JSON, "a question has the fields uv_norm, t_src, t_tgt, t_cam, and no other"),
        (json.dumps(GOOD | {"t_far": 1}).encode(), JSON, "and no other"),
        (json.dumps(GOOD | {"uv_norm": [[0, 1], [0]]}).encode(), JSON, "uv_norm is no array"),
        (
            json.dumps(GOOD | {"uv_norm": [[0, 1, 2]]}).encode(),
            JSON,
            r"uv_norm has shape \(1, 3\): it must be",
        ),
        (json.dumps(GOOD | {"uv_norm": "all"}).encode(), JSON, "uv_norm must be numbers, u and v from 0 to 1"),
        (json.dumps(GOOD | {"uv_norm": 0.5}).encode(), JSON, r"uv_norm has shape \(\)"),
        (json.dumps(GOOD | {"uv_norm": []}).encode(), JSON, r"uv_norm has shape \(0,\)"),
        (json.dumps(GOOD | {"t_src": [0, 1.5]}).encode(), JSON, "t_src must be whole numbers, frames from 0"),
        (json.dumps(GOOD | {"t_src": [0, True]}).encode()[:-1] + b', "t_src": true}', JSON, "t_src must be whole"),
        (json.dumps(GOOD | {"t_src": [10**30, 0]}).encode(), JSON, "t_src must be whole numbers"),
        (json.dumps(GOOD | {"t_src": [0, 1, 2]}).encode(), JSON, r"t_src has shape \(3,\): give 2 frames"),
        (json.dumps(GOOD | {"uv_norm": [[0.5, 0.5]] * 3}).encode(), JSON, "3 queries: from 1 to 2 can be asked"),
        (msgpack.packb(GOOD | {"uv_norm": bytes(7)}), MSGPACK, "uv_norm is no array"),
        (msgpack.packb(GOOD | {"uv_norm": b""}), MSGPACK, "0 queries"),
    ],
)
def test_a_question_that_is_none_is_refused_in_words(body, kind, words):
    with pytest.raises(Refusal, match=words) as refused:
        read_questions(body, kind, 2)
    assert refused.value.status == 422


def test_a_video_becomes_a_clip_and_what_is_none_is_refused_in_words(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (12, 24, 40, 3), dtype=np.uint8)
    write_video(tmp_path / "v.mp4", frames, 10.0)
    video = (tmp_path / "v.mp4").read_bytes()
    clip, size = read_clip(video, Chosen(1, 2, 4), TINY)
    every, _ = read_clip(video, Chosen(1, 1, 7), TINY)
    assert clip.shape == (4, 32, 32, 3) and size == (24, 40)
    np.testing.assert_array_equal(clip, every[::2])
    np.testing.assert_array_equal(
        read_clip(video, Chosen(step=2), TINY)[0][1:3], read_clip(video, Chosen(2, 2, 2), TINY)[0]
    )

    damaged = bytearray(video)
    damaged[len(video) // 3 : len(video) // 2] = bytes(len(video) // 2 - len(video) // 3)
    for body, chosen, words in (
        (b"", Chosen(), "the video is empty"),
        (b"{}" * 50, Chosen(), "the video cannot be read as a video"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), Chosen(), "the video is one image"),
        (bytes(damaged), Chosen(step=2), "the video"),
        (video, Chosen(), "more than the 8 frames that the model takes: choose with start, step and frames"),
        (video, Chosen(frames=9), "more than the 8 frames that the model takes"),
        (video, Chosen(10, 1, 4), "the video has 12 frames, of which start 10 and step 1 leave 2: at least 4"),
        (video, Chosen(50), "leave 0: at least 2 are needed"),
        (b"#EXTM3U\nfile:///etc/passwd\n", Chosen(), "the video cannot be read as a video"),
    ):
        with pytest.raises(Refusal, match=words) as refused:
            read_clip(body, chosen, TINY)
        assert refused.value.status == HTTPStatus.UNPROCESSABLE_ENTITY


def test_an_id_is_of_the_content_and_of_what_is_taken_of_it():
    ids = {Chosen(*what).clip_id(body) for body in (b"a", b"b") for what in ((0, 1, None), (1, 1, None), (0, 2, 4))}
    assert len(ids) == 6 and all(len(each) == 32 for each in ids)
    assert Chosen().clip_id(b"a") in ids


def test_clips_are_spread_evenly_and_only_those_of_a_replica_that_is_gone_move():
    replicas, ids = ["r1", "r2", "r3", "r4"], [f"clip{number}" for number in range(2000)]
    before = {clip: home(clip, replicas) for clip in ids}
    after = {clip: home(clip, ["r4", "r2", "r3"]) for clip in ids}  # in any order
    assert all(400 < count < 600 for count in Counter(before.values()).values())
    assert {clip for clip in ids if before[clip] != after[clip]} == {clip for clip in ids if before[clip] == "r1"}
