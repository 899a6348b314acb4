"""The model for runtimes without PyTorch: two ONNX graphs, as `python -m model export CHECKPOINT --out FOLDER` writes.

    encoder.onnx    video        (B, T, S, S, 3) uint8     ->  keys, values     (layers, B, heads, N, d) float32
                    aspect       (B,) float32
    decoder.onnx    keys, values, as the encoder gave them ->  xyz              (B, Q, 3) float32
                    video        (B, T, H, W, 3) uint8         uv_tgt           (B, Q, 2)
                    uv_norm      (B, Q, 2) float32             visible_logit    (B, Q)
                    t_src        (B, Q) int64                  displacement     (B, Q, 3)
                    t_tgt        (B, Q) int64                  normal           (B, Q, 3)
                    t_cam        (B, Q) int64                  confidence_logit (B, Q)

They mean what `D4RT.encode`, `Queries` and `Prediction` say. Clips B, queries Q and the decoder's H x W, the encoded
frames at any resolution (paper App. C), are free. Frames T are not, and S is `image_size`: runtimes refuse any other
shape by themselves. Weights lie beside each graph in a .data file; config and T are in its metadata.

A graph cannot raise an error. Where `D4RT` would, it answers NaN: to a query whose time is outside the clip or whose
position is outside [0, 1], and to all queries of a clip whose aspect is not positive and finite.
"""

import json
import os
import shutil
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from model.checkpoints import load
from model.config import RGB
from model.d4rt import D4RT, Memory
from model.decoder import Prediction
from model.queries import Queries

TOLERANCE = 3e-4
"""Files are refused if an output differs from PyTorch's by more than this share of its largest value."""

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
ANSWERS = [field.name for field in fields(Prediction)]

ABOUT = (
    "D4RT (arXiv 2512.08924). uv_norm and uv_tgt: position / (width, height), pixel centres at +0.5. Times count the "
    "clip's frames from 0. Camera axes: x right, y down, z forward. NaN: the query or the aspect was out of range."
)


class EncoderGraph(nn.Module):
    """encoder.onnx."""

    def __init__(self, model: D4RT) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, aspect: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.model.encode_unchecked(video, aspect)
        keys, values = (torch.stack(tensors) for tensors in zip(*memory.keys_values, strict=True))
        usable = (aspect > 0) & aspect.isfinite()
        return keys + torch.where(usable, 0.0, torch.nan)[:, None, None, None], values  # NaN keys: NaN answers


class DecoderGraph(nn.Module):
    """decoder.onnx."""

    def __init__(self, model: D4RT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, keys: Tensor, values: Tensor, video: Tensor, uv_norm: Tensor, t_src: Tensor, t_tgt: Tensor, t_cam: Tensor
    ) -> tuple[Tensor, ...]:
        size, times, (u, v) = self.model.config.image_size, (t_src, t_tgt, t_cam), uv_norm.unbind(-1)
        inside = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)  # (B, Q); NaN is not inside
        for t in times:
            inside = inside & (t >= 0) & (t < video.shape[1])
        t_src, t_tgt, t_cam = (torch.where(inside, t, 0) for t in times)
        uv_norm = torch.where(inside[..., None], uv_norm, 0.5)
        encoded = video[:, :, :1, :1].expand(-1, -1, size, size, -1)  # only its shape counts
        keys_values = tuple(zip(keys.unbind(), values.unbind(), strict=True))
        memory = Memory(tokens=keys, keys_values=keys_values, video=encoded, aspect=keys)  # two that decoding ignores
        source = self.model.embed_source(memory, uv_norm, t_src, patch_video=video)
        answers = self.model.decode_tokens(memory, source, self.model.embed_target(t_tgt, t_cam))
        parts = vars(answers).values()
        return tuple(torch.where(inside if x.ndim == 2 else inside[..., None], x, torch.nan) for x in parts)


