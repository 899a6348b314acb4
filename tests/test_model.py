"""What a user of `D4RT` relies on, against formulas written out again here."""

import json
import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model import D4RT, ModelConfig, Prediction, Queries, checkpoints, load
from model.chunks import automatic_chunk
from model.encoder import position_table
from model.queries import fourier_features, gather_patches

TINY = ModelConfig.preset("tiny")
LONG = replace(TINY, clip_frames=8)


@pytest.fixture(scope="module")
def model() -> D4RT:
    return lively(LONG)


def lively(config: ModelConfig) -> D4RT:
    """A model whose every parameter is away from its initial value, so that no term is 0 or 1 by accident."""
    torch.manual_seed(0)
    model = D4RT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_video(frames: int, clips: int = 1, size: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (clips, frames, size, size, 3), dtype=torch.uint8, generator=generator)


def random_queries(count: int, frames: int, clips: int = 1, seed: int = 1) -> Queries:
    generator = torch.Generator().manual_seed(seed)
    times = torch.randint(0, frames, (3, clips, count), generator=generator)
    return Queries(torch.rand(clips, count, 2, generator=generator), *times)


def assert_identical(ours: Prediction, theirs: Prediction) -> None:
    for field in fields(Prediction):
        assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name


def assert_same(ours: Prediction, theirs: Prediction) -> None:
    for field in fields(Prediction):
        left, right = getattr(ours, field.name), getattr(theirs, field.name)
        torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-4, msg=lambda m, name=field.name: f"{name}: {m}")


# ---- answers do not depend on how they are asked for ----


def test_shapes_dtypes_and_ranges(model):
    answers = model(random_video(8, clips=2), torch.tensor([1.0, 1.8]), random_queries(30, 8, clips=2))
    shapes = {name: tuple(x.shape) for name, x in vars(answers).items()}
    assert shapes == {
        "xyz": (2, 30, 3),
        "uv_tgt": (2, 30, 2),
        "visible_logit": (2, 30),
        "displacement": (2, 30, 3),
        "normal": (2, 30, 3),
        "confidence_logit": (2, 30),
    }
    assert {x.dtype for x in vars(answers).values()} == {torch.float32}
    torch.testing.assert_close(answers.normal.norm(dim=-1), torch.ones(2, 30))
    assert answers.visible.dtype == torch.bool
    assert torch.equal(answers.visible, answers.visible_logit.sigmoid() > 0.5)
    assert answers.confidence.min() >= 1e-4 and answers.confidence.max() <= 1 - 1e-4


def test_confidence_is_clamped_and_normal_of_zero_is_finite():
    channels = torch.zeros(1, 2, 13)
    channels[..., 12] = torch.tensor([-50.0, 50.0])
    channels.requires_grad_()
    answers = Prediction.from_channels(channels)
    torch.testing.assert_close(answers.confidence, torch.tensor([[1e-4, 1 - 1e-4]]))
    answers.normal.sum().backward()
    assert answers.normal.isfinite().all() and channels.grad.isfinite().all()


@torch.inference_mode()
def test_a_clip_is_answered_the_same_alone_and_in_a_batch(model):
    video, queries, aspect = random_video(8, clips=3), random_queries(20, 8, clips=3), torch.tensor([0.6, 1.0, 1.8])
    together = model(video, aspect, queries)
    for i in range(3):
        one = slice(i, i + 1)
        alone = model(video[one], aspect[one], Queries(*(x[one] for x in vars(queries).values())))
        assert_same(alone, Prediction(*(x[one] for x in vars(together).values())))


@torch.inference_mode()
def test_chunks_order_and_company_do_not_matter(model):
    memory, queries = model.encode(random_video(8), torch.ones(1)), random_queries(50, 8)
    answers = model.decode(memory, queries)
    for chunk_size in (1, 7, 50, 1000):
        assert_same(model.decode(memory, queries, chunk_size=chunk_size), answers)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    shuffled = model.decode(memory, Queries(*(x[:, order] for x in vars(queries).values())))
    assert_same(shuffled, Prediction(*(x[:, order] for x in vars(answers).values())))


