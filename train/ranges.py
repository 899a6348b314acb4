"""The one rule for the numbers of a run's config: each is finite, and in a range that its config states."""

Range = tuple[int | float, int | float]

BELOW_ONE = 0.999999
STEPS = (1, 10**9)


def check_numbers(config: object, ranges: dict[str, Range], section: str = "") -> None:
    """ValueError, naming the option, for a number that is not in its range, both ends of which belong to it.

    Of a field that holds several numbers, each must be. None is no number.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:  # NaN is in no range
                option = f"--{section}{name}".replace("_", "-")
                raise ValueError(f"{option} ({number}) must be from {low:g} to {high:g}")
