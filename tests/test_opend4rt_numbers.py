"""With OpenD4RT's weights our model gives OpenD4RT's numbers: those of its formulas, as `plain_d4rt` writes them out.

Both run in float64, so that a difference is a mistake and not rounding.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain_d4rt import PlainD4RT, patches, random_state
from model import Prediction, Queries, checkpoints

ENCODER_HEADS, DECODER_HEADS = 3, 2
SIZES = {"width": 54, "layers": 4, "hidden": 101, "decoder_width": 34, "decoder_layers": 3, "decoder_hidden": 75}
CLIP_FRAMES = 8
YAML = """
encoder: {{num_heads: {encoder}}}
decoder: {{num_heads: {decoder}}}
image_size: 64
"""


def answers(
    folder: Path, state: dict[str, Tensor], video: Tensor, aspect: Tensor, queries: Queries
) -> tuple[Prediction, dict[str, Tensor]]:
    """Ours, loaded from a file that holds the weights, and the plain ones, in our coordinates."""
    state = {name: tensor.float() for name, tensor in state.items()}
    torch.save({"model": state, "global_step": 6000}, folder / "opend4rt.ckpt")
    (folder / "model.yaml").write_text(YAML.format(encoder=ENCODER_HEADS, decoder=DECODER_HEADS))
    model = checkpoints.load_opend4rt(folder / "opend4rt.ckpt", folder / "model.yaml").double()
    plain = PlainD4RT({name: x.double() for name, x in state.items()}, ENCODER_HEADS, DECODER_HEADS)

    pixels = video.permute(0, 1, 4, 2, 3).double() / 255
    padded = torch.cat([pixels, pixels[:, -1:]], 1) if pixels.shape[1] % 2 else pixels
    size = torch.tensor([video.shape[3], video.shape[2]], dtype=torch.float64)  # (W, H)
    uv = (queries.uv_norm * size - 0.5) / (size - 1)
    times = (queries.t_src, queries.t_tgt, queries.t_cam)
    with torch.no_grad():
        ours = model(video, aspect, queries)
        raw = plain.decode(plain.encode(padded, aspect), padded, uv, times, chunk=7)
    return ours, {
        "xyz": raw["xyz"],
        "uv_tgt": (raw["uv"] * (size - 1) + 0.5) / size,
        "visible_logit": raw["visibility"][..., 0],
        "displacement": raw["displacement"],
        "normal": raw["normal"] / raw["normal"].norm(dim=-1, keepdim=True),
        "confidence_logit": raw["confidence"][..., 0],
    }


def ask(frames: int, height: int, width: int, clips: int = 2) -> tuple[Tensor, Queries]:
    """A noise video and queries at its corners, at centres of its first and last pixel, and anywhere."""
    generator = torch.Generator().manual_seed(frames * height + width)
    video = torch.randint(0, 256, (clips, frames, height, width, 3), dtype=torch.uint8, generator=generator)
    corners = [[0, 0], [1, 0], [0, 1], [1, 1], [0.5 / width, 0.5 / height], [1 - 0.5 / width, 1 - 0.5 / height]]
    corners = torch.tensor(corners, dtype=torch.float64).expand(clips, -1, -1)
    uv = torch.cat([corners, torch.rand(clips, 20, 2, dtype=torch.float64, generator=generator)], 1)
    return video, Queries(uv, *torch.randint(0, frames, (3, *uv.shape[:2]), generator=generator))


def assert_equal(ours: Prediction, plain: dict[str, Tensor]) -> None:
    for name, expected in plain.items():
        assert expected.std() > 0.1, f"{name} says too little"
        found = getattr(ours, name)
        assert found.dtype == torch.float64, name
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(8, 64, 64), (2, 64, 64), (5, 64, 64), (7, 48, 80), (1, 32, 32), (4, 80, 48), (6, 16, 112)],
)
def test_any_clip(frames, height, width, tmp_path):
    """Even and odd, full and short, square and not. An odd clip is one whose last frame comes twice."""
    state = random_state(**SIZES, clip_frames=CLIP_FRAMES)
    video, queries = ask(frames, height, width)
    aspect = torch.tensor([0.46, 2.35], dtype=torch.float64)
    assert_equal(*answers(tmp_path, state, video, aspect, queries))


@pytest.mark.parametrize("aspect_token", [True, False])
@pytest.mark.parametrize("decoder_width", [54, 34])
def test_every_form_of_the_weights(decoder_width, aspect_token, tmp_path):
    """Widths that agree need no memory_proj, and there may be no aspect token."""
    sizes = SIZES | {"decoder_width": decoder_width}
    state = random_state(**sizes, clip_frames=CLIP_FRAMES, aspect_token=aspect_token, seed=1)
    assert ("memory_proj.weight" in state) == (decoder_width != SIZES["width"])
    assert ("aspect_ratio_proj.0.weight" in state) == aspect_token
    video, queries = ask(4, 48, 48)
    assert_equal(*answers(tmp_path, state, video, torch.tensor([16 / 9, 1], dtype=torch.float64), queries))


@pytest.mark.parametrize("aspect", [0.25, 1, 4 / 3, 4])
def test_any_aspect(aspect, tmp_path):
    state = random_state(**SIZES, clip_frames=CLIP_FRAMES, patch_size=8, seed=2)
    video, queries = ask(2, 24, 24, clips=1)
    assert_equal(*answers(tmp_path, state, video, torch.tensor([aspect], dtype=torch.float64), queries))


def test_the_plain_attention_is_that_of_torch():
    """OpenD4RT's keys are those of torch.nn.MultiheadAttention, so this says what they mean."""
    state = random_state(**SIZES, clip_frames=2)
    name = "decoder.blocks.1.cross_attn"
    official = torch.nn.MultiheadAttention(34, DECODER_HEADS, batch_first=True, dtype=torch.float64)
    official.load_state_dict(
        {key.removeprefix(f"{name}."): x for key, x in state.items() if key.startswith(f"{name}.")}
    )
    x, memory = torch.randn(2, 5, 34, dtype=torch.float64), torch.randn(2, 9, 34, dtype=torch.float64)
    ours = PlainD4RT(state, ENCODER_HEADS, DECODER_HEADS).attention(name, x, memory, DECODER_HEADS)
    torch.testing.assert_close(ours, official(x, memory, memory)[0], atol=1e-12, rtol=0)


def test_the_plain_patch_is_cut_out_of_the_image():
    """Around a pixel's centre a patch is the pixels themselves, the border repeated."""
    video = torch.rand(2, 3, 3, 20, 30, dtype=torch.float64)
    uv = torch.tensor([[[7 / 29, 11 / 19], [1, 0]]], dtype=torch.float64).expand(2, -1, -1)
    cut = patches(video, uv, torch.tensor([[1, 2], [0, 1]])).unflatten(2, (3, 9, 9))
    for clip, (inside, corner) in enumerate([(1, 2), (0, 1)]):
        torch.testing.assert_close(cut[clip, 0], video[clip, inside, :, 7:16, 3:12], atol=1e-12, rtol=0)
        border = F.pad(video[clip, corner, :, :5, 25:], (0, 4, 4, 0), mode="replicate")
        torch.testing.assert_close(cut[clip, 1], border, atol=1e-12, rtol=0)
