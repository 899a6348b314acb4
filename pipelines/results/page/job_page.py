"""index.html: the videos of a job, each with a picture, what it is, and what to know of it."""

import html
from itertools import islice
from pathlib import Path

from pipelines.results.files import INDEX, RESULT
from pipelines.results.page.small import small_picture
from pipelines.results.page.video_page import PAGE
from pipelines.results.reading import Result, read_result
from pipelines.results.sources import Shown
from pipelines.whole import listed, write_file

THUMBNAIL = "thumbnail.jpg"
THUMBNAIL_SIDE, THUMBNAIL_BYTES = 240, 20_000
HERE = Path(__file__).parent
LINKS = ("tracks.mp4", "depth.mp4", "points.ply", "cameras.txt", RESULT)


def write_thumbnail(folder: Path, frames: Shown) -> None:
    """The frame in the middle, into a folder of results."""
    middle = next(islice(frames, len(frames) // 2, None))
    (folder / THUMBNAIL).write_bytes(small_picture(middle, THUMBNAIL_BYTES, THUMBNAIL_SIDE))


def write_index(out: str, failed: dict[str, str] | None = None) -> None:
    """Write OUT/index.html, in place of the one that was there: all results in OUT, damaged ones named.

    `failed`: videos without results -> why.
    """
    entries, wrong = [], dict(failed or {})
    for name in listed(out):
        if RESULT not in listed(f"{out}/{name}"):
            continue
        try:
            entries.append(_entry(name, read_result(f"{out}/{name}")))
        except ValueError as error:
            wrong[name] = str(error)
    lines = [f"<li><b>{html.escape(name)}</b>: {html.escape(reason)}</li>" for name, reason in sorted(wrong.items())]
    page = (HERE / "index.html").read_text()
    parts = {
        "{{count}}": str(len(entries)),
        "{{failed}}": f"<h2>{len(lines)} without results</h2><ul>{''.join(lines)}</ul>" if lines else "",
        "{{videos}}": "\n".join(entries),
    }
    for mark, content in parts.items():
        page = page.replace(mark, content, 1)
    write_file(f"{out}/{INDEX}", page.encode())


def _entry(folder: str, result: Result) -> str:
    video, there = result.video, result.document.all_files
    place = html.escape(folder.replace("%", "%25").replace("#", "%23").replace("?", "%3F"))
    windows = len(result.document.windows)
    facts = f"{len(video)} frames, {len(video) / video.fps:.1f} s, {video.width} × {video.height}"
    facts += f", {windows} windows" if windows > 1 else ""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in video.notes)
    links = " ".join(f'<a href="{place}/{name}">{name}</a>' for name in LINKS if name in [*there, RESULT])
    page = PAGE if PAGE in there else RESULT
    picture = f'<img src="{place}/{THUMBNAIL}" alt="" loading="lazy">' if THUMBNAIL in there else ""
    return (
        f'<article><a href="{place}/{page}">{picture}<h2>{html.escape(video.name)}</h2></a>'
        f'<p>{facts}</p><ul class="notes">{notes}</ul><p class="links">{links}</p></article>'
    )
