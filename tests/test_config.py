"""The numbers of a run's config: what can be none is refused when the config is made, before anything starts."""

import math
import re
from dataclasses import fields, is_dataclass, replace

import pytest

from train.config import PRESETS

TINY = PRESETS["tiny"][1]
WHOLE, REAL = (-1, 10**30), (-1.0, 1e30, math.nan, math.inf, -math.inf)


def numeric(config: object, section: str = "") -> list[tuple[str, str, int | float]]:
    """(section, field, what it can be none of) of every number in a run's config. The model's has a test of its own."""
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found += [] if field.name == "model" else numeric(value, field.name)
        elif re.search(r"\b(int|float)\b", str(field.type)) and field.name != "mixture":
            found += [(section, field.name, number) for number in (REAL if "float" in str(field.type) else WHOLE)]
    return found


@pytest.mark.parametrize(("section", "name", "number"), numeric(TINY))
def test_every_number_is_finite_and_in_a_range(section, name, number):
    part = getattr(TINY, section) if section else TINY
    value = (0.9, number) if name == "betas" else number
    words = "--" + ".".join(filter(None, (section, name))).replace("_", "-")
    with pytest.raises(ValueError, match=rf"^{re.escape(f'{words} ({number})')} must be from \S+ to \S+$"):
        replace(part, **{name: value})


def test_all_of_them_are_looked_at():
    names = {name for _, name, _ in numeric(TINY)}
    assert {"lr", "encoder_lr", "weight_decay", "betas", "max_weight", "clips", "min_workers", "max_failures"} <= names


def test_a_name_is_no_longer_than_a_folder_can_be():
    assert replace(TINY, name="a" * 200).name
    with pytest.raises(ValueError, match="has more than 200 bytes"):
        replace(TINY, name="ä" * 101)
