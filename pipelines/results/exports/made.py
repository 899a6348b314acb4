"""Exports are made from a result folder, again and again, without the model: RESULT/exports/FORMAT/.

Each has an about.json that says in which frame and unit its numbers are, which model said them, in which windows, and
what is missing or left out.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pipelines.results.exports import (
    colmap,
    depth_images,
    gltf,
    nerfstudio,
    opend4rt,
    point_cloud,
    st4rtrack,
    trajectories,
)
from pipelines.results.reading import Result, read_result
from pipelines.whole import remade_folder

ABOUT = "about.json"
FORMATS: dict[str, Callable[[Path, Result, str], list[str]]] = {
    "ply": point_cloud.write,
    "colmap": colmap.write,
    "nerfstudio": nerfstudio.write,
    "trajectory": trajectories.write,
    "gltf": gltf.write,
    "st4rtrack": st4rtrack.write,
    "opend4rt": opend4rt.write,
    "depth": depth_images.write,
}
"""Name -> what writes it into an empty folder, with a line about it; it gives notes. ValueError for what cannot be."""


def export_one(uri: str, name: str) -> list[str]:
    """Write one format of the results at `uri`, in place of the one that was there; gives notes on it.

    ValueError if there are no whole results, or not of what this format needs; then nothing is written.
    """
    result = read_result(uri)
    document = result.document
    windows = [asdict(window) for window in document.windows]
    about = (
        f"{result.video.name}; world: {document.world}; unit: {document.unit}; model {result.model}; "
        f"{max(1, len(windows))} window(s)"
    )
    about = " ".join(about.split())  # one line, whatever the video is called
    with remade_folder(f"{result.uri}/exports/{name}") as folder:
        notes = FORMATS[name](folder, result, about)
        told = {
            "format": name,
            "video": result.video.name,
            "frame_numbers": result.video.frame_numbers,
            "world": document.world,
            "unit": document.unit,
            "model": result.model,
            "windows": windows,
            "notes": notes,
        }
        (folder / ABOUT).write_text(json.dumps(told, indent=1) + "\n")
    return notes