class Cramped(D4RT):
    """Its device has room for so many queries at a time."""

    room = 7

    def decode_tokens(self, memory, source, target):
        queries = torch.broadcast_shapes(source.shape, target.shape)[1:-1].numel()
        if queries > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {queries} queries")
        return super().decode_tokens(memory, source, target)


def test_where_memory_runs_out_fewer_are_asked_at_a_time(model):
    cramped = Cramped(model.config).eval()
    cramped.load_state_dict(model.state_dict())
    with torch.no_grad():
        memory, queries = model.encode(random_video(8), torch.ones(1)), random_queries(50, 8)
        assert_same(cramped.decode(memory, queries), model.decode(memory, queries))
        times = torch.arange(6)[None]
        points = (queries.uv_norm, queries.t_src, times, times)
        assert_same(cramped.decode_times(memory, *points), model.decode_times(memory, *points))
        cramped.room = 0
        with pytest.raises(torch.OutOfMemoryError):
            cramped.decode(memory, queries)
    cramped.room = 7
    with pytest.raises(torch.OutOfMemoryError):  # a training step that does not fit is not made of smaller ones
        cramped.decode(memory, queries)


def test_a_limit_of_memory_makes_smaller_chunks(model):
    config, cpu = model.config, torch.device("cpu")
    free = automatic_chunk(config, 1, cpu, None)
    assert automatic_chunk(config, 1, cpu, 1) < free <= automatic_chunk(config, 1, cpu, 1 << 50)


@torch.inference_mode()
@pytest.mark.parametrize("chunk_size", [None, 4, 30])
def test_decode_times_is_decode_of_every_point_at_every_time(model, chunk_size):
    memory, points = model.encode(random_video(8), torch.ones(1)), random_queries(6, 8)
    t_tgt, t_cam = torch.tensor([[0, 3, 7, 7, 2]]), torch.tensor([[0, 3, 1, 7, 5]])
    answers = model.decode_times(memory, points.uv_norm, points.t_src, t_tgt, t_cam, chunk_size=chunk_size)
    asked = [(p, k) for p in range(6) for k in range(5)]
    p, k = (torch.tensor(x) for x in zip(*asked, strict=True))
    queries = Queries(points.uv_norm[:, p], points.t_src[:, p], t_tgt[:, k], t_cam[:, k])
    assert_same(answers, model.decode(memory, queries))


@torch.inference_mode()
def test_no_questions_give_no_answers(model):
    memory = model.encode(random_video(4), torch.ones(1))
    assert model.decode(memory, random_queries(0, 4)).xyz.shape == (1, 0, 3)


