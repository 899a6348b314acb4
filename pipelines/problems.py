"""All that is wrong with a request, said at once and before the work."""

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
