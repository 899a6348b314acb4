"""A name that is also a pattern, a fragment, an escape and more, and how to bring files to it."""

from pathlib import Path

from pipelines.raw.place import open_place

ODD = "room[12] *?{a,b} #5%20 ü."


def upload(folder: Path, uri: str) -> None:
    """Every file of a folder, by its very name."""
    fs, target = open_place(uri)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        fs.put_file(str(file), f"{target}/{file.relative_to(folder)}")
