"""What do ten million clips and 256 machines take? Measured on an index of that many rows.

    python -m benchmarks.scale [--clips N] [--out FILE]

The index has the schema of a converted store, eight clips a group and 25 groups a sequence, and one group is real: 48
frames of 256 x 256 of a synthetic flight in TartanAir's layout, with samples of 2048 queries. On it:

    finish    what the driver of `convert` does at the end, per clip: marks to index; measured on fewer marks
    open      what every training worker does once: seconds, memory per clip, bytes it fetches
    order     the next clip of a run: seconds; whether an epoch, dealt to all workers, has every clip once
    requests  of an epoch on S3, by how often a reader finds the group of its next clip still open
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from benchmarks.figures import keep, parser_of
from benchmarks.reading import CLIPS_PER_GROUP, write_store
from benchmarks.timing import cpu_seconds
from pipelines.store.groups import KEPT_GROUPS
from pipelines.store.index import INDEX, finish
from pipelines.store.layout import INDEX_SCHEMA
from pipelines.store.marks import Mark, Origin, publish
from pipelines.store.reader import KEPT, ClipStore
from pipelines.synthesize.job import write_sequence
from train.mixture import MixturePlan

CLIPS = 10_000_000
GROUPS_PER_SEQUENCE = 25
NODES, GPUS, READERS = 256, 8, 8  # machines, GPUs in each, readers for a GPU
FRAMES = 48
MARKS = 2_048  # groups on which `finish` is measured
ROWS_AT_ONCE = 500_000  # of the index, while it is written
OPENED_GROUP, OPEN, NEXT = 3, 2, 2  # requests of a clip whose group is new to a reader, and of another one


def index_rows(count: int, like: dict[str, object], group: str) -> Iterator[pa.Table]:
    """`count` rows of the index, each like the row given, but of another clip. The first names the real group."""
    for first in range(0, count, ROWS_AT_ONCE):
        number = np.arange(first, min(first + ROWS_AT_ONCE, count))
        groups = number // CLIPS_PER_GROUP
        sequence = _text(groups // GROUPS_PER_SEQUENCE, "environment{}/Easy/P000", 6)
        names = pc.binary_join_element_wise(
            _text(groups // GROUPS_PER_SEQUENCE, "environment{}_2FEasy_2FP000", 6),
            _text(groups % GROUPS_PER_SEQUENCE * CLIPS_PER_GROUP, "{}", 6),
            "/",
        )
        hashes = _random_text(groups - groups[0], 20, first)  # of what it was made from, and of its writer
        names = pc.binary_join_element_wise(names, hashes, "-")
        names = pc.replace_with_mask(names, pa.array(number < CLIPS_PER_GROUP), pa.scalar(group))
        start = number % (CLIPS_PER_GROUP * GROUPS_PER_SEQUENCE) * FRAMES
        frames = (start[:, None] + np.arange(FRAMES)).ravel()
        own = {
            "id": pc.binary_join_element_wise(sequence, _text(start, "@{}x1", 5), ""),
            "sequence": sequence,
            "group": names,
            "row": pa.array(number % CLIPS_PER_GROUP),
            "start": pa.array(start),
            "frame_numbers": pa.ListArray.from_arrays(np.arange(0, len(frames) + 1, FRAMES, np.int32), frames),
            "digest": _random_text(number - first, 16, first),
        }
        columns = [own.get(name, pa.repeat(pa.scalar(like[name], kind), len(number))) for name, kind in _kinds()]
        yield pa.table(columns, schema=INDEX_SCHEMA)


def _kinds() -> Iterator[tuple[str, pa.DataType]]:
    return ((field.name, field.type) for field in INDEX_SCHEMA)


def _text(numbers: np.ndarray, template: str, digits: int) -> pa.Array:
    before, after = template.split("{}")
    padded = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0")
    return pc.binary_join_element_wise(before, padded, after, "")


def _random_text(numbers: np.ndarray, length: int, seed: int) -> pa.Array:
    """Hexadecimal digits of so many bytes, the same where numbers are."""
    digits = np.random.default_rng(seed).bytes(length * (int(numbers.max()) + 1)).hex()
    texts = pa.array([digits[place : place + 2 * length] for place in range(0, len(digits), 2 * length)])
    return texts.take(pa.array(numbers))


def write_index(store: str, count: int) -> dict[str, float]:
    """Make a store of one group one of `count` clips; the size of its index."""
    file = Path(store, INDEX)
    like = pyarrow.parquet.read_table(file).slice(0, 1).to_pylist()[0]
    with pyarrow.parquet.ParquetWriter(file, INDEX_SCHEMA) as writer:
        for table in index_rows(count, like, like["group"]):
            writer.write_table(table)
    document = json.loads(Path(store, "store.json").read_text()) | {"num_clips": count}
    Path(store, "store.json").write_text(json.dumps(document))

    kept, metadata = 0, pyarrow.parquet.read_metadata(file)
    for part in range(metadata.num_row_groups):
        columns = [metadata.row_group(part).column(place) for place in range(metadata.num_columns)]
        kept += sum(column.total_compressed_size for column in columns if column.path_in_schema in KEPT)
    return {"index_bytes_per_clip": file.stat().st_size / count, "fetched_bytes_per_clip": kept / count}


def measure_finish(store: str, other: str, groups: int) -> dict[str, float]:
    """The end of the conversion of another store, of so many groups like those of this one."""
    settings = ClipStore(store).settings
    columns = pyarrow.parquet.read_table(Path(store, INDEX)).slice(0, CLIPS_PER_GROUP).to_pylist()
    names = []
    for number in range(groups):
        sequence = f"environment{number // GROUPS_PER_SEQUENCE:06d}"
        frames = tuple(tuple(range(FRAMES)) for _ in columns)
        origin = Origin(sequence=sequence, first=number, frames=frames, labels={}, files={})
        name = origin.name(settings)
        rows = [row | {"sequence": sequence, "group": f"{name}-0"} for row in columns]
        assert publish(other, name, Mark(origin=origin, group=f"{name}-0", rows=rows))
        names.append(name)
    seconds = cpu_seconds(lambda: finish(other, settings, names, {}), runs=1)
    return {"finish_cpu_seconds_per_clip": seconds / (groups * CLIPS_PER_GROUP)}


def clip_bytes(store: str) -> float:
    """That a training step reads: the frames, and one of the samples of queries."""
    group = next(Path(store).glob("data/*/*.zarr"))
    sizes = {name: sum(file.stat().st_size for file in group.glob(f"{name}/c/**/0")) for name in ("video", "queries")}
    return (sizes["video"] + sizes["queries"] / ClipStore(store).settings.samples) / CLIPS_PER_GROUP


OPENED = """
import sys, time
import psutil
from pipelines.store.reader import ClipStore
process = psutil.Process()
memory, began = process.memory_info().rss, time.process_time()
store = ClipStore(sys.argv[1])
print(len(store), time.process_time() - began, (process.memory_info().rss - memory) / len(store))
began = time.process_time()
for place in range(1000):
    store[place * 7919 % len(store)]
