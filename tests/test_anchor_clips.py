"""Long videos as OpenD4RT's code asks about them, against its counts and its rule."""

import numpy as np
import pytest
import torch
from oracle import Oracle

from model.recipes import pixel_centres
from model.recipes.anchor_clips import anchor_clips, anchored_tracks
from pipelines.geometry import inverse, transform
from pipelines.synthesize.staged import round_trip


@pytest.mark.parametrize(("num_frames", "clip_frames", "encodes"), [(64, 32, 34), (64, 48, 18), (128, 48, 82)])
def test_it_encodes_as_many_clips_as_opend4rt(num_frames, clip_frames, encodes):
    clips = anchor_clips(num_frames, 0, clip_frames)
    assert len(clips) == encodes
    assert sorted(t for clip in clips for t in clip.targets) == list(range(num_frames))
    for clip in clips:
        assert clip.frames[0] == 0 and len(clip.frames) == clip_frames
        assert set(clip.targets) <= set(clip.frames)


def test_target_zero_takes_the_place_of_the_last_frame_of_the_first_clip():
    first, second = anchor_clips(64, 0, 32)[:2]
    assert first.frames == (0, 0, *range(1, 31)) and first.targets == (0,)
    assert second.frames == tuple(range(32)) and second.targets == tuple(range(1, 32))
    assert anchor_clips(64, 0, 32)[-1].frames == (0, *range(33, 64))


def test_points_of_another_frame_have_it_and_what_leads_to_the_target():
    clips = {target: clip.frames for clip in anchor_clips(20, 12, 6) for target in clip.targets}
    assert clips[3] == (0, 1, 2, 3, 12) and clips[14] == (10, 11, 12, 13, 14) and clips[19] == (12, 15, 16, 17, 18, 19)
    assert all(len(frames) <= 6 and {target, 12} <= set(frames) for target, frames in clips.items())


def test_a_video_of_one_clip_is_encoded_once():
    assert [clip.frames for clip in anchor_clips(32, 7, 48)] == [tuple(range(32))]


@pytest.mark.parametrize(("t_src", "in_first_camera"), [(0, True), (0, False), (9, False)])
def test_exact_answers_give_exact_tracks(t_src, in_first_camera):
    oracle = Oracle(round_trip(20), clip_frames=8)
    uv_norm = pixel_centres(3, 3)
    tracks = anchored_tracks(
        oracle, oracle.video, uv_norm, t_src, 20, in_first_camera=in_first_camera, aspect=oracle.aspect
    )
    hits = oracle.hits(uv_norm.numpy(), np.full(9, t_src))
    cam_from_world = inverse(oracle.scene.cameras.world_from_cam)
    for t in range(20):
        world = oracle.scene.position(hits, np.full(9, t))
        expected = transform(cam_from_world[0 if in_first_camera else t], world)
        np.testing.assert_allclose(tracks.xyz[:, t], expected, atol=1e-5)
    assert tracks.visible[:, t_src].all() and tracks.t_cam == (0 if in_first_camera else "target")
    assert oracle.encoded == len(anchor_clips(20, t_src, 8))


def test_positions_in_the_first_camera_are_refused_for_points_that_have_no_clip_with_it():
    with pytest.raises(ValueError, match="points of frame 3 have no clips with frame 0"):
        anchored_tracks(
            Oracle(round_trip(12), clip_frames=8), torch.zeros(12), pixel_centres(2, 2), 3, 12, in_first_camera=True
        )