@torch.inference_mode()
def test_cached_keys_and_values_give_the_uncached_answers(model):
    """The decoder written out from its definition, projecting the memory anew in every layer."""
    video, aspect, queries = random_video(8), torch.ones(1), random_queries(40, 8)
    memory, embed = model.encode(video, aspect), model.query_embedder
    x = embed(embed.source(queries.uv_norm, queries.t_src, video, video), embed.target(queries.t_tgt, queries.t_cam))
    heads, width = LONG.decoder_heads, LONG.decoder_width
    for layer in model.decoder.blocks:
        attention = layer.cross_attn
        keys, values = attention.kv(layer.norm_kv(memory.tokens)).split(width, dim=-1)
        q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (attention.q(layer.norm_q(x)), keys, values))
        scores = (q @ k.mT / math.sqrt(width // heads)).softmax(dim=-1)
        x = x + attention.out((scores @ v).transpose(1, 2).flatten(2))
        x = x + layer.ff(layer.norm_ff(x))
    channels = model.decoder.out_norm(x) @ model.heads.weight.T + model.heads.bias
    assert_same(model.decode(memory, queries), Prediction.from_channels(channels))


# ---- what the encoder sees ----


@torch.inference_mode()
def test_local_layers_keep_frame_pairs_apart_and_global_layers_join_them(model):
    video, changed = random_video(8), random_video(8)
    changed[:, 4] = 255 - changed[:, 4]
    side = LONG.grid_size**2

    def difference(model):
        first, second = (model.encode(x, torch.ones(1)).tokens for x in (video, changed))
        per_token = (first - second).abs().amax(dim=-1)[0]
        return per_token[:-1].view(4, side).amax(dim=1), per_token[-1]

    slots, aspect = difference(model)
    assert (slots > 1e-3).all() and aspect > 1e-3
    local_only = lively(LONG)
    for layer in local_only.encoder.blocks[1::2]:  # a global layer that adds nothing
        for last in (layer.attn.out, layer.ff[-1]):
            torch.nn.init.zeros_(last.weight), torch.nn.init.zeros_(last.bias)
    slots, aspect = difference(local_only)
    assert (slots > 1e-3).tolist() == [False, False, True, False]
    assert slots[[0, 1, 3]].max() == 0 and aspect == 0


@torch.inference_mode()
def test_aspect_matters_only_with_an_aspect_token(model):
    video, queries = random_video(4), random_queries(10, 4)
    wide, square = (model(video, torch.tensor([a]), queries).xyz for a in (2.0, 1.0))
    assert (wide - square).abs().max() > 1e-3
    without = lively(replace(LONG, aspect_token=False))
    wide, square = (without(video, torch.tensor([a]), queries).xyz for a in (2.0, 1.0))
    assert torch.equal(wide, square)
    assert without.encode(video, torch.ones(1)).tokens.shape[1] == LONG.video_tokens(4) == 128


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 3, 7])
def test_an_odd_clip_is_padded_by_its_last_frame_which_cannot_be_asked_about(model, frames):
    video = random_video(frames)
    memory = model.encode(video, torch.ones(1))
    padded = model.encode(torch.cat([video, video[:, -1:]], dim=1), torch.ones(1))
    assert memory.num_frames == frames and torch.equal(memory.tokens, padded.tokens)
    assert torch.equal(memory.video, video)
    assert model.decode(memory, random_queries(5, frames)).xyz.isfinite().all()
    late = Queries(torch.rand(1, 1, 2), *torch.tensor([[[0]], [[frames]], [[0]]]))
    with pytest.raises(ValueError, match=rf"t_tgt has {frames}, but the clip has {frames} frames"):
        model.decode(memory, late)


