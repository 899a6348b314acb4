"""`make bench`: all benchmarks, as tables and as JSON in benchmarks/results/."""

from pathlib import Path

from benchmarks import feeding, model, reading, training, truth

if __name__ == "__main__":  # processes of the model benchmark import this file
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    for module in (model, truth, reading, feeding, training):
        name = module.__name__.removeprefix("benchmarks.")
        module.main(["--out", str(results / f"{name}.json")])
        print()
