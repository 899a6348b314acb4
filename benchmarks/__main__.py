"""`make bench`: all benchmarks, as tables and as JSON in benchmarks/results/."""

import argparse
from importlib import import_module
from pathlib import Path

BENCHMARKS = ("model", "inference", "long_video", "truth", "reading", "feeding", "training", "service")


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"One of them: python -m benchmarks.NAME, of {', '.join(BENCHMARKS)}, scale; learning, soak (an hour).",
    ).parse_args()
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    for name in BENCHMARKS:
        import_module(f"benchmarks.{name}").main(["--out", str(results / f"{name}.json")])
        print()


if __name__ == "__main__":  # processes of the model benchmark import this file
    main()