def test_position_code_follows_its_formula():
    table = position_table(LONG, 8, 8)
    assert table.shape == (4 * 8 * 8, 96) and table.dtype == torch.float32
    for n, channel in [(0, 0), (0, 1), (1, 0), (63, 94), (100, 31), (255, 95)]:
        angle = n / 10000 ** (2 * (channel // 2) / 96)
        assert table[n, channel].item() == pytest.approx((math.cos if channel % 2 else math.sin)(angle), abs=1e-6)


@torch.inference_mode()
def test_the_encoder_adds_the_position_code_to_the_tokens(model):
    """A video of one colour everywhere makes tokens that differ in their position code only."""
    grey = torch.full((1, 4, 64, 64, 3), 90, dtype=torch.uint8)
    assert model.encode(grey, torch.ones(1)).tokens[0, :-1].std(dim=0).max() > 1e-2
    plain = model.encoder.patch_embed(grey)
    torch.testing.assert_close(plain, plain[:, :1].expand_as(plain))
    seen = []
    hook = model.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode(grey, torch.ones(1))
    hook.remove()
    torch.testing.assert_close(seen[0].flatten(0, 1), plain[0] + position_table(LONG, 8, 8)[:128])


def test_resampled_position_code_is_the_videomae_table_where_the_grids_agree():
    """A model of 16 frames and 14x14 tokens has VideoMAE's own table; a larger grid keeps corners and middle."""
    videomae = replace(TINY, image_size=112, clip_frames=16, pos_layout="resampled")
    torch.testing.assert_close(
        position_table(videomae, 14, 14), position_table(replace(videomae, pos_layout="flat"), 14, 14)
    )
    larger = position_table(videomae, 16, 16).view(8, 16, 16, 96)
    small = position_table(videomae, 14, 14).view(8, 14, 14, 96)
    torch.testing.assert_close(larger[:, 0, 0], small[:, 0, 0])  # half-pixel-correct: corners see only corners
    torch.testing.assert_close(larger[:, -1, -1], small[:, -1, -1])
    middle = small[:, 6:8, 6:8].mean(dim=(1, 2))
    torch.testing.assert_close(larger[:, 7:9, 7:9].mean(dim=(1, 2)), middle)


@torch.inference_mode()
def test_a_short_clip_uses_the_first_rows_of_the_tables(model):
    """So a model with fewer rows, but otherwise the same weights, gives the same answers."""
    short = D4RT(TINY).eval()
    tables = [f"query_embedder.{name}_embed.weight" for name in ("t_src", "t_tgt", "t_cam")]
    state = model.state_dict()
    short.load_state_dict(state | {name: state[name][:4] for name in tables})
    video, queries = random_video(4), random_queries(20, 4)
    assert_identical(short(video, torch.ones(1), queries), model(video, torch.ones(1), queries))


# ---- query tokens ----


def bilinear_loop(frame: Tensor, x: float, y: float) -> list[float]:
    """One sample at (x, y) in pixels, pixel centres at +0.5, border replicated, one pixel at a time."""
    height, width = frame.shape[:2]
    x, y = x - 0.5, y - 0.5
    x0, y0 = math.floor(x), math.floor(y)
    total = [0.0, 0.0, 0.0]
    for row, row_weight in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, column_weight in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            pixel = frame[min(max(row, 0), height - 1)][min(max(column, 0), width - 1)].tolist()
            total = [s + row_weight * column_weight * p for s, p in zip(total, pixel, strict=True)]
    return total


@pytest.mark.parametrize("size", [9, 3])
def test_patches_equal_a_plain_loop_at_corners_edges_and_between_pixels(size):
    video = torch.randint(0, 256, (2, 3, 12, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    uv = [(0, 0), (1, 1), (0, 1), (0.5, 0.5), (0.31, 0.77), (1, 0.4), (0.6, 0), (10.5 / 20, 5.5 / 12)]
    uv_norm = torch.tensor([uv, uv[::-1]], dtype=torch.float32)
    t_src = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1], [2, 2, 1, 1, 0, 0, 1, 2]])
    patches = gather_patches(video, uv_norm, t_src, size)
    assert patches.shape == (2, 8, 3, size, size)
    reach = size // 2
    for b in range(2):
        for q in range(8):
            u, v = uv_norm[b, q].tolist()
            for i, dy in enumerate(range(-reach, reach + 1)):
                for j, dx in enumerate(range(-reach, reach + 1)):
                    expected = bilinear_loop(video[b, t_src[b, q]], u * 20 + dx, v * 12 + dy)
                    assert patches[b, q, :, i, j].tolist() == pytest.approx(expected, abs=1e-3), (b, q, dx, dy)


def test_fourier_features_follow_their_formula():
    uv = [(0.0, 1.0), (0.5, 0.25), (0.123, 0.987)]
    features = fourier_features(torch.tensor(uv), octaves=8)
    assert features.shape == (3, 34) and features.dtype == torch.float32
    for row, pair in zip(features.tolist(), uv, strict=True):
        expected = []
        for x in pair:
            expected += [x, *(math.sin(2**k * math.pi * x) for k in range(8))]
            expected += [math.cos(2**k * math.pi * x) for k in range(8)]
        assert row == pytest.approx(expected, abs=1e-4)


@torch.inference_mode()
def test_patches_come_from_the_native_frames_when_given(model):
    video, queries = random_video(4), random_queries(20, 4)
    memory = model.encode(video, torch.ones(1))
    answers = model.decode(memory, queries)
    assert_same(model.decode(memory, queries, patch_video=video), answers)
    native = torch.randint(0, 256, (1, 4, 90, 160, 3), dtype=torch.uint8)
    assert (model.decode(memory, queries, patch_video=native).xyz - answers.xyz).abs().max() > 1e-3
    blind = lively(replace(LONG, query_patch=0))
    memory = blind.encode(video, torch.ones(1))
    assert_same(blind.decode(memory, queries, patch_video=native), blind.decode(memory, queries))


# ---- sizes and training ----


@pytest.mark.parametrize(
    ("preset", "encoder_millions", "decoder_millions"),
    [("small", 21.9, 25.2), ("base", 86, 56.7), ("large", 304, 100.8), ("huge", 632, 144.3), ("giant", 1012, 144.3)],
)
def test_parameter_counts_are_those_of_the_paper(preset, encoder_millions, decoder_millions):
    with torch.device("meta"):
        model = D4RT(ModelConfig.preset(preset))
    encoder, decoder = (sum(x.numel() for x in part.parameters()) for part in (model.encoder, model.decoder))
    assert encoder / 1e6 == pytest.approx(encoder_millions, abs=0.5 if encoder_millions > 22 else 0.05)
    assert decoder / 1e6 == pytest.approx(decoder_millions, abs=0.05)
    if preset == "giant":
        assert (encoder, decoder) == (1_012_173_952, 144_330_240)
        assert sum(x.numel() for x in model.parameters()) == 1_162_494_733


def test_flops_are_those_torch_counts():
    """Attention is counted by hand: torch does not count its fused CPU kernel."""
    model, queries = lively(LONG), random_queries(10, 8)
    tokens, side = LONG.video_tokens(8) + 1, LONG.grid_size**2
    with FlopCounterMode(display=False) as counter:
        memory = model.encode(random_video(8), torch.ones(1))
    attention = 2 * 4 * 96 * (tokens**2 + (tokens - 1) * side)
    fused = [op for op in counter.get_flop_counts()["Global"] if "attention" in str(op)]
    assert LONG.flops_encode(8) == counter.get_total_flops() + (0 if fused else attention)
    with FlopCounterMode(display=False) as counter:
        model.decode(memory, queries)
    assert LONG.flops_decode(10, 8) == counter.get_total_flops() + (0 if fused else 3 * 4 * 96 * 10 * tokens)


def test_an_untrained_model_sees_points_in_front_of_the_camera():
    torch.manual_seed(0)
    z = D4RT(TINY)(random_video(4), torch.ones(1), random_queries(200, 4)).xyz[..., 2]
    assert z.mean().item() == pytest.approx(1, abs=0.5)


def test_gradients_reach_every_parameter():
    model = D4RT(replace(TINY, decoder_width=64)).train()
    answers = model(random_video(4), torch.tensor([1.5]), random_queries(64, 4))
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in vars(answers).values())
    loss.backward()
    without = [name for name, x in model.named_parameters() if x.grad is None or x.grad.abs().max() < 1e-12]
    assert not without


