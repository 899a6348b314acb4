"""Connecting to Ray: the cluster a job was submitted to, or a private one on this machine."""

import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it when it is imported

import grpc
import psutil
import ray
import ray.data
from ray._private import ray_constants
from ray._private.grpc_utils import init_grpc_channel  # a channel with the token of this process
from ray._raylet import Config
from ray.exceptions import AuthenticationError

from pipelines.log import say

ROOT = Path(__file__).resolve().parent.parent
START_ATTEMPTS = 4
ANSWER_SECONDS = 60
WHO = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # what every client of Ray asks first
# A socket's path has 103 bytes on all systems; /session_2026-11-28_05-26-12_504000_4194304/sockets/plasma_store is 65.
LONGEST_FOLDER = 103 - 65
OBJECT_STORE_PER_CORE = 512 << 20  # of a private cluster: blocks under way, it never holds a dataset
OBJECT_STORE_SHARE = 0.3  # of the free memory, at most
SMALLEST_OBJECT_STORE = 80 << 20  # that Ray takes


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def node_cores() -> int:
    """That the workers of this Ray node may use together: Ray may have been given fewer CPUs than there are."""
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    return min(cores(), int(node["Resources"].get("CPU", 1)))


def object_store_bytes(held: int = 0) -> int:
    """For the object store of a private cluster: what all cores have under way, and `held` bytes that the job puts
    there, as far as there is memory. Ray writes to disk what finds no room."""
    need = cores() * OBJECT_STORE_PER_CORE + held + held // 8  # between objects some is lost
    room = [OBJECT_STORE_SHARE * psutil.virtual_memory().available]
    with suppress(OSError, ValueError):  # no container with a limit: there is no such file, or it says max
        room.append(OBJECT_STORE_SHARE * int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(OSError):
        shared = shutil.disk_usage("/dev/shm").free
        # One that is smaller than what a core needs is a container's default: Ray then takes a file, which is slow.
        room += [0.9 * shared] if shared > OBJECT_STORE_PER_CORE else []
    return max(int(min(need, *room)), SMALLEST_OBJECT_STORE)


def model_resources() -> dict[str, int]:
    """What one task or actor with a model gets of a cluster that has nothing else to do: a GPU, or many CPUs.

    Ray gives it as many threads as it reserves CPUs; one is left for the job itself, and for what is done aside.
    """
    if ray.cluster_resources().get("GPU", 0) >= 1:
        return {"num_gpus": 1}
    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    return {"num_cpus": max(0, largest - 1)}


def end_with_node() -> None:
    """Let this worker process end when its Ray node does, whatever its threads are waiting for.

    Ray lets Python exit, which waits for threads; one that hands a checkpoint to a controller that is gone waits for
    ever, and its process would keep its GPU.
    """
    node = os.getppid()

    def watch() -> None:
        while os.getppid() == node:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def is_private() -> bool:
    """Does a job start its own cluster, on this machine?"""
    return not os.environ.get("RAY_ADDRESS")


def connect(held: int = 0) -> None:
    """Join the cluster of RAY_ADDRESS (set by `ray job submit`), else start one with the CPUs of this machine.

    Does nothing if this process is connected already, so jobs can call it and tests can share one cluster.
    `held`: bytes that the job keeps in the cluster's object store all the time.
    """
    if ray.is_initialized():
        return
    if not is_private():
        address = os.environ["RAY_ADDRESS"]
        require_answer(address)
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(_no_cluster(address, error)) from error
    else:
        _start(held)
    if threading.current_thread() is threading.main_thread():
        # SIGTERM ends a job as Ctrl-C does; Ray would print a stack and abort.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Every job shows its own progress, in its own terms.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def require_answer(address: str, seconds: int = ANSWER_SECONDS) -> None:
    """ValueError if nothing speaks gRPC at HOST:PORT within so many seconds, or it does not let this process in: Ray
    itself would try for long, and say it at length. Other addresses are Ray's affair, but for a dashboard's."""
    if address.startswith(("http://", "https://")):
        raise ValueError(_no_cluster(address, "that is a dashboard, to which `ray job submit` gives jobs"))
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or os.environ.get("RAY_USE_TLS") == "1":
        return
    try:
        with init_grpc_channel(f"{host}:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=seconds)
            channel.unary_unary(WHO)(b"", timeout=seconds)
    except grpc.FutureTimeoutError as error:
        raise ValueError(_no_cluster(address, f"no answer in {seconds} seconds")) from error
    except AuthenticationError as error:
        raise ValueError(_no_token(address)) from error
    except grpc.RpcError as error:  # anything else than a refusal, Ray says itself
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise ValueError(_no_token(address)) from error


def _no_token(address: str) -> str:
    return (
        f"the Ray cluster at RAY_ADDRESS={address} asks for a token, and this process has none or another one: set "
        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file with the cluster's"
    )


def _no_cluster(address: str, reason: object) -> str:
    return (
        f"there is no Ray cluster at RAY_ADDRESS={address} ({reason}): start it, or name another one; without "
        "RAY_ADDRESS a job starts a private one on this machine"
    )


def temporary_folder() -> str:
    """Where a private cluster keeps its sockets and logs: in TMPDIR, or in /tmp if their paths would get too long."""
    folder = f"{tempfile.gettempdir()}/ray"
    return folder if len(os.fsencode(folder)) <= LONGEST_FOLDER else "/tmp/ray"


def _start(held: int) -> None:
    """A private cluster. On a machine busy with other work, starting may take longer than Ray waits: then once more."""
    say("starting Ray")
    # Whoever reaches a cluster runs what he likes on it. So this one listens on loopback, as Ray does where it believes
    # that there can be one machine only, and asks for a token that its own processes have.
    ray_constants.ENABLE_RAY_CLUSTER = False
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        Config.initialize("")  # Ray has read them when it was imported
    # Workers import this code from where it lies, whether or not it is installed. They have it from this process's own
    # environment: for a `runtime_env` of Ray's, each would have to be started anew, and the first ones wait already.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for attempts_left in reversed(range(START_ATTEMPTS)):
        try:
            ray.init(
                address="local",
                num_cpus=cores(),
                object_store_memory=object_store_bytes(held),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                # Ray ends idle workers after a second; on few cores, starting them again costs more than all else.
                _system_config={
                    "worker_niceness": 0,  # Ray lets all else on the machine go before; but here one waits for the job
                    "idle_worker_killing_time_threshold_ms": 120_000,
                    "num_workers_soft_limit": 16,
                    # A run has many processes that hardly need a CPU. Ray warns of four times as many as this.
                    "worker_maximum_startup_concurrency": max(cores(), 8),
                    "agent_register_timeout_ms": 180_000,
                },
                _temp_dir=temporary_folder(),
            )
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not attempts_left:
                raise ValueError(
                    f"Ray did not start on this machine, tried {START_ATTEMPTS} times, which is so where other work "
                    "takes all CPUs: wait for it to end, or let RAY_ADDRESS name a cluster"
                ) from error
