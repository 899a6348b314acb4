"""What is hidden and comes back: exact answers score perfectly; to give up, to drift or to mix points up costs."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation.benchmarks.hidden import returns
from pipelines.synthesize import hidden
from tests.benchmark_clips import Asked, only_clip

FRAMES = 70


@pytest.fixture(scope="module")
def balls(tmp_path_factory) -> Asked:
    """Behind the pillar and back."""
    root = tmp_path_factory.mktemp("hidden")
    scene = hidden.scene(0, num_frames=FRAMES, size="small")
    hidden.write(scene, root / hidden.folder(0))
    return Asked("hidden", only_clip("hidden", root), scene)


def test_exact_answers_score_perfectly(balls: Asked) -> None:
    row = balls.scores({"tracks_XYZ": balls.truth.tracks, "visibility": balls.truth.visible})
    for entries in ("seen", "hidden", "return"):
        assert row[f"{entries}.entries"] > 100
        assert row[f"{entries}.epe"] < 1e-9
        assert row[f"{entries}.within"] == 1
        assert row[f"{entries}.lost"] == 0
    assert row["return.identity"] == 1
    assert row["drift"] < 1e-9


def test_each_fault_shows_where_it_is(balls: Asked) -> None:
    tracks, seen = balls.truth.tracks, balls.truth.visible
    lost = np.where(seen[..., None], tracks, np.nan)
    row = balls.scores({"tracks_XYZ": lost, "visibility": seen})
    assert row["hidden.lost"] == 1
    assert row["hidden.within"] == 0
    assert row["hidden.epe"] is None
    assert row["seen.within"] == row["return.identity"] == 1

    back = returns(seen)
    swapped = tracks.copy()
    for t in np.flatnonzero(back.any(axis=1)):  # what comes back is taken for what is far from it
        others = np.flatnonzero(seen[t] & ~back[t])
        swapped[t, back[t]] = tracks[t, others[0]]
    row = balls.scores({"tracks_XYZ": swapped, "visibility": seen})
    assert row["return.identity"] < 0.2
    assert row["return.within"] < 0.2

    away = tracks + 0.3 * np.arange(FRAMES)[:, None, None] / FRAMES * [1, 0, 0]
    assert 0.1 < balls.scores({"tracks_XYZ": away, "visibility": seen})["drift"] < 0.3


def test_the_oracle_follows_what_is_hidden_through_windows(balls: Asked) -> None:
    row = balls.scores(balls.answers(clip_frames=48))
    assert row["seen.within"] > 0.98
    assert row["return.identity"] > 0.9


def test_a_return_is_what_was_away_for_long() -> None:
    visible = np.ones((30, 2), bool)
    visible[5:14, 0] = False  # 9 frames
    visible[5:10, 1] = False  # 5 frames
    found = returns(visible)
    assert np.flatnonzero(found[:, 0]).tolist() == list(range(14, 22))
    assert not found[:, 1].any()


def test_a_place_without_scenes_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="synthesize hidden"):
        only_clip("hidden", tmp_path)
