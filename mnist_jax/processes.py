"""The processes of a run, where it has several: how they meet, agree, and end together."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_jax.errors import RunError

NOT_MET = "not all processes of this run have started; see what the others say"
LOST = "a process of this run has ended, or cannot be reached; start all of them again"
MEETING_SECONDS = 45  # for all to start
SILENCE_SECONDS = 30  # after which JAX gives a process up, and ends the others
LAST_WORDS_SECONDS = 10  # for the others to say what is wrong, as it may be with them too
_watchers: list[subprocess.Popen[bytes]] = []


def join_processes(address: str | None, number: int | None, index: int | None) -> None:
    """Connects the processes of a run, if it has several: before anything else of JAX.

    They are those that the arguments tell of: the address of the first one (or "auto": as the
    cluster says), how many there are, and which one this is. Without any, they are those that a
    cluster's environment tells of.

    Raises:
        RunError: they do not find each other.
    """
    if address == "auto" or (address is None and is_cluster(os.environ)):
        address = number = index = None  # JAX asks the cluster
    elif address is None:
        return
    _watch_over_this_process()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(
            address,
            number,
            index,
            initialization_timeout=MEETING_SECONDS,
            heartbeat_timeout_seconds=SILENCE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes do not find each other: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # JAX installs its own, which only takes a note
    for watcher in _watchers:
        os.write(watcher.stdin.fileno(), b"joined\n")  # pyright: ignore[reportOptionalMemberAccess]


def _watch_over_this_process() -> None:
    """Has a shell say what has happened when this process dies without `leave_processes`.

    JAX ends a process that has lost the others from one of its threads, without a word to Python.
    """
    script = 'exec >&2; read joined || { echo "error: $1"; exit; }; read left || echo "error: $2"'
    command = ["sh", "-c", script, "sh", NOT_MET, LOST]
    _watchers.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))


def leave_processes(failed: bool) -> None:
    """Ends this process's part in a run, after all the others; if it has failed, it waits less."""
    if not _watchers:
        return
    if failed:  # what is wrong has been said, and JAX may end the process now
        _dismiss_watchers()
    leaving = threading.Thread(target=_shut_down, daemon=True)
    leaving.start()
    leaving.join(LAST_WORDS_SECONDS if failed else None)
    _dismiss_watchers()


def _shut_down() -> None:
    with contextlib.suppress(RuntimeError):  # another has just failed: too late to matter
        jax.distributed.shutdown()


def _dismiss_watchers() -> None:
    while _watchers:
        _watchers.pop().communicate(b"left\nleft\n")


def is_loss(error: Exception) -> bool:
    """Whether `error` is what JAX makes of a process that it has lost."""
    words = "Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED"
    return jax.process_count() > 1 and re.search(words, str(error)) is not None


def is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether Slurm's srun, Open MPI or GKE (with TPUs) has started this process with others."""
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    hosts = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    return any(environment.get(name, "1") != "1" for name in counts) or any(
        "," in environment.get(name, "") for name in hosts
    )


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes logs."""
    return jax.process_index() == 0


def check_same(values: dict[str, Any]) -> None:
    """Raises RunError, by name, for what is not the same in all processes; waits for all of them.

    Args:
        values: what JSON can tell, under the same names in each process.
    """
    if jax.process_count() == 1:
        return
    texts = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    here = np.array([zlib.crc32(text.encode()) for text in texts.values()], np.uint32)
    differs = (multihost_utils.process_allgather(here) != here).any(axis=0)
    different = [f"{name}: {texts[name]}" for name in np.array(list(texts))[differs]]
    if different:
        raise RunError(f"the processes of this run differ, and here is {'; '.join(different)}")


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process: each gets the same answer at the same place."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
