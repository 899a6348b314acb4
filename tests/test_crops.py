"""Precomputed crops: windows as the paper draws them, and labels that are right for the smaller picture."""

import numpy as np
import pytest

from pipelines.catalog import Catalog
from pipelines.datasets import DATASETS
from pipelines.geometry import inverse, transform
from pipelines.query_table import VALID_BITS
from pipelines.raw.folder import RawFolder
from pipelines.store.layout import StoreSettings
from pipelines.synthesize.job import LAYOUTS, scene_for
from pipelines.truth.clips import build_clips, spans
from pipelines.truth.crops import Crop

FRAMES = 4
SIZE = (540, 960)


def test_crops_are_drawn_as_the_paper_says():
    crops = [Crop.random(SIZE, rng) for rng in [np.random.default_rng(0)] for _ in range(4000)]
    left, top, width, height = np.array([(c.left, c.top, c.width, c.height) for c in crops]).T
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 960).all() and (top + height <= 540).all()
    area = width * height / (960 * 540)
    zoomed = area < 0.3
    assert 0.02 < zoomed.mean() < 0.06  # 5 % are cut once more, to half of each side at least
    assert area.min() > 0.3 / 4 and area.max() > 0.98
    assert np.abs(np.quantile(area[~zoomed], [0.25, 0.5, 0.75]) - [0.475, 0.65, 0.825]).max() < 0.03
    # For a given area, aspects from area / H^2 to W^2 / area, in pixels, are log-uniform.
    pixels = width * height
    low, high = np.log(pixels / 540**2), np.log(960**2 / pixels)
    place = ((np.log(width / height) - low) / (high - low))[~zoomed & (area < 0.8)]
    assert np.abs(np.quantile(place, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.04


@pytest.mark.parametrize("dataset", ["point_odyssey", "virtual_kitti2"])
def test_labels_of_crops_are_right(dataset, tmp_path):
    scene = scene_for(dataset, 0, 1, frames=FRAMES, size="small")
    LAYOUTS[dataset].write(scene, tmp_path / LAYOUTS[dataset].folder(1))
    raw = RawFolder(str(tmp_path))
    sequence = DATASETS[dataset].open(raw, DATASETS[dataset].find(raw)[0])
    settings = StoreSettings(
        dataset=dataset,
        split="all",
        frames=FRAMES,
        image_size=64,
        strides=(1, 1),
        hop=FRAMES,
        samples=1,
        queries=1024,
        video="jpeg",
        seed=0,
        crops=3,
    )
    (span,) = spans(sequence, settings)
    clips = build_clips(sequence, span, Catalog.load(dataset), settings)
    assert [clip.row["crop_number"] for clip in clips] == [0, 1, 2, 3]
    assert len({tuple(clip.row["crop"] or ()) for clip in clips}) == 4 and clips[0].row["crop"] is None
    cam_from_world, errors, outside = inverse(scene.cameras.world_from_cam), [], 0
    for clip in clips:
        left, top, width, height = clip.row["crop"] or (0, 0, scene.width, scene.height)
        assert clip.row["aspect"] == width / height
        scale = np.array([64 / width, 64 / height, 1])[:, None]
        shifted = scene.cameras.intrinsics - [[0, 0, left], [0, 0, top], [0, 0, 0]]
        np.testing.assert_allclose(clip.intrinsics, shifted * scale, rtol=1e-4, atol=1e-4)
        queries = clip.queries.reshape(-1)
        t_src, t_tgt, t_cam = (queries[name].astype(int) for name in ("t_src", "t_tgt", "t_cam"))
        uv = queries["uv_norm"].astype(float) * [width, height] + [left, top]
        hits = scene.trace(uv, t_src)
        true = transform(cam_from_world[t_cam], scene.position(hits, t_tgt))
        valid = queries["valid"] & VALID_BITS["xyz"] > 0
        errors.append((np.linalg.norm(queries["xyz"] - true, axis=1) / np.linalg.norm(true, axis=1))[valid])
        there = transform(cam_from_world[t_tgt], scene.position(hits, t_tgt))
        pixel = np.einsum("nij,nj->ni", scene.cameras.intrinsics[t_tgt], there / there[:, 2:])[:, :2]
        inside = ((pixel >= [left, top]) & (pixel <= [left + width, top + height])).all(axis=1)
        known = valid & (np.abs(pixel - np.clip(pixel, [left, top], [left + width, top + height])).max(axis=1) > 1)
        told = queries["valid"] & VALID_BITS["uv_tgt"] > 0
        assert not (told & known).any() and not (queries["visible"] & known).any()
        outside += (known & valid).sum()
        right = told & inside
        np.testing.assert_allclose(
            np.median(np.abs(queries["uv_tgt"] * [width, height] + [left, top] - pixel)[right]), 0, atol=0.02
        )
    assert np.median(np.concatenate(errors)) < 1e-3 and np.quantile(np.concatenate(errors), 0.98) < 0.03
    assert outside > 50, "some points leave the crop and keep their position"