@torch.inference_mode()
def test_bfloat16_autocast_stays_close(model):
    video, queries = random_video(8), random_queries(100, 8)
    exact = model(video, torch.ones(1), queries)
    with torch.autocast("cpu", torch.bfloat16):
        memory = model.encode(video, torch.ones(1))
        rough = model.decode(memory, queries)
    assert memory.keys_values[0][0].dtype == torch.bfloat16
    assert rough.xyz.dtype == torch.float32
    assert (rough.xyz - exact.xyz).abs().mean() < 0.05 * exact.xyz.std()


# ---- wrong input ----


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (random_video(9), "9 frames, the model takes at most 8.*fewer, or a model with more.*long_video"),
        (random_video(8)[:, :0], "no frames"),
        (random_video(2, size=60), "60x60 .* takes multiples of 8, best 64x64; resize"),
        (random_video(2).float(), "torch.float32; it must be uint8"),
        (random_video(2)[0], r"\(B, T, H, W, 3\)"),
        (random_video(2).permute(0, 1, 4, 2, 3), r"\(B, T, H, W, 3\)"),
    ],
)
def test_wrong_videos_are_refused(model, video, message):
    with pytest.raises(ValueError, match=message):
        model.encode(video, torch.ones(1))


@pytest.mark.parametrize(
    ("aspect", "message"),
    [
        (torch.ones(2), r"it must be \(1,\)"),
        (torch.zeros(1), "positive"),
        (torch.full((1,), torch.nan), "positive and finite"),
    ],
)
def test_wrong_aspects_are_refused(model, aspect, message):
    with pytest.raises(ValueError, match=message):
        model.encode(random_video(2), aspect)


