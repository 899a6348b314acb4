"""The worked numbers: what the official evaluation codes gave for inputs that are told (`data/eval_cases`)."""

import json
from typing import Any

import numpy as np
import pytest
from shared_data import SHARED

CASES = SHARED / "eval_cases"
needed = pytest.mark.skipif(not CASES.is_dir(), reason="the worked numbers are not here: shared/data/eval_cases")


class Case:
    def __init__(self, name: str) -> None:
        self.name, self.about = name, json.loads((CASES / "index.json").read_text())["cases"][f"{name}.npz"]
        with np.load(CASES / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = dict(file)

    def __getitem__(self, key: str) -> Any:
        return self.arrays[f"in/{key}"]

    def expected(self, prefix: str) -> dict[str, np.ndarray]:
        """Below out/prefix/, by the rest of their names."""
        start = f"out/{prefix}/" if prefix else "out/"
        return {key.removeprefix(start): value for key, value in self.arrays.items() if key.startswith(start)}

    def tolerance(self, name: str) -> float:
        for pattern, looser in self.about["looser"].items():
            if (pattern[0] == "*" and name.endswith(pattern[1:])) or (pattern[-1] == "/" and name.startswith(pattern)):
                return looser
        return self.about["tolerance_abs"]

    def agrees(self, name: str, found: Any) -> None:
        """`found` is out/name, within its stated tolerance."""
        expected = self.arrays[f"out/{name}"]
        bound = self.tolerance(f"out/{name}") + self.about["tolerance_rel"] * np.abs(expected)
        found = np.asarray(found, np.float64)
        same = (np.abs(found - expected) <= bound) | (np.isnan(found) & np.isnan(expected)) | (found == expected)
        if not np.all(same):
            worst = np.nanargmax(np.where(same, 0, np.abs(found - expected)))
            ours, theirs = found.flat[worst], expected.flat[worst]
            pytest.fail(f"{self.name}: {name} is {ours}, the official code has {theirs}", pytrace=False)


def names(start: str, *but: str) -> list[str]:
    listed = sorted(path.stem for path in CASES.glob(f"{start}*.npz")) if CASES.is_dir() else []
    return [name for name in listed if name not in but]
