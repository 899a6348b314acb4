"""docs/queries.md: its example runs as it stands, and shows what the page says it shows."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs/queries.md"


def test_the_example_shows_what_rests_in_one_camera_and_what_moves(capsys) -> None:
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1], {})
    told = {}
    for line in capsys.readouterr().out.splitlines():
        name, numbers = line.split("[", 1)
        told[" ".join(name.split())] = ["".join(part.split()) for part in numbers.rstrip("]").split("] [")]
    assert len(told) == 4
    assert len(set(told["floor in camera 0"])) == 1
    for moves in ("floor in its own camera", "ball in its own camera", "ball in camera 0"):
        assert len(set(told[moves])) == 2
    for name in ("floor", "ball"):
        assert told[f"{name} in its own camera"][0] == told[f"{name} in camera 0"][0]
