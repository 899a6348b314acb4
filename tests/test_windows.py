"""Which frames of a long video are looked at together."""

import pytest
import torch

from model.recipes.windows import WindowPlan, plan_windows, spread


def test_windows_of_forty_eight_frames_share_sixteen():
    plan = plan_windows(200, 48)
    assert [(window.start, window.stop) for window in plan.windows] == [
        (0, 48),
        (32, 80),
        (64, 112),
        (96, 144),
        (128, 176),
        (152, 200),
    ]
    assert [plan.shared(number) for number in range(2)] == [range(32, 48), range(64, 80)]
    assert plan.owner[[0, 39, 40, 71, 72, 199]].tolist() == [0, 0, 1, 1, 2, 5]


@pytest.mark.parametrize(("length", "common"), [(48, 16), (4, 1), (8, 7), (2, 1), (10, 3)])
def test_every_frame_has_one_window_that_answers_for_it(length, common):
    for num_frames in range(1, 130):
        plan = WindowPlan(num_frames, length, common)
        for number, window in enumerate(plan.windows):
            assert len(window) == min(length, num_frames)
            mine = torch.where(plan.owner == number)[0].tolist()
            assert mine and set(mine) <= set(window) and mine == list(range(mine[0], mine[-1] + 1))
        for number in range(len(plan) - 1):
            shared = set(plan.windows[number]) & set(plan.windows[number + 1])
            assert set(plan.shared(number)) == shared
            assert len(shared) == common or (number == len(plan) - 2 and len(shared) > common)


@pytest.mark.parametrize(("clip_frames", "common"), [(48, 16), (8, 2), (4, 2), (3, 2), (2, 1)])
def test_short_windows_share_two_frames_where_a_third_would_be_one(clip_frames, common):
    assert plan_windows(100, clip_frames).common == common


def test_windows_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="windows of 49 frames are longer than the model takes: at most 48"):
        plan_windows(100, 48, length=49)
    with pytest.raises(ValueError, match="windows of 48 frames cannot have 48 in common with the next: from 1 to 47"):
        plan_windows(100, 48, common=48)
    with pytest.raises(ValueError, match="a video of 0 frames has no windows"):
        plan_windows(0, 48)


def test_frames_are_spread_from_the_first_to_the_last():
    assert spread(range(32, 48), 4) == [32, 37, 42, 47]
    assert spread(range(3), 4) == [0, 1, 2]
    assert spread([7], 4) == [7]
