"""index.html: the videos of a job, each with a picture, what it is, and what to know of it."""

import html
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipelines.results.files import INDEX, RESULT
from pipelines.results.page.parts import filled, small_picture
from pipelines.results.page.video_page import PAGE
from pipelines.results.reading import Result, read_result
from pipelines.whole import listed, write_file

THUMBNAIL = "thumbnail.jpg"
THUMBNAIL_SIDE, THUMBNAIL_BYTES = 240, 20_000
READERS = 8  # results that are looked at together
PICTURES = {"points.png": "points", "cameras.png": "cameras"}  # shown below the facts -> what they show
LINKS = ("tracks.mp4", "depth.mp4", "confidence.mp4", "points.ply", "cameras.txt", RESULT)


def write_thumbnail(folder: Path, frame: UInt8[np.ndarray, "H W 3"]) -> None:
    """Into a folder of results."""
    (folder / THUMBNAIL).write_bytes(small_picture(frame, THUMBNAIL_BYTES, THUMBNAIL_SIDE))


def write_index(out: str, failed: Mapping[str, str]) -> None:
    """Write OUT/index.html, in place of the one that was there: all results in OUT, damaged ones named.

    `failed`: videos without results -> why.
    """
    wrong = dict(failed)

    def entry(name: str) -> str:
        there = listed(f"{out}/{name}")
        if RESULT not in there:
            return ""
        try:
            return _entry(name, read_result(f"{out}/{name}"), there)
        except ValueError as error:
            wrong[name] = str(error)
            return ""

    with ThreadPoolExecutor(READERS) as pool:
        entries = [made for made in pool.map(entry, listed(out)) if made]
    lines = [f"<li><b>{html.escape(name)}</b>: {html.escape(reason)}</li>" for name, reason in sorted(wrong.items())]
    parts = {
        "count": f"{len(entries)} video{'s' * (len(entries) != 1)}",
        "failed": f"<h2>{len(lines)} without results</h2><ul>{''.join(lines)}</ul>" if lines else "",
        "videos": "\n".join(entries),
    }
    write_file(f"{out}/{INDEX}", filled(INDEX, parts).encode())


def _entry(folder: str, result: Result, there: list[str]) -> str:
    video = result.video
    place = html.escape(folder.replace("%", "%25").replace("#", "%23").replace("?", "%3F"))
    windows = len(result.document.windows)
    facts = f"{len(video)} frames, {len(video) / video.fps:.1f} s, {video.width} × {video.height}"
    facts += f", {windows} windows" if windows > 1 else ""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in video.notes)
    links = " ".join(f'<a href="{place}/{name}">{name}</a>' for name in LINKS if name in there)
    picture = f'<img src="{place}/{THUMBNAIL}" alt="" loading="lazy">' if THUMBNAIL in there else ""
    shown = "".join(
        f'<a href="{place}/{name}"><img src="{place}/{name}" alt="{words}" title="{words}" loading="lazy"></a>'
        for name, words in PICTURES.items()
        if name in there
    )
    page = PAGE if PAGE in there else RESULT
    return (
        f'<article><a href="{place}/{page}">{picture}<h2>{html.escape(video.name)}</h2></a>'
        f'<p>{facts}</p><ul class="notes">{notes}</ul><div class="pictures">{shown}</div>'
        f'<p class="links">{links}</p></article>'
    )
