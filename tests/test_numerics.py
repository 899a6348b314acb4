"""The switches for speed and memory change no numbers, and gradients are what calculus says."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_model import assert_identical, assert_same, lively, random_queries, random_video
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import D4RT, ModelConfig, Prediction, Queries, chunks, encoder
from model.encoder import FeedForward, SelfAttention

CONFIG = replace(ModelConfig.preset("tiny"), image_size=32, decoder_width=64)
FRAMES, QUERIES = 4, 50


def answers(model: D4RT, queries: Queries | None = None) -> Prediction:
    return model(random_video(FRAMES, size=32), torch.tensor([1.5]), queries or random_queries(QUERIES, FRAMES))


def loss_of(prediction: Prediction) -> Tensor:
    """A smooth function of every answer, none of which counts like another."""
    generator = torch.Generator().manual_seed(2)
    return sum((x * torch.randn(x.shape, generator=generator).to(x)).mean() for x in vars(prediction).values())


def gradients(model: D4RT) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(3)  # of dropout
    loss_of(answers(model)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def saved_bytes(function: Callable[[], object]) -> int:
    """What autograd keeps for the backward pass, parameters left out."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    del result
    return sum(kept.values())


def test_gradients_agree_with_difference_quotients_in_float64():
    model = lively(CONFIG).double().train()
    analytic = gradients(model)
    generator = torch.Generator().manual_seed(4)
    parts = ("encoder.patch_embed", "encoder.blocks.0", "encoder.blocks.3", "aspect_proj", "query_embedder", "decoder")
    for part in parts:
        direction = {
            name: torch.randn(x.shape, generator=generator).double()
            for name, x in model.named_parameters()
            if name.startswith(part)
        }
        slope = sum((analytic[name] * step).sum() for name, step in direction.items())
        values, width = [], 1e-6
        for sign in (1, -2, 1):  # there, the other way, and back
            with torch.no_grad():
                for name, step in direction.items():
                    model.get_parameter(name).add_(sign * width * step)
                values.append(loss_of(answers(model)).item())
        assert (values[0] - values[1]) / (2 * width) == pytest.approx(slope.item(), rel=1e-5), part


def test_gradients_in_float32_are_those_of_float64():
    """Largest difference within a parameter, as a share of its largest gradient, below 1e-4."""
    exact = gradients(lively(CONFIG).double().train())
    for name, gradient in gradients(lively(CONFIG).train()).items():
        assert (gradient - exact[name]).abs().max() <= 1e-4 * exact[name].abs().max() + 1e-9, name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputation_gives_the_very_same_gradients_for_less_memory(dropout):
    kept, computed_again = lively(CONFIG).train(), lively(CONFIG).train()
    computed_again.set_recompute(True)
    for model in (kept, computed_again):
        model.set_dropout(dropout)
    expected, found = gradients(kept), gradients(computed_again)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert saved_bytes(lambda: answers(computed_again)) < 0.35 * saved_bytes(lambda: answers(kept))


def test_compiled_layers_give_the_same_numbers_and_each_kind_is_compiled_once(monkeypatch):
    """Answers to 2e-5, gradients to 1e-4 of the largest of their parameter. Within slots, within clips, in the decoder:
    three kinds of static shapes, whatever the number of layers. Graphs are traced as ever, but not made into machine
    code, which takes a compiler half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = replace(CONFIG, encoder_layers=6)
    plain, compiled = lively(config).train(), lively(config).train()
    compiled.compile_layers()
    expected, found = answers(plain), answers(compiled)
    assert_same(found, expected)
    for answer in (expected, found):
        loss_of(answer).backward()
    for name, parameter in plain.named_parameters():
        difference = (compiled.get_parameter(name).grad - parameter.grad).abs().max()
        assert difference <= 1e-4 * parameter.grad.abs().max() + 1e-9, name

    loss_of(answers(compiled)).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_what_is_unchecked_is_answered_the_same():
    model, video, aspect = lively(CONFIG), random_video(FRAMES, size=32), torch.tensor([1.5])
    queries = random_queries(QUERIES, FRAMES)
    assert_identical(model(video, aspect, queries, checked=False), model(video, aspect, queries))


def test_frames_of_another_size_get_their_positions_once(monkeypatch):
    model, made = lively(CONFIG), []
    right = encoder.position_table
    monkeypatch.setattr(encoder, "position_table", lambda *arguments: made.append(arguments) or right(*arguments))
    with torch.inference_mode():
        for _ in range(3):
            memory = model.encode(random_video(FRAMES, size=48), torch.tensor([1.5]))
    assert len(made) == 1 and memory.tokens.isfinite().all()


# ---- dropout ----


def test_dropout_is_for_training_alone():
    model = lively(CONFIG)
    expected = answers(model)
    model.set_dropout(0.5)
    assert_identical(answers(model), expected)
    first, second = answers(model.train()), answers(model)
    assert not torch.allclose(first.xyz, second.xyz, atol=1e-3)
    model.set_dropout(0.0)
    assert_identical(answers(model), expected)
    with pytest.raises(ValueError, match=r"dropout \(1\) must be from 0, for none, to below 1"):
        model.set_dropout(1)


@torch.no_grad()
def test_dropout_forgets_its_share_and_keeps_the_mean():
    """Attention is linear in its weights, and so is the last map in what it is given: the mean must not move."""
    torch.manual_seed(0)
    attention, ff, x = SelfAttention(16, 2), FeedForward(16, 32, 16), torch.randn(1, 6, 16)
    for part in (attention, ff):
        expected = part.eval()(x)
        part.train().dropout = 0.25
        draws = torch.stack([part(x) for _ in range(4000)])
        noise = draws.std(0) / len(draws) ** 0.5
        assert ((draws.mean(0) - expected).abs() < 5 * noise).all()
        assert (draws[0] != draws[1]).any()
    forgotten = (torch.stack([ff(x) for _ in range(500)]) == 0).float().mean().item()
    assert forgotten == pytest.approx(0.25, abs=0.01)


# ---- chunks by free memory ----


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.seen = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def free(self, size: int) -> None:
        self.live -= size


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_a_query_takes_the_memory_we_reckon_with(name):
    config = replace(ModelConfig.preset(name), image_size=32, encoder_layers=2, decoder_layers=2)
    model = D4RT(config).eval()
    memory = model.encode(random_video(2, size=32), torch.ones(1))
    peaks = []
    for count in (1000, 3000):
        with LiveBytes() as tracker:
            model.decode(memory, random_queries(count, 2), chunk_size=count)
        peaks.append(tracker.peak)
    per_query = (peaks[1] - peaks[0]) / 2000
    assert 0.8 * chunks.bytes_per_query(config) < per_query < 1.1 * chunks.bytes_per_query(config)


@torch.no_grad()
def test_little_memory_means_small_chunks_and_the_same_answers(monkeypatch):
    model = lively(CONFIG)
    memory, queries = model.encode(random_video(FRAMES, size=32), torch.ones(1)), random_queries(1000, FRAMES)
    at_once = model.decode(memory, queries)
    sizes = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[1]))
    monkeypatch.setattr(chunks, "free_memory", lambda device: 4 * 300 * chunks.bytes_per_query(CONFIG))
    assert_same(model.decode(memory, queries), at_once)
    assert sizes == [300, 300, 300, 100]
    with torch.enable_grad():  # a backward pass needs all of them anyway
        model.decode(memory, queries)
    assert sizes[4:] == [1000]
