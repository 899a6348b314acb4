"""All that is wrong with a request, said at once and before the work; and reasons that are alike, said once."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class Several(ValueError):
    """More than one thing is wrong."""

    def __init__(self, reasons: list[str]) -> None:
        listed = "\n".join(f"  {reason}" for reason in reasons)
        super().__init__(f"{len(reasons)} things are wrong, and nothing was done:\n{listed}")
        self.reasons = reasons


class Problems:
    """Collects reasons to refuse."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A ValueError inside is noted, and what comes after the block is looked at too."""
        try:
            yield
        except Several as error:
            self.reasons += error.reasons
        except ValueError as error:
            self.reasons.append(str(error))

    def refuse(self) -> None:
        """ValueError with all of them, if there is any."""
        if len(self.reasons) > 1:
            raise Several(self.reasons)
        if self.reasons:
            raise ValueError(self.reasons[0])


def alike(reasons: dict[str, str]) -> list[str]:
    """Name -> reason as one line for each kind of reason, the most frequent first: how many, and one of them.

    Reasons are of a kind if they differ in numbers only.
    """
    kinds: dict[str, list[str]] = {}
    for name, reason in sorted(reasons.items()):
        kinds.setdefault(re.sub(r"\d+", "0", reason), []).append(name)
    frequent = sorted(kinds.values(), key=len, reverse=True)
    lines = []
    for names in frequent:
        more = f" (and {len(names) - 1} like it)" if len(names) > 1 else ""
        lines.append(f"{names[0]}: {reasons[names[0]]}{more}")
    return lines


def counted(count: int, thing: str) -> str:
    """1 clip, 2 clips."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
