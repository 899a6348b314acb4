"""What jobs say on their way. Tables and reports, which are what was asked for, are printed as they are."""

from tqdm import tqdm

from model.command_line import line


def say(text: str, **about: object) -> None:
    """A line for people, beside the progress bar if there is one; or, with D4RT_LOG=json, an object that has besides
    what it is `about`: run, step, store, sequence, video, ..."""
    with tqdm.external_write_mode():
        print(line(text, **about), flush=True)
