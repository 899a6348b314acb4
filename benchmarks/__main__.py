"""`make bench`: all benchmarks, as tables and as JSON in benchmarks/results/."""

from pathlib import Path

from benchmarks import data, model, training

if __name__ == "__main__":  # processes of the model benchmark import this file
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    for module, name in ((model, "model.json"), (data, "data.json"), (training, "training.json")):
        module.main(["--out", str(results / name)])
        print()
