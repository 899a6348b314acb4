"""Catalogs: the facts that ours state, and every way in which a file can be wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines.catalog import FOLDER, Catalog, DepthTolerance, load_mixture
from pipelines.datasets import DATASETS


@pytest.mark.parametrize("key", DATASETS)
def test_every_dataset_has_one(key):
    catalog = Catalog.load(key)
    assert catalog.key == key
    assert json.loads(json.dumps(catalog.facts()))["licence"].strip()
    assert sum("*" in scenes for scenes in catalog.splits.values()) <= 1


def test_facts_that_others_rely_on():
    is_metric = {key: Catalog.load(key).is_metric for key in DATASETS}
    assert is_metric == {
        "blended_mvs": False,
        "co3d": False,
        "dynamic_replica": True,
        "kubric": False,
        "mvs_synth": False,
        "point_odyssey": False,
        "scannet": True,
        "tartanair": True,
        "virtual_kitti2": True,
    }
    motion = {key: Catalog.load(key).motion for key in DATASETS}
    assert motion == {
        "blended_mvs": "static",
        "co3d": "static",
        "dynamic_replica": "tracks",
        "kubric": "rigid_instances",
        "mvs_synth": "unknown",
        "point_odyssey": "tracks",
        "scannet": "static",
        "tartanair": "static",
        "virtual_kitti2": "rigid_instances",
    }


def test_tolerance_is_a_share_of_depth_above_a_floor():
    depth = np.array([1.0, 10.0, np.nan])
    np.testing.assert_allclose(Catalog.load("virtual_kitti2").depth_tolerance.of(depth), [0.05, 0.2, np.nan])
    np.testing.assert_allclose(Catalog.load("tartanair").depth_tolerance.of(depth), [0.015, 0.15, np.nan])
    np.testing.assert_allclose(Catalog.load("tartanair").depth_tolerance.step_of(depth), [2**-10, 10 * 2**-10, np.nan])
    np.testing.assert_allclose(Catalog.load("virtual_kitti2").depth_tolerance.step_of(depth), [0.01, 0.01, np.nan])
    np.testing.assert_array_equal(DepthTolerance(relative=0.1, absolute=0).step_of(depth), [0, 0, np.nan])
    # A scene of BlendedMVS may be 0.3 units wide: nothing absolute.
    np.testing.assert_allclose(Catalog.load("blended_mvs").depth_tolerance.of(depth / 100), [1e-4, 1e-3, np.nan])
    np.testing.assert_allclose(Catalog.load("scannet").depth_tolerance.of(depth), [0.03, 0.3, np.nan])


def test_scenes_are_split():
    assert Catalog.load("virtual_kitti2").split_of("Scene18") == "val"
    assert Catalog.load("virtual_kitti2").split_of("Scene20") == "test"
    assert Catalog.load("virtual_kitti2").split_of("Scene01") == "train"
    assert Catalog.load("virtual_kitti2").split_of("Scene0007") == "train"  # "*"
    assert Catalog.load("tartanair").split_of("oldtown") == "train"
    kubric = {scene: Catalog.load("kubric").split_of(scene) for scene in ("train", "validation", "test", "scene_0000")}
    assert kubric == {"train": "train", "validation": "val", "test": "test", "scene_0000": "train"}
    numbers = [Catalog.load("mvs_synth").split_of(f"{i:04d}") for i in range(120)]
    assert numbers == ["train"] * 100 + ["val"] * 10 + ["test"] * 10
    assert Catalog.load("point_odyssey").split_of("sample") == "val"
    assert [Catalog.load("dynamic_replica").split_of(name) for name in ("train", "valid", "test")] == [
        "train",
        "val",
        "test",
    ]
    assert Catalog.load("co3d").split_of("hydrant") == "train"
    held_out = [Catalog.load("co3d").splits[split] for split in ("val", "test")]
    assert [len(categories) for categories in held_out] == [5, 5]
    rooms = {"scene0000": "train", "scene0009": "val", "scene0699": "val", "scene0700": "train", "scene0706": "train"}
    rooms |= {"scene0707": "test", "scene0709": "test", "scene0719": "test", "scene0806": "test", "scene0807": "train"}
    rooms |= {"0a7cc12c0e": "train", "0a7cc12c00": "val", "0a7cc12c01": "test"}
    assert {room: Catalog.load("scannet").split_of(room) for room in rooms} == rooms
    scenes = {"5b7a3890fc8fcf6781e2593a": "val", "5a6400933d809f1d8200af15": "val", "5ab85f1dac4291329b17cb50": "train"}
    scenes |= {"5ab85f1dac4291329b17cb57": "test"}
    assert {scene: Catalog.load("blended_mvs").split_of(scene) for scene in scenes} == scenes
    with pytest.raises(
        ValueError, match=r"'tests' is in no split of catalogs/point_odyssey.yaml \(did you mean 'test'"
    ):
        Catalog.load("point_odyssey").split_of("tests")


def test_a_name_goes_before_a_pattern_and_a_pattern_before_the_star():
    splits = {"train": ["*", "scene0799"], "val": ["scene???9"], "test": ["scene07??"]}
    catalog = replace(Catalog.load("tartanair"), splits=splits)
    scenes = {"scene0799": "train", "scene0709": "val", "scene0700": "test", "scene0100": "train", "scene0019": "val"}
    assert {scene: catalog.split_of(scene) for scene in scenes} == scenes


def test_excluded_sequences_have_their_reason():
    catalog = replace(Catalog.load("tartanair"), excluded={"ocean/Easy/P000": "spikes", "fog*/*": "fog"})
    assert catalog.exclusion_of("ocean/Easy/P000") == "spikes"
    assert catalog.exclusion_of("foggy/Easy/P001") == "fog"
    assert catalog.exclusion_of("ocean/Easy/P001") is None


def test_videos_without_true_depth_are_excluded():
    catalog = Catalog.load("dynamic_replica")
    for name in ("real/teddy_static/left", "dynamic_replica_v2/real/nikita_reading/right"):
        assert "no ground-truth depth" in catalog.exclusion_of(name)
        assert catalog.split_of(DATASETS["dynamic_replica"].scene_of(name)) == "test"
    assert catalog.exclusion_of("train/009850-3_obj/left") is None


def test_all_sequences_of_a_scene_share_a_split():
    names = {
        "blended_mvs": ["59d2657f82ca7774b1ec081d", "BlendedMVS/59d2657f82ca7774b1ec081d/59d2657f82ca7774b1ec081d"],
        "scannet": ["scans/scene0019_00", "scans/scene0019_01", "frames/scene0019_02/exported"],
        "tartanair": [
            "hospital/Easy/P037",
            "hospital/Hard/P041",
            "hospital/hospital/Easy/P038",
            "Hospital/Data_hard/P1",
        ],
        "virtual_kitti2": [f"Scene18/{kind}/Camera_{i}" for kind in ("clone", "fog", "15-deg-left") for i in (0, 1)],
        "point_odyssey": ["val/ani", "val/gym"],
        "dynamic_replica": ["valid/009850-3_obj/left", "valid/009850-3_obj/right", "copy/valid/a/left"],
        "co3d": ["ball/123_14363_28981", "release/ball/113_13350_23632"],
    }
    for key, sequences in names.items():
        assert {Catalog.load(key).split_of(DATASETS[key].scene_of(name)) for name in sequences} == {"val"}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("tartan_air", r"unknown dataset 'tartan_air' \(did you mean 'tartanair'\?\): there are .*virtual_kitti2"),
        ("zzz", r"unknown dataset 'zzz': there are "),
        ("../catalogs/tartanair", "unknown dataset"),
    ],
)
def test_unknown_dataset(key, message):
    with pytest.raises(ValueError, match=message):
        Catalog.load(key)


def wrong(tmp_path: Path, **changes) -> Path:
    facts = yaml.safe_load((FOLDER / "tartanair.yaml").read_text()) | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in facts.items() if value is not ...}))
    return path


@pytest.mark.parametrize("field", [name for name in Catalog.__dataclass_fields__ if name not in ("key", "benchmarks")])
def test_every_field_is_needed(tmp_path, field):
    with pytest.raises(ValueError, match=rf"mine\.yaml: missing field '{field}'"):
        Catalog.read(wrong(tmp_path, **{field: ...}))


TOLERANCE = {"relative": 0.01, "absolute": 0}
SPLITS = {"train": ["*"], "val": ["a"], "test": ["b"]}
WRONG = [
    ({"license": "MIT"}, r"mine\.yaml: unknown field 'license' \(did you mean 'licence'\?\)"),
    ({"licence": ...} | {"license": "MIT"}, r"unknown field 'license' \(did you mean 'licence'\?\)"),
    ({"title": 3}, "field 'title' is 3; it must be text"),
    ({"download": " "}, "field 'download' .* must be text"),
    ({"is_metric": "yes"}, "field 'is_metric' is 'yes'; it must be true or false"),
    ({"motion": "moving"}, "field 'motion' is 'moving'; it must be one of static, rigid_instances"),
    ({"normals": "some"}, "field 'normals' .*one of stored, depth, none"),
    ({"strides": [4, 1]}, r"field 'strides' is \[4, 1\]; it must be \[smallest, largest\]"),
    ({"strides": 3}, "field 'strides' is 3"),
    ({"depth_tolerance": 0.1}, "a mapping of fields is needed, not 0.1"),
    ({"depth_tolerance": {"relative": 0.1}}, "missing field 'absolute'"),
    ({"depth_tolerance": {**TOLERANCE, "relativ": 1}}, "unknown field 'relativ' .*'relative'"),
    ({"depth_tolerance": {**TOLERANCE, "relative": -1}}, "field 'relative' is -1; it must be a number from 0"),
    ({"depth_tolerance": {"relative": 0, "absolute": 0}}, "field 'relative' is 0; it must be above 0"),
    ({"excluded": ["a"]}, "field 'excluded' .* a mapping of names to text"),
    ({"splits": {"train": ["*"]}}, "field 'splits' .* a list of scenes for each of train, val and test"),
    ({"splits": {**SPLITS, "val": "a"}}, "field 'splits' .* a list of scenes"),
    ({"splits": {**SPLITS, "val": [1]}}, "field 'splits' .* scene names; quote numbers"),
    ({"splits": {**SPLITS, "val": ["b"]}}, "field 'splits' .* no scene, nor \\*, comes twice"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_values(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Catalog.read(wrong(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tartanair: 0", "field 'tartanair' is 0; it must be a positive number"),
        ("tartan_air: 1", r"unknown dataset 'tartan_air' \(did you mean 'tartanair'"),
        ("[tartanair]", "a mapping of datasets to weights"),
    ],
)
def test_mixtures_that_are_wrong(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"mixture mine\.yaml: {message}"):
        load_mixture(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("text", ["title: [", "- a list", "", "!!python/object/apply:os.getcwd []"])
def test_files_that_are_no_catalog(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml: "):
        Catalog.read(tmp_path / "mine.yaml")