@pytest.mark.parametrize("field", ["t_src", "t_tgt", "t_cam"])
@pytest.mark.parametrize("value", [-1, 4])
def test_times_outside_the_clip_are_refused(model, field, value):
    memory, queries = model.encode(random_video(4), torch.ones(1)), random_queries(5, 4)
    times = getattr(queries, field).clone()
    times[0, 3] = value
    with pytest.raises(ValueError, match=f"{field} has {value}, but the clip has 4 frames: times run from 0 to 3"):
        model.decode(memory, replace(queries, **{field: times}))


@pytest.mark.parametrize("value", [-0.01, 1.01, 100.0, math.nan])
def test_positions_outside_the_frame_are_refused(model, value):
    memory, queries = model.encode(random_video(4), torch.ones(1)), random_queries(5, 4)
    uv_norm = queries.uv_norm.clone()
    uv_norm[0, 2, 1] = value
    with pytest.raises(ValueError, match=r"outside \[0, 1\]; divide pixel positions"):
        model.decode(memory, replace(queries, uv_norm=uv_norm))


def test_shapes_that_disagree_are_refused(model):
    uv_norm, times = torch.rand(1, 5, 2), torch.zeros(1, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"uv_norm has shape \(5, 2\)"):
        Queries(uv_norm[0], times, times, times)
    with pytest.raises(ValueError, match=r"t_tgt has shape \(1, 4\).*must be \(1, 5\)"):
        Queries(uv_norm, times, times[:, :4], times)
    with pytest.raises(ValueError, match=r"t_cam is torch.int32; .*\.long\(\)"):
        Queries(uv_norm, times, times, times.int())
    memory, queries = model.encode(random_video(4, clips=2), torch.ones(2)), random_queries(5, 4)
    with pytest.raises(ValueError, match="for 1 clips, the memory holds 2"):
        model.decode(memory, queries)
    both = random_queries(5, 4, clips=2)
    with pytest.raises(ValueError, match=r"patch_video is torch.uint8 .*encoded frames at another resolution"):
        model.decode(memory, both, patch_video=random_video(3, clips=2))
    with pytest.raises(ValueError, match=r"chunk_size \(0\) must be at least 1"):
        model.decode(memory, both, chunk_size=0)


# ---- config ----