print((time.process_time() - began) / 1000)
"""


def measure_open(store: str) -> dict[str, float]:
    """In a process of its own, as a worker is."""
    done = subprocess.run([sys.executable, "-c", OPENED, store], capture_output=True, text=True, check=True)
    opened, found = done.stdout.splitlines()
    _, seconds, memory = opened.split()
    return {
        "open_cpu_seconds": float(seconds),
        "memory_bytes_per_clip": float(memory),
        "find_cpu_microseconds": 1e6 * float(found),
    }


def measure_order(count: int) -> dict[str, float]:
    """One epoch, dealt to all workers, and what one reader of the first of them meets."""
    plan = MixturePlan(stores=("store",), weights=(1.0,), lengths=(count,), samples=(4,), seed=0)
    workers = NODES * GPUS
    seen, first_reader = np.zeros(count, bool), []
    began = time.process_time()
    for index in range(count):
        _, clip, sample = plan.clip(index)
        seen[clip] = True
        assert sample == 0
        if index % (workers * READERS) == 0:
            first_reader.append(clip // CLIPS_PER_GROUP)
    seconds = time.process_time() - began
    assert seen.all(), "an epoch left clips out"

    kept: dict[int, None] = {}  # the groups that the reader has open, the longest unused first
    opened = 0
    for group in first_reader:
        opened += group not in kept
        kept.pop(group, None)
        kept[group] = None
        if len(kept) > KEPT_GROUPS:
            del kept[next(iter(kept))]
    requests = NEXT + (OPENED_GROUP - NEXT) * opened / len(first_reader)
    return {"order_cpu_microseconds": 1e6 * seconds / count, "requests_per_clip": requests}


def measure(clips: int, marks: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        row = {"dataset": "tartanair", "root": f"{folder}/raw", "index": 0}
        write_sequence(row, frames=FRAMES, size="official", seed=0)
        write_store(f"{folder}/raw", f"{folder}/store", FRAMES)
        report = {"clips": clips, "clip_bytes": clip_bytes(f"{folder}/store")}
        report |= measure_finish(f"{folder}/store", f"{folder}/other", marks)
        report |= write_index(f"{folder}/store", clips)
        report |= measure_open(f"{folder}/store")
    return report | measure_order(clips)


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS, help="rows of the index")
    arguments = parser.parse_args(argv)
    report = measure(arguments.clips, MARKS)
    for name, figure in report.items():
        print(f"{name.replace('_', ' '):34} {figure:,.6g}")
    keep(report, arguments.out)


if __name__ == "__main__":
    main()
