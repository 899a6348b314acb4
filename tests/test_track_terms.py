"""Adaptation by tracks in the image and depth alone: each term is 0 for a model that is right, in whatever unit, and
sees its own fault; and a model that learns from them comes nearer to true positions, which nobody told it."""

from functools import partial

import numpy as np
import pytest
import torch
from oracle import Faults, Oracle
from test_adapt import FRAMES, LR, SCENE, SHAPE, clips_of, told, untrained

from model import Queries
from pipelines.geometry import image_grid
from train import track_terms
from train.adapt import adapt
from train.pseudo_labels import PseudoLabels, read_labels, write_labels
from train.track_terms import TrackLabels, depth_error, track_loss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def labels() -> PseudoLabels:
    """As a tracker and a depth network give them: tracks of a grid of each of two frames, with flags; depth of a grid
    of each frame, in a unit of its own."""
    oracle = Oracle(SCENE, clip_frames=FRAMES)
    memory = oracle.encode(oracle.video[None], torch.tensor([oracle.aspect]))
    grid = (image_grid(12, 12) / 12).reshape(-1, 2).astype(np.float32)
    asked = [(t_src, t_tgt, True) for t_src in (0, FRAMES - 1) for t_tgt in range(FRAMES)]
    asked += [(t, t, False) for t in range(FRAMES)]
    parts = []
    for t_src, t_tgt, is_track in asked:
        times = [np.full(len(grid), t) for t in (t_src, t_tgt, t_tgt)]
        said = oracle.decode(memory, Queries(*(torch.from_numpy(x)[None] for x in (grid, *times))))
        known = np.full(len(grid), is_track)
        parts.append(
            dict(zip(("uv_norm", "t_src", "t_tgt", "t_cam"), (grid, *times), strict=True))
            | {"uv_tgt": said.uv_tgt[0].numpy(), "uv_tgt_known": known}
            | {"visible": said.visible[0].numpy(), "visible_known": known}
            | {"depth": np.where(known, np.float32(np.nan), 3.7 * said.xyz[0, :, 2].numpy())}
        )
    return PseudoLabels.of(SHAPE, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, "labels")


def loss_of(labels: PseudoLabels, faults: Faults, **weights: float) -> float:
    """Of the oracle with these faults, over the whole clip; terms without a weight do not count."""
    oracle = Oracle(SCENE, faults, clip_frames=FRAMES)
    memory = oracle.encode(oracle.video[None], torch.tensor([oracle.aspect]))
    tracks = TrackLabels.of(labels.columns)
    drawn = tracks.draw(np.random.default_rng(0), times=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(track_terms, "WEIGHTS", dict.fromkeys(track_terms.WEIGHTS, 0.0) | weights)
        return track_loss(partial(oracle.decode, memory), labels.columns, drawn, oracle.aspect, CPU).item()


@pytest.mark.parametrize("term", track_terms.WEIGHTS)
def test_a_right_model_has_no_loss_in_whatever_unit(term: str, labels: PseudoLabels) -> None:
    assert loss_of(labels, Faults(), **{term: 1.0}) < 3e-3
    assert loss_of(labels, Faults(scale=1.0), **{term: 1.0}) < 3e-3


@pytest.mark.parametrize(
    ("term", "faults"),
    [
        ("reprojection", Faults(noise=0.1)),
        ("alignment", Faults(noise=0.1)),
        ("cameras", Faults(noise=0.1)),
        ("depth", Faults(noise=0.1)),
    ],
)
def test_each_term_sees_its_fault(term: str, faults: Faults, labels: PseudoLabels) -> None:
    assert loss_of(labels, faults, **{term: 1.0}) > 5 * loss_of(labels, Faults(), **{term: 1.0}) + 0.01


def test_depth_has_any_unit_and_no_gradient_by_it() -> None:
    z = torch.tensor([1.0, 2.0, 4.0, 8.0, 5.0], requires_grad=True)
    assert depth_error(z, 9 * z.detach()).item() < 1e-6
    loss = depth_error(3 * z, torch.tensor([1.0, 2.0, 4.0, 8.0, 2.5]))
    assert loss.item() == pytest.approx(np.log(2) / 5)


def test_hidden_points_and_points_out_of_the_image_are_not_asked_about(labels: PseudoLabels) -> None:
    columns = {name: x.copy() for name, x in labels.columns.items()}
    columns["visible"][: len(labels) // 3] = False
    columns["uv_tgt"][len(labels) // 3 : len(labels) // 3 + 50] = 1.2
    tracks = TrackLabels.of(columns)
    for rows in tracks.pairs:
        assert columns["visible"][rows].all()
        assert (columns["uv_tgt"][rows] <= 1).all()
        assert len(set(zip(columns["t_src"][rows], columns["t_tgt"][rows], strict=True))) == 1
    assert not len(TrackLabels.of(told().columns))  # positions are known


def test_tracks_and_depth_alone_teach_positions(labels: PseudoLabels) -> None:
    frames = np.stack([SCENE.render(t).image for t in range(FRAMES)])
    model = untrained()
    report = adapt(model, clips_of(model, frames, labels, told()), steps=30, lr=LR)
    before, after = report.before["truth"], report.after["truth"]
    assert after.median_relative_error < 0.75 * before.median_relative_error
    assert after.uv_error < 0.6 * before.uv_error
    assert report.after["held_out"].loss < 0.7 * report.before["held_out"].loss


def test_they_come_back_from_their_file(labels: PseudoLabels, tmp_path) -> None:
    write_labels(str(tmp_path / "street.npz"), labels)
    again = read_labels(str(tmp_path / "street.npz"), "--labels")
    assert again.digest == labels.digest
    given = {name: labels.columns[name] for name in ("uv_norm", "t_src", "t_tgt", "t_cam", "depth")}
    given["depth"][7] = -0.5
    with pytest.raises(ValueError, match=r"street.npz: depth of row 7 is -0.5: it must be above 0, or NaN"):
        PseudoLabels.of(SHAPE, given, "street.npz")