def test_preset_names_and_suggestions():
    assert ModelConfig.preset("giant").encoder_layers == 40
    with pytest.raises(ValueError, match="unknown model preset 'gaint': did you mean 'giant'"):
        ModelConfig.preset("gaint")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_heads": 5}, r"encoder_width \(96\) must be a multiple of encoder_heads \(5\)"),
        ({"decoder_heads": 7}, r"decoder_width \(96\) must be a multiple of decoder_heads \(7\)"),
        ({"encoder_layers": 3}, r"encoder_layers \(3\) must be even"),
        ({"image_size": 100}, r"image_size \(100\) must be a multiple of patch_size \(8\)"),
        ({"tubelet": 3}, r"tubelet \(3\) must be 2"),
        ({"query_patch": 8}, r"query_patch \(8\) must be odd"),
        ({"clip_frames": 0}, r"clip_frames \(0\) must be from 1 to 8192"),
        ({"decoder_hidden": -1}, r"decoder_hidden \(-1\) must be from 1 to 65536"),
        ({"encoder_width": 99, "encoder_heads": 3}, r"encoder_width \(99\) must be even"),
        ({"pos_layout": "learned"}, r"pos_layout \('learned'\) must be one of"),
        ({"pixel_mean": (0.5,)}, "pixel_mean .* must have 3 values"),
        ({"pixel_std": (0.0, 1.0, 1.0)}, "pixel_std .* must be positive"),
    ],
)
def test_impossible_configs_are_refused_by_field(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_config_survives_json_and_refuses_other_keys():
    values = json.loads(json.dumps(LONG.to_dict()))
    assert ModelConfig.from_dict(values) == LONG
    with pytest.raises(ValueError, match=r"unknown model config keys \['colour'\]"):
        ModelConfig.from_dict(values | {"colour": 1})
    del values["z_bias"]
    with pytest.raises(ValueError, match=r"missing model config keys \['z_bias'\]"):
        ModelConfig.from_dict(values)


# ---- checkpoints ----


@torch.inference_mode()
@pytest.mark.parametrize("change", [{}, {"decoder_width": 64}, {"aspect_token": False, "query_patch": 0}])
def test_a_checkpoint_brings_back_the_very_same_model(tmp_path, change):
    model = lively(replace(LONG, **change))
    checkpoints.save(model, tmp_path / "step_1")
    assert sorted(x.name for x in (tmp_path / "step_1").iterdir()) == ["config.json", "weights.safetensors"]
    again = load(tmp_path / "step_1")
    assert again.config == model.config and not again.training
    assert all(x.requires_grad for x in again.parameters())
    video, queries = random_video(6), random_queries(30, 6)
    assert_identical(again(video, torch.ones(1), queries), model(video, torch.ones(1), queries))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.fixture
def folder(tmp_path):
    return checkpoints.save(D4RT(TINY), tmp_path / "checkpoint")


def rewrite(folder, change):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "weights.safetensors")
    change(state)
    save_file(state, folder / "weights.safetensors")


def test_damaged_checkpoints_are_refused_by_name(folder):
    with pytest.raises(ValueError, match=r"nowhere/config.json does not exist"):
        load(folder / "nowhere")
    rewrite(folder, lambda state: state.pop("heads.bias"))
    with pytest.raises(ValueError, match=r"weights.safetensors does not fit.*missing: heads.bias$"):
        load(folder)
    rewrite(folder, lambda state: state.update({"heads.bias": torch.zeros(12), "extra": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"unexpected: extra; wrong shape: heads.bias is \(12,\), .* \(13,\)"):
        load(folder)
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"weights.safetensors is damaged"):
        load(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights.safetensors does not exist"):
        load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image_size": 64,', "config.json is not JSON"),
        ("[" * 100_000, "config.json is not JSON"),
        ('{"image_size": ' + "9" * 5000, "config.json is not JSON"),
        (json.dumps(TINY.to_dict() | {"image_size": 10**9}), r"config.json: image_size \(1000000000\) must be"),
        ("[1, 2]", "config.json holds a list"),
        ("{}", "config.json: missing model config keys"),
        (json.dumps(TINY.to_dict() | {"encoder_heads": 5}), "config.json: encoder_width"),
        (json.dumps(TINY.to_dict() | {"encoder_heads": "4"}), "config.json: "),
    ],
)
def test_a_wrong_config_file_is_refused(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_saving_over_a_checkpoint_replaces_it_whole(folder):
    checkpoints.save(D4RT(replace(TINY, decoder_width=64)), folder)
    assert load(folder).config.decoder_width == 64
    assert len(list(folder.iterdir())) == 2


def test_an_interrupted_save_leaves_nothing_that_loads(folder, monkeypatch):
    """New weights beside the old config would be a model nobody trained."""

    def out_of_disk(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("model.checkpoints.json.dumps", out_of_disk)  # after the weights, before the config
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(D4RT(TINY), folder)
    with pytest.raises(ValueError, match=r"config.json does not exist"):
        load(folder)