def export(checkpoint: Path, out: Path, num_frames: int | None = None) -> None:
    """Write the two graphs of a checkpoint into a new folder, for clips of `num_frames`, by default the longest.

    Both are run once by onnxruntime and compared with PyTorch; the folder appears whole, or not at all. Raises
    ValueError for a checkpoint that does not load, a folder that exists, frames the model does not take, or graphs
    that disagree; ImportError, with the remedy, if a package is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: exporting needs `uv pip install -e '.[export]'`") from None
    require_new(out)
    model = load(checkpoint)
    num_frames = model.config.clip_frames if num_frames is None else num_frames
    if not 1 <= num_frames <= model.config.clip_frames:
        longest = model.config.clip_frames
        raise ValueError(f"--frames ({num_frames}) must be from 1 to {longest}, the clip_frames of {checkpoint}")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex}.writing"
    partial.mkdir()
    try:
        write_graphs(model, partial, num_frames)
        check_graphs(model, partial, num_frames)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_new(out: Path) -> None:
    """ValueError if there is something at `out`, or no folder can be made there."""
    if out.exists():
        raise ValueError(f"{out} exists already and is not overwritten: remove it, or give another --out")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ValueError(f"{out} cannot be made: {parent} is no folder that can be written; give another --out")


def write_graphs(model: D4RT, folder: Path, num_frames: int) -> None:
    """encoder.onnx and decoder.onnx, each with its weights beside it."""
    config, clips, queries = model.config, Dim("clips"), Dim("queries")
    size = config.image_size
    video, aspect = random_video(2, num_frames, size, size), torch.ones(2)
    names = ("video", "aspect"), ("keys", "values")
    write_graph(EncoderGraph(model), (video, aspect), names, ({0: clips}, {0: clips}), folder / ENCODER)

    tokens, heads = config.video_tokens(num_frames) + config.aspect_token, config.decoder_heads
    keys = torch.zeros(config.decoder_layers, 2, heads, tokens, config.decoder_width // heads)
    # Not `keys` twice: one tensor in two places would be one input to the exporter.
    inputs = keys, keys.clone(), video, torch.zeros(2, 3, 2), *torch.zeros(3, 2, 3, dtype=torch.int64)
    names = ("keys", "values", "video", *(field.name for field in fields(Queries))), ANSWERS
    frames, asked = {0: clips, 2: Dim("height"), 3: Dim("width")}, {0: clips, 1: queries}
    dynamic = {1: clips}, {1: clips}, frames, asked, asked, asked, asked
    write_graph(DecoderGraph(model), inputs, names, dynamic, folder / DECODER)


def write_graph(
    graph: EncoderGraph | DecoderGraph,
    inputs: tuple[Tensor, ...],
    names: tuple[Sequence[str], Sequence[str]],
    dynamic: tuple[dict, ...],
    path: Path,
) -> None:
    """Trace a graph with examples of its inputs. `names`: of inputs and outputs; `dynamic`: their free dimensions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name")  # that several inputs have the same is meant so
        program = torch.onnx.export(
            graph.eval(),
            inputs,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
    frames, config = inputs[names[0].index("video")].shape[1], graph.model.config
    facts = {"frames": str(frames), "config": json.dumps(config.to_dict()), "about": ABOUT}
    program.model.metadata_props.update(facts)
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # paths of this machine
    program.save(path, external_data=True)  # one protobuf file ends at 2 GB


def check_graphs(model: D4RT, folder: Path, num_frames: int) -> None:
    """Raise ValueError unless onnxruntime gives PyTorch's answers, on noise and for sizes that were not traced."""
    import onnxruntime

    size = model.config.image_size
    video, aspect = random_video(1, num_frames, size, size), torch.tensor([1.5])
    native = random_video(1, num_frames, size + 3, 2 * size)
    queries = Queries(torch.rand(1, 7, 2), *torch.randint(0, num_frames, (3, 1, 7)))
    with torch.inference_mode():
        memory = model.encode(video, aspect)
        answers = model.decode(memory, queries, patch_video=native)
    keys, values = (torch.stack(tensors) for tensors in zip(*memory.keys_values, strict=True))
    asked = {"keys": keys, "values": values, "video": native, **vars(queries)}
    for name, inputs, expected in (
        (ENCODER, {"video": video, "aspect": aspect}, (keys, values)),
        (DECODER, asked, tuple(vars(answers).values())),
    ):
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        found = session.run(None, {key: tensor.numpy() for key, tensor in inputs.items()})
        for output, theirs, ours in zip(session.get_outputs(), found, expected, strict=True):
            difference = float((torch.from_numpy(theirs) - ours).abs().max() / ours.abs().max())
            if not difference <= TOLERANCE:  # written so that NaN fails
                raise ValueError(
                    f"{output.name} of {name} differs from PyTorch's by {difference:.2g} of its largest value, more "
                    f"than {TOLERANCE:g}; nothing was written. Try other versions of onnx, onnxscript or onnxruntime"
                )


def random_video(*shape: int) -> Tensor:
    """(B, T, H, W, 3) uint8 noise."""
    return torch.randint(0, 256, (*shape, RGB), dtype=torch.uint8)
