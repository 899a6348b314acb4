"""What we know about each dataset: facts from `catalogs/<key>.yaml`, checked on loading.

Settings of a conversion or weights of a mixture are not facts about a dataset and do not belong there.
"""

from dataclasses import MISSING, asdict, dataclass, field, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from jaxtyping import Float

FOLDER = Path(__file__).parent.parent / "catalogs"
Motion = Literal["static", "rigid_instances", "tracks", "unknown"]
Normals = Literal["stored", "depth", "none"]
Split = Literal["train", "val", "test"]
Allows = Literal["any use", "non-commercial", "research"]


@dataclass(frozen=True, kw_only=True)
class DepthTolerance:
    """How far two depths of one surface may differ, and how finely a depth is stored. Shares of it, or its unit."""

    relative: int | float
    absolute: int | float
    relative_step: int | float = 0
    """Distance between neighbouring values that the files can hold; 0 if they are as good as exact."""
    absolute_step: int | float = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _require(type(value) in (int, float) and 0 <= value < np.inf, name, value, "a number from 0 upwards")
        _require(self.relative + self.absolute > 0, "relative", self.relative, "above 0 where absolute is 0")

    def of(self, depth: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
        """Largest difference that still counts as agreement; NaN where depth is."""
        return np.maximum(self.absolute, self.relative * depth)

    def step_of(self, depth: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
        """Size of one step of the stored depth; NaN where depth is."""
        return np.maximum(self.absolute_step, self.relative_step * depth)


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The facts about one dataset."""

    key: str
    """The dataset's one name, as in `pipelines.datasets.DATASETS`; the name of the file."""
    title: str
    licence: str
    allows: Allows
    """What may be done with what was made from it, models among it, as far as one word can say; the licence counts."""
    home: str
    is_metric: bool
    """Whether depth and poses are metres; otherwise the dataset's own unit."""
    motion: Motion
    normals: Normals
    """Whether they are stored, good enough from depth, or not to be had."""
    strides: tuple[int, int]
    """Smallest and largest step between the frames of a clip."""
    depth_tolerance: DepthTolerance
    annotated: str
    splits: dict[str, list[str]]
    """Scenes (`Dataset.scene_of`) of train, val and test. A name goes before a pattern like "scene07??", and any
    pattern before "*", which stands for every other scene."""
    download: str
    files: dict[str, str]
    """What to expect of the download: archive to size and checksum, where they are published."""
    excluded: dict[str, str]
    """Sequences that conversion leaves out, a name or a pattern to the reason."""
    benchmarks: dict[str, list[str]] = field(default_factory=dict)
    """Benchmark to the scenes, names or patterns, that it is made of: no model is trained on them."""

    @classmethod
    def load(cls, key: str) -> "Catalog":
        """The catalog of a dataset, e.g. "tartanair"."""
        known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
        if key not in known:
            raise ValueError(f"unknown dataset {key!r}{_nearest(key, known)}: there are {', '.join(known)}")
        return cls.read(FOLDER / f"{key}.yaml")

    @classmethod
    def read(cls, path: Path) -> "Catalog":
        """A catalog file, named for its dataset. ValueError for a field that is missing, unknown or impossible."""
        try:
            given = _given(cls, yaml.safe_load(path.read_text()))
            given["depth_tolerance"] = DepthTolerance(**_given(DepthTolerance, given["depth_tolerance"]))
            _check(given)
            return cls(key=path.stem, **given | {"strides": tuple(given["strides"])})
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path.parent.name}/{path.name}: {error}") from None

    def split_of(self, scene: str) -> Split:
        """Where the sequences of a scene belong. ValueError if no split lists it and none has "*"."""
        for fits in (scene.__eq__, lambda listed: listed != "*" and fnmatchcase(scene, listed), "*".__eq__):
            for split, scenes in self.splits.items():
                if any(map(fits, scenes)):
                    return split
        listed = [scene for scenes in self.splits.values() for scene in scenes]
        raise ValueError(
            f"scene {scene!r} is in no split of catalogs/{self.key}.yaml{_nearest(scene, listed)}: check that the raw "
            "folder is the one that holds these scenes, or add it to a split"
        )

    def benchmark_of(self, scene: str) -> str | None:
        """A benchmark that this scene is part of; None if there is none."""
        listed = (key for key, scenes in self.benchmarks.items() if any(fnmatchcase(scene, each) for each in scenes))
        return next(listed, None)

    def exclusion_of(self, sequence: str) -> str | None:
        """Why a sequence is left out; None if it is not."""
        reasons = (reason for listed, reason in self.excluded.items() if fnmatchcase(sequence, listed))
        return next(reasons, None)

    def facts(self) -> dict[str, Any]:
        """All of it as plain data, to be kept with what was made from the dataset."""
        return asdict(self)


def load_mixture(name: str) -> dict[str, float]:
    """Dataset to sampling weight, from `catalogs/mixtures/<name>.yaml` or, if it ends in .yaml, from that file.

    ValueError for a mixture or a dataset that does not exist, and for weights that are not positive numbers.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"mixtures/{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise ValueError(f"no mixture {name!r}: in {path.parent.name}/ there are {there}")
    try:
        weights = yaml.safe_load(path.read_text())
        if not isinstance(weights, dict) or not weights:
            raise ValueError("a mapping of datasets to weights is needed")
        for key, weight in weights.items():
            if Catalog.load(str(key)).splits["test"] == ["*"]:
                raise ValueError(f"{key} is to evaluate on, not to train on")
            _require(type(weight) in (int, float) and 0 < weight < np.inf, key, weight, "a positive number")
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"mixture {path.name}: {error}") from None
    return {key: float(weight) for key, weight in weights.items()}


def _given(cls: type, facts: Any) -> dict[str, Any]:
    """The mapping found in a file, if it has the fields of `cls` and no others."""
    if not isinstance(facts, dict):
        raise ValueError(f"a mapping of fields is needed, not {facts!r}")
    needed = {
        field.name: field.default is MISSING and field.default_factory is MISSING
        for field in fields(cls)
        if field.name != "key"
    }
    for name in facts.keys() - needed.keys():
        raise ValueError(f"unknown field {name!r}{_nearest(name, list(needed))}")
    for name, required in needed.items():
        if required and name not in facts:
            raise ValueError(f"missing field {name!r}")
    return dict(facts)


def _check(facts: dict[str, Any]) -> None:
    """ValueError for a value that its field of `Catalog` cannot have."""
    for name in ("title", "licence", "home", "annotated", "download"):
        text = facts[name]
        _require(isinstance(text, str) and text.strip() != "", name, text, "text")
    _require(isinstance(facts["is_metric"], bool), "is_metric", facts["is_metric"], "true or false")
    _require(facts["motion"] in get_args(Motion), "motion", facts["motion"], f"one of {', '.join(get_args(Motion))}")
    _require(
        facts["normals"] in get_args(Normals), "normals", facts["normals"], f"one of {', '.join(get_args(Normals))}"
    )
    _require(facts["allows"] in get_args(Allows), "allows", facts["allows"], f"one of {', '.join(get_args(Allows))}")
    for name in ("files", "excluded"):
        told = facts[name]
        texts = isinstance(told, dict) and all(isinstance(text, str) for pair in told.items() for text in pair)
        _require(texts, name, told, "a mapping of names to text")
    held_out = facts.get("benchmarks", {})
    lists = isinstance(held_out, dict) and all(isinstance(scenes, list) for scenes in held_out.values())
    _require(lists, "benchmarks", held_out, "a mapping of benchmarks to lists of scenes")
    strides, splits = facts["strides"], facts["splits"]
    two = isinstance(strides, list) and len(strides) == 2 and all(type(stride) is int for stride in strides)
    _require(two and 1 <= strides[0] <= strides[1], "strides", strides, "[smallest, largest], whole numbers from 1")
    named = isinstance(splits, dict) and set(splits) == set(get_args(Split))
    listed = named and all(isinstance(scenes, list) for scenes in splits.values())
    _require(listed, "splits", splits, "a list of scenes for each of train, val and test")
    scenes = [scene for split in splits.values() for scene in split]
    _require(all(isinstance(scene, str) for scene in scenes), "splits", scenes, "scene names; quote numbers")
    _require(len(set(scenes)) == len(scenes), "splits", splits, "such that no scene, nor *, comes twice")


def _require(fulfilled: bool, field: str, value: Any, rule: str) -> None:
    if not fulfilled:
        raise ValueError(f"field {field!r} is {value!r}; it must be {rule}")


def _nearest(name: Any, names: list[str]) -> str:
    """A hint like " (did you mean 'licence'?)" where a name is close."""
    close = get_close_matches(str(name), names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
