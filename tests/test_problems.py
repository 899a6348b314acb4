"""What is told of many sequences or videos: the same thing once."""

from pipelines.problems import alike


def test_reasons_that_differ_in_numbers_are_one_line():
    noted = {f"room{number:04}": f"{number} frames in no train or val list" for number in range(1, 105)}
    noted["room0007"] = "no pose"
    assert alike(noted) == ["room0001: 1 frames in no train or val list (and 102 like it)", "room0007: no pose"]
    assert alike({}) == []
