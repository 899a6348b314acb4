"""The reader and the catalog of docs/your_dataset.md, as they stand there: a raw folder becomes a clip store whose
answers are right. The three steps of that page are done, then the functions of `convert`, without Ray."""

import re
import runpy
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import plane
import pytest

from pipelines import catalog, datasets
from pipelines.catalog import Catalog
from pipelines.conversion import Conversion, convert_group, plan_sequence
from pipelines.geometry import transform
from pipelines.query_table import VALID_BITS
from pipelines.raw.folder import RawFolder
from pipelines.store import marks
from pipelines.store.index import finish
from pipelines.store.layout import StoreSettings
from pipelines.store.reader import ClipStore

PAGE = (Path(__file__).parent.parent / "docs/your_dataset.md").read_text()
HEIGHT, WIDTH = 72, 96
INTRINSICS = np.array([[80.0, 0, WIDTH / 2], [0, 80.0, HEIGHT / 2], [0, 0, 1]])


@pytest.fixture
def conversion(tmp_path, monkeypatch) -> Conversion:
    for place, language, name in (("modules", "python", "scans.py"), ("catalogs", "yaml", "scans.yaml")):
        (block,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        (tmp_path / place).mkdir()
        (tmp_path / place / name).write_text(block)
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path / "modules")])
    monkeypatch.setattr(datasets, "DatasetKey", Literal["scans"])
    monkeypatch.setattr(catalog, "FOLDER", tmp_path / "catalogs")
    write_scan(tmp_path / "raw/kitchen_0")
    settings = StoreSettings(
        dataset="scans",
        split="all",
        frames=plane.FRAMES,
        image_size=64,
        strides=(1, 1),
        hop=plane.FRAMES,
        samples=1,
        queries=256,
        video="zstd",
        seed=0,
    )
    facts = Catalog.load("scans")
    places = {"raw": str(tmp_path / "raw"), "store": str(tmp_path / "store")}
    return Conversion(**places, settings=settings, catalog=facts, allow_misfit=False)


def write_scan(folder: Path) -> None:
    """The tilted plane in the layout of the page, from its words alone."""
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    poses = []
    for t in range(plane.FRAMES):
        depth = plane.depth(t, HEIGHT, WIDTH, INTRINSICS)
        picture = plane.picture(t, HEIGHT, WIDTH)
        cv2.imwrite(str(folder / f"depth/{t:06}.png"), np.round(depth * 1000).astype(np.uint16))
        cv2.imwrite(str(folder / f"rgb/{t:06}.png"), picture[..., ::-1])
        poses.append((plane.world_from_cam(t) @ np.diag([1, -1, -1, 1])).ravel())
    np.savetxt(folder / "poses.txt", poses)
    np.savetxt(folder / "intrinsics.txt", [[80, 80, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5]])


def test_the_reader_of_the_page_gives_a_store_with_right_answers(conversion):
    """Every answer lies on the plane, and on the ray of its pixel."""
    dataset, settings = datasets.DATASETS["scans"], conversion.settings
    names = dataset.find(RawFolder(conversion.raw))
    assert names == ["kitchen_0"] and conversion.catalog.split_of(dataset.scene_of("kitchen_0")) == "val"
    marks.begin(conversion.store, settings)
    plan = plan_sequence({"sequence": "kitchen_0"}, conversion=conversion)
    assert plan.audit["audit"] != "misfit" and plan.todo == [0]
    row = {"sequence": "kitchen_0", "group": 0, "audit": plan.audit}
    finish(conversion.store, settings, [convert_group(row, conversion=conversion)], {})

    (clip,) = ClipStore(conversion.store)
    queries = clip.all_queries()
    known = (queries["valid"] & VALID_BITS["xyz"]) > 0
    assert known.mean() > 0.5
    t_cam, t_tgt = queries["t_cam"][known], queries["t_tgt"][known]
    poses = np.stack([plane.world_from_cam(t) for t in range(plane.FRAMES)])
    world = transform(poses[t_cam], queries["xyz"][known].astype(np.float64))
    assert np.abs(world @ plane.NORMAL - plane.OFFSET).max() < 0.01  # of 4 metres

    straight = known.copy()
    straight[known] = (queries["t_src"][known] == t_cam) & (t_tgt == t_cam)
    uv = queries["uv_norm"][straight] * (WIDTH, HEIGHT)
    pixel = queries["xyz"][straight] @ INTRINSICS.T
    assert straight.any() and np.allclose(pixel[:, :2] / pixel[:, 2:], uv, atol=0.02)


def test_it_is_refused_in_words_what_the_page_says_must_not_be(conversion):
    scan = Path(conversion.raw, "kitchen_0")
    (scan / "depth/000001.png").unlink()
    with pytest.raises(ValueError, match=r"missing file kitchen_0/depth/000001\.png"):
        conversion.open("kitchen_0")
    with pytest.raises(ValueError, match="'kitchen' does not tell its room"):
        datasets.DATASETS["scans"].scene_of("kitchen")


def test_a_dataset_without_synthetic_scenes_leaves_those_of_others(conversion, monkeypatch):
    monkeypatch.setattr(datasets, "DatasetKey", Literal["scans", "tartanair"])
    job = runpy.run_module("pipelines.synthesize.job")
    assert set(job["LAYOUTS"]) == {"tartanair"}
    with pytest.raises(ValueError, match="there is no writer for scans"):
        job["synthesize"]("scans", out=conversion.store)
