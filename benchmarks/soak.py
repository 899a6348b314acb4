"""Does the work come out right, whatever is killed meanwhile, and does nothing grow or stay behind?

    python -m benchmarks.soak [--minutes N] [--sequences N] [--seed N] [--out FILE]

Three commands beside each other on a Ray cluster of four nodes on this machine, with an S3 and an MLflow server:
`convert` makes a clip store of raw sequences on S3, `train` reads a finished one, `infer` answers for videos. One that
ends well is begun anew, in another place; one that fails is started again, as a scheduler would. Every few minutes
something is killed (-9) that was drawn by chance: a process of Ray's that works, a node's raylet, the S3 server, the
MLflow server, a command. Servers and nodes come back after some seconds. The next kill waits until all three commands
have got on.

When the time is over, what is under way is finished, and all is looked at: stores against one that was made before
without any disturbance, curves, results, memory, files, processes.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import numpy as np
import psutil
from ray.cluster_utils import Cluster

from benchmarks import soak_checks
from benchmarks.figures import keep, parser_of
from benchmarks.servers import BUCKET, MlflowServer, S3Server
from benchmarks.watch import Watch
from model import D4RT, ModelConfig, checkpoints
from pipelines.cluster import ROOT
from pipelines.pictures.video_file import write_video
from pipelines.raw.place import open_place
from pipelines.store.reader import ClipStore
from pipelines.synthesize.job import write_sequence
from pipelines.whole import sizes

PLACE = f"s3://{BUCKET}"
# A training worker takes a node: of larger ones, none would be empty beside the tasks of the others.
NODES, NODE = 4, {"num_cpus": 1, "object_store_memory": 200 << 20}
WORKERS = {"idle_worker_killing_time_threshold_ms": 120_000, "worker_niceness": 0}  # as in a private cluster
HEAD = NODE | {"include_dashboard": False, "_system_config": WORKERS}
VIDEOS, FRAMES = 4, 24
STEPS, LOG_EVERY = 60, 5
CONVERT = f"pipelines convert tartanair --raw {PLACE}/raw --split all --frames 4 --image-size 64 --queries 64"
PROGRESS = re.compile(r"(\w+) tartanair: ([1-9]\d*) of ")  # of `convert`, in its log
COMMANDS = {  # what is done, and what of it lies there once it has got on; of `convert`, PROGRESS tells
    "convert": (f"{CONVERT} --max-failed-share 0 --store {{place}}", None),
    "train": (
        "train tiny --model.encoder-layers 2 --model.decoder-layers 1 --data.queries 48 --data.clips-per-worker 2 "
        f"--data.mixture.{PLACE}/undisturbed 1 --workers 1 --optim.warmup-steps 10 --steps {STEPS} "
        f"--checkpoint-every 10 --log-every {LOG_EVERY} --out {PLACE}/train --name {{number}} --register-as soak",
        r"^step_.*/position\.json",
    ),
    "infer": (f"pipelines infer --model {PLACE}/model --grid 4 --video {{videos}} --out {{place}}", r"\.npz|\.json"),
}
KILLS = ("worker", "raylet", "S3", "MLflow", "command")
KILL_EVERY = 60.0  # seconds after all got on again, half of it to one and a half
AWAY = 5.0, 20.0  # seconds that servers and nodes are
AGAIN_SECONDS = 5.0  # after which a scheduler starts a command again
MOST_FAILURES = 5  # of a command, without a kill between them
RECOVER_SECONDS = 900.0
END_SECONDS = 1800.0  # for what is under way when the time is over
MOST_GROWTH = 0.1  # of the largest process of a kind, from the first third to the last


class Repeated(threading.Thread):
    """A command that is done again and again, each time into a new place, and started again when it fails."""

    def __init__(self, name: str, videos: str, folder: Path) -> None:
        super().__init__(name=name, daemon=True)
        self.words, self.sign = COMMANDS[name]
        self.videos, self.log, self.over = videos, folder / f"{name}.log", threading.Event()
        self.ended, self.places, self.exits, self.failures = threading.Event(), [], Counter(), 0
        self.process: subprocess.Popen | None = None

    def goes_on(self) -> bool:
        return self.failures <= MOST_FAILURES and not self.ended.is_set()

    def run(self) -> None:
        while self.goes_on() and not self.over.is_set():
            number = len(self.places)
            self.places.append(f"{PLACE}/{self.name}/{number}")
            words = self.words.format(place=self.places[-1], number=number, videos=self.videos)
            while self.goes_on() and self.once(words) != 0:
                self.ended.wait(AGAIN_SECONDS)

    def once(self, words: str) -> int:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", *words.split()], stdout=log, stderr=log)
            code = self.process.wait()
        self.exits[str(code)] += 1
        self.failures = self.failures + 1 if code else 0
        return code

    def signs(self) -> set[str]:
        """Names that are there because it got on: of files, and of places, each of which is begun when one is done."""
        place, begun = self.places[-1], set(self.places[1:])
        if self.sign is None:
            states = [state for state, _ in groupby(PROGRESS.findall(self.log.read_text(errors="replace")))]
            return begun | {f"progress {number}" for number in range(len(states))}
        return begun | {f"{place}/{name}" for name in sizes(place) if re.search(self.sign, name)}

    def require_hope(self) -> None:
        if self.failures > MOST_FAILURES:
            raise AssertionError(f"{self.name} fails again and again: {self.log.read_text()[-3000:]}")


class Soak:
    def __init__(self, commands: list[Repeated], cluster: Cluster, s3: S3Server, tracking: MlflowServer, seed: int):
        self.commands, self.cluster, self.servers = commands, cluster, {"S3": s3, "MLflow": tracking}
        self.draw, self.deck = random.Random(seed), []
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KILLS}
        """From each kill until every command has got on."""

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for command in self.commands:
            command.start()
        self.wait_until_all_get_on()
        while (pause := KILL_EVERY * self.draw.uniform(0.5, 1.5)) < end - time.monotonic():
            time.sleep(pause)
            self.deck = self.deck or self.draw.sample(KILLS, len(KILLS))
            self.kill(self.deck.pop())
        time.sleep(max(0.0, end - time.monotonic()))
        for command in self.commands:
            command.over.set()
        for command in self.commands:
            command.join(END_SECONDS)
            command.require_hope()
            if command.is_alive():
                raise AssertionError(f"{command.name} does not end: {command.log.read_text()[-3000:]}")

    def kill(self, kind: str) -> None:
        for command in self.commands:
            command.failures = 0
        before, began, away = self.signs(), time.monotonic(), self.draw.uniform(*AWAY)
        if kind in self.servers:
            self.servers[kind].kill()
            time.sleep(away)
            self.servers[kind].start()
        elif kind == "raylet":
            self.cluster.remove_node(self.draw.choice(list(self.cluster.worker_nodes)), allow_graceful=False)
            time.sleep(away)
            self.cluster.add_node(**NODE)
        elif kind == "command":
            self.draw.choice(self.commands).process.kill()
        else:
            psutil.Process(self.draw.choice(working())).kill()
        print(f"{time.strftime('%H:%M:%S')} killed: {kind}", flush=True)
        self.wait_until_all_get_on(before)
        self.seconds[kind].append(round(time.monotonic() - began, 1))
        print(f"{time.strftime('%H:%M:%S')} all got on after {self.seconds[kind][-1]:.0f} s", flush=True)

    def signs(self) -> list[set[str]]:
        return [command.signs() for command in self.commands]

    def wait_until_all_get_on(self, before: list[set[str]] | None = None) -> None:
        end, waiting = time.monotonic() + RECOVER_SECONDS, dict(enumerate(self.commands))
        while waiting:
            time.sleep(1)
            for number, command in list(waiting.items()):
                command.require_hope()
                if command.places and command.signs() - (before[number] if before else set()):
                    del waiting[number]
            if time.monotonic() > end:
                command = next(iter(waiting.values()))
                raise AssertionError(f"{command.name} does not get on: {command.log.read_text()[-3000:]}")

    def end(self) -> None:
        """Whatever happened."""
        for command in self.commands:
            command.ended.set()
            if command.process is not None:
                command.process.kill()


def working() -> list[int]:
    """Processes of Ray's, started by this one, that have something to do."""
    titles = {each.pid: " ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)}
    return [pid for pid, title in sorted(titles.items()) if title.startswith("ray::") and "IDLE" not in title]


def prepare(folder: Path, sequences: int) -> str:
    """Raw sequences, a model and videos, the videos' files as words of a command line."""
    fs, _ = open_place(PLACE)
    for index in range(sequences):
        row = {"dataset": "tartanair", "root": str(folder / "raw"), "index": index}
        write_sequence(row, frames=4, size="small", seed=0)
    checkpoints.save(D4RT(ModelConfig.preset("tiny")), folder / "model")
    for name in ("raw", "model"):
        fs.put(f"{folder / name}/", f"{BUCKET}/{name}/", recursive=True)
    draw, videos = np.random.default_rng(0), [folder / f"{number}.mp4" for number in range(VIDEOS)]
    for video in videos:
        write_video(video, draw.integers(0, 256, (FRAMES, 48, 64, 3), dtype=np.uint8), 10.0)
    return " ".join(map(str, videos))


def measure(folder: Path, minutes: float, sequences: int, seed: int) -> dict:
    scratch = folder / "tmp"
    for name in ("tmp", "s3"):
        (folder / name).mkdir()
    # Whatever is started from here on has these. Threads that wait for a core, of which there are few, must not spin.
    os.environ.update(TMPDIR=str(scratch), RAY_TMPDIR=str(folder), PYTHONPATH=str(ROOT), OMP_WAIT_POLICY="PASSIVE")
    with Watch() as watch:
        with ExitStack() as stack:
            s3, tracking = (stack.enter_context(each) for each in (S3Server(folder / "s3"), MlflowServer(folder / "m")))
            videos = prepare(folder, sequences)
            cluster = Cluster(initialize_head=True, head_node_args=HEAD, shutdown_at_exit=False)
            stack.callback(cluster.shutdown)
            os.environ["RAY_ADDRESS"] = cluster.address
            for _ in range(NODES - 1):
                cluster.add_node(**NODE)
            began = time.monotonic()
            words = f"{CONVERT} --store {PLACE}/undisturbed"
            subprocess.run([sys.executable, "-m", *words.split()], check=True)
            undisturbed = time.monotonic() - began

            commands = [Repeated(name, videos, folder) for name in COMMANDS]
            soak = Soak(commands, cluster, s3, tracking, seed)
            stack.callback(soak.end)
            with watch.measured():
                soak.run(60 * minutes)
            convert, train, infer = (command.places for command in commands)
            checks = Checks()
            checks.do(soak_checks.check_stores, convert, ClipStore(f"{PLACE}/undisturbed").info["digest"])
            checks.do(soak_checks.check_runs, train, range(LOG_EVERY, STEPS + 1, LOG_EVERY))
            checks.do(soak_checks.check_results, infer, VIDEOS)
            checks.do(soak_checks.check_nothing_is_left, PLACE, scratch)
        checks.do(watch.require_flat, MOST_GROWTH)
        checks.do(watch.require_none_left)
    return {
        "seconds_of_an_undisturbed_conversion": undisturbed,
        "kills": {kind: len(seconds) for kind, seconds in soak.seconds.items()},
        "seconds_to_recover": soak.seconds,
        "done": {command.name: len(command.places) for command in commands},
        "exit_codes": {command.name: dict(command.exits) for command in commands},
        "megabytes": watch.thirds(),
        "peak_megabytes": watch.peak,
        "checked": checks.right,
        "wrong": checks.wrong,
    }


class Checks:
    """What was looked at in the end, in words: one that fails keeps the others from nothing."""

    def __init__(self) -> None:
        self.right, self.wrong = [], []

    def do(self, check: Callable[..., str], *arguments: object) -> None:
        try:
            self.right.append(check(*arguments))
        except Exception as error:  # figures of an hour are not lost because one cannot be had
            self.wrong.append(str(error) if isinstance(error, AssertionError) else repr(error))


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="for how long something is killed now and then")
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of what is killed, and when")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # both end it with all that it started
        signal.signal(number, signal.default_int_handler)
    asked = {"minutes": arguments.minutes, "sequences": arguments.sequences, "seed": arguments.seed}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        report = asked | {"load": load} | measure(Path(folder), **asked)
    print(json.dumps(report, indent=1))
    keep(report, arguments.out)
    sys.exit(1 if report["wrong"] else 0)


if __name__ == "__main__":
    main()
