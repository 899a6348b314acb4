"""Which frames a clip holds: of videos with gaps in their poses, and of photos without order."""

import numpy as np
import pytest

from pipelines.raw.folder import RawFolder
from pipelines.sequence import Cameras, Sequence, Static
from pipelines.store.layout import StoreSettings
from pipelines.truth.clips import spans

FRAMES = 4


class Frames(Sequence):
    """Only what `spans` looks at."""

    def __init__(self, folder, count: int, unknown: tuple[int, ...] = (), photos: dict | None = None) -> None:
        super().__init__(RawFolder(str(folder)), "park")
        pose = np.tile(np.eye(4), (count, 1, 1))
        pose[list(unknown)] = np.nan
        self.cameras = Cameras(intrinsics=np.tile(np.eye(3), (count, 1, 1)), world_from_cam=pose)
        self.frame_numbers = np.arange(count)
        self._photos = photos

    image = depth = None

    def motion(self, frames):
        return Static()

    def neighbours(self, t):
        return self._photos and self._photos[t]


def settings(**changes) -> StoreSettings:
    chosen = {"frames": FRAMES, "strides": (1, 3), "hop": 2, "seed": 0} | changes
    rest = {"dataset": "tartanair", "split": "all", "image_size": 32, "samples": 1, "queries": 8, "video": "jpeg"}
    return StoreSettings(**chosen, **rest)


def test_clips_of_a_video_overlap_by_the_hop_and_end_inside(tmp_path):
    found = spans(Frames(tmp_path, 40), settings())
    assert [span.start for span in found] == list(range(0, 37, 2))
    assert {span.stride for span in found} == {1, 2, 3}
    for span in found:
        assert span.frames == tuple(range(span.start, span.start + 3 * span.stride + 1, span.stride))
        assert span.frames[-1] < 40


def test_a_clip_never_bridges_an_unknown_pose(tmp_path):
    found = spans(Frames(tmp_path, 40, unknown=(11, 26)), settings())
    assert len(found) > 10
    for span in found:
        assert not {11, 26} & set(range(span.frames[0], span.frames[-1] + 1))


def test_photos_are_walked_from_neighbour_to_neighbour(tmp_path):
    """A ring of photos in shuffled order, one that sees nothing, one whose pose is unknown, and an island of three."""
    rng = np.random.default_rng(0)
    ring = rng.permutation(20)
    photos = {int(t): [int(ring[i - 1]), int(ring[(i + 1) % 20]), int(ring[(i + 2) % 20])] for i, t in enumerate(ring)}
    photos |= {20: [], 21: photos[0], 22: [23, 24], 23: [22, 24], 24: [22, 23]}
    sequence = Frames(tmp_path, 25, unknown=(21,), photos=photos)
    found = spans(sequence, settings(hop=1))
    assert [span.start for span in found] == list(range(20))
    for span in found:
        assert span.stride == 0 and len(set(span.frames)) == FRAMES
        for i, t in enumerate(span.frames[1:], start=1):
            assert any(t in photos[seen] for seen in span.frames[:i])
    assert found == spans(sequence, settings(hop=1)) != spans(sequence, settings(hop=1, seed=1))


@pytest.mark.parametrize("count", [0, FRAMES - 1])
def test_too_few_frames_make_no_clip(tmp_path, count):
    assert spans(Frames(tmp_path, count), settings()) == []


def test_a_clip_of_one_frame(tmp_path):
    assert [span.frames for span in spans(Frames(tmp_path, 5), settings(frames=1))] == [(0,), (2,), (4,)]
