"""Where arrays live: on one device, on several, on those of several processes.

Data parallelism is a matter of placement alone: every device has the state, the examples, and its
part of each batch. XLA sees that a sum over the batch is then a sum over the devices too.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from mnist_jax.command_line import Launch
from mnist_jax.errors import ConfigError, RunError

AXIS = "devices"
LOST = "a process of this run has ended, or cannot be reached; start all of them again"
SILENCE_SECONDS = 40  # after which JAX gives a process up, and ends the others
LAST_WORDS_SECONDS = 10  # for the others to say what is wrong, as it may be with them too
_watchers: list[subprocess.Popen[bytes]] = []


def join_processes(launch: Launch) -> None:
    """Connects the processes of a run, if it has several: before anything else of JAX.

    They are those of the flags or, without any, those that a cluster's environment tells of.

    Raises:
        RunError: they do not find each other.
    """
    flags = launch.coordinator_address, launch.num_processes, launch.process_id
    if flags[0] == "auto" or (flags[0] is None and is_cluster(os.environ)):
        flags = (None, None, None)  # JAX asks the cluster
    elif flags[0] is None:
        return
    _watch_over_this_process()
    try:
        jax.distributed.initialize(
            *flags, initialization_timeout=60, heartbeat_timeout_seconds=SILENCE_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes do not find each other: {error}") from error


def _watch_over_this_process() -> None:
    """Has a shell say LOST when this process dies without `leave_processes`.

    JAX ends a process that has lost the others from one of its threads, without a word to Python.
    """
    command = ["sh", "-c", f"read word || echo 'error: {LOST}' >&2"]
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
        _watchers.pop().communicate(b"leaving\n")


def is_loss(error: Exception) -> bool:
    """Whether `error` is what JAX makes of a process that it has lost."""
    words = "Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED"
    return jax.process_count() > 1 and re.search(words, str(error)) is not None


def is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether Slurm's srun, Open MPI or a TPU pod has started this process as one of several."""
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    hosts = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    return any(environment.get(name, "1") != "1" for name in counts) or any(
        "," in environment.get(name, "") for name in hosts
    )


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices of all processes, or those given, in one row."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ConfigError unless the devices can share a batch equally."""
    if batch_size % mesh.size:
        raise ConfigError(
            f"batches have {batch_size} examples, which {mesh.size} devices cannot share equally; "
            f"take a batch_size that is a multiple of {mesh.size}"
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of each array on every device. Every process must have the same arrays."""
    return _place(tree, NamedSharding(mesh, PartitionSpec()))


def split_batches(
    order: Int[np.ndarray, "batches batch"], mesh: Mesh
) -> Int[Array, "batches batch"]:
    """Puts an equal part of each batch on every device."""
    return _place(order, NamedSharding(mesh, PartitionSpec(None, AXIS)))


def split_leading_axis(tree: Any, mesh: Mesh) -> Any:
    """Puts an equal part of each array on every device: seeds, which have nothing in common."""
    return _place(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def _place(tree: Any, sharding: NamedSharding) -> Any:
    def place(array: Any) -> Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes logs."""
    return jax.process_index() == 0


def check_same(value: Any) -> None:
    """Raises RunError unless all processes have the same `value`, as JSON; waits for all."""
    if jax.process_count() == 1:
        return
    text = json.dumps(value, sort_keys=True)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    if (multihost_utils.process_allgather(digest) != digest).any():
        raise RunError(f"the processes of this run differ in settings or data; here: {text}")


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process: each gets the same answer at the same place."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
