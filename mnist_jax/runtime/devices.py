"""Devices and processes: where arrays are placed, and how several processes run together.

Data parallelism is only a matter of placement. Every device holds the state, the examples and its
part of each batch; XLA then computes a sum over the batch as a sum over the devices.
"""

import contextlib
import importlib
import json
import os
import signal
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from mnist_jax.runtime.errors import RunError

AXIS = "devices"
# In seconds. If a process sends no heartbeat for this long, JAX ends the others.
TIMEOUTS: dict[str, Any] = {"initialization_timeout": 45, "heartbeat_timeout_seconds": 30}


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh of `devices`; by default, all devices of all processes."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of each array on every device. Every process must pass the same arrays."""
    return _place(tree, mesh)


def split_batches(rows: Int[np.ndarray, "steps batch"], mesh: Mesh) -> Int[Array, "steps batch"]:
    """Puts an equal part of each batch on every device."""
    return _place(rows, mesh, None, AXIS)


def split_leading_axis(tree: Any, mesh: Mesh) -> Any:
    """Splits each array along its first axis, an equal part for every device."""
    return _place(tree, mesh, AXIS)


def _place(tree: Any, mesh: Mesh, *axes: str | None) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec(*axes))

    def place(array: Any) -> Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)


def check_platform(required: str | None = None) -> None:
    """Raises RunError if JAX finds no device, or runs on another platform than `required`."""
    try:
        platform = jax.default_backend()
    except Exception as error:  # its type depends on the platform
        platforms = os.environ.get("JAX_PLATFORMS")
        reason = str(error) or type(error).__name__
        raise RunError(f"JAX finds no device (JAX_PLATFORMS is {platforms}): {reason}") from error
    if required not in (None, platform):
        raise RunError(
            f"{required} is required, but JAX runs on {describe_devices()}. To install JAX for a "
            "GPU: pip install -U 'jax[cuda12]'; for a TPU: pip install -U 'jax[tpu]'"
        )


def describe_devices() -> str:
    """Number, platform and kind of the devices: "1 cpu device (cpu)"."""
    device, count = jax.devices()[0], jax.device_count()
    text = f"{count} {device.platform} device{'s' if count > 1 else ''} ({device.device_kind})"
    if jax.process_count() > 1:
        text += f" in {jax.process_count()} processes"
    return text


def package_versions(*names: str) -> dict[str, str]:
    """The version of each package. The packages need not be installed, only importable."""
    return {name: importlib.import_module(name).__version__ for name in names}


def join_processes(
    address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects the processes of a run, before any other use of JAX; RunError if that fails.

    `address` is host and port of process 0. Without any argument, JAX asks the cluster.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(address, num_processes, process_id, **TIMEOUTS)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if address is None:
            reason += " Outside of a cluster that JAX knows, use --coordinator-address instead."
        raise RunError(f"the processes of this run cannot be connected: {reason}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # JAX has installed its own, which only logs


def leave_processes(failed: bool) -> None:
    """Disconnects from the other processes, if any. After a success, waits until all have finished.

    After a failure, waits at most ten seconds, so that the other processes can report errors of
    their own: when this process ends, JAX ends all others.
    """
    if not jax.distributed.is_initialized():
        return
    leaving = threading.Thread(target=_shut_down, daemon=True)
    leaving.start()
    leaving.join(10 if failed else None)


def _shut_down() -> None:
    with contextlib.suppress(RuntimeError):  # another process has failed at the same time
        jax.distributed.shutdown()


def is_first_process() -> bool:
    """Whether this is the process that prints and writes files."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process. Every process gets the same answer."""
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def check_same(values: dict[str, Any]) -> None:
    """Raises RunError if values differ between the processes. Values are JSON."""
    texts = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    here = np.array([zlib.crc32(text.encode()) for text in texts.values()], np.uint32)
    differs = (multihost_utils.process_allgather(here) != here).any(axis=0)
    different = [f"{name}: {texts[name]}" for name in np.array(list(texts))[differs]]
    if different:
        raise RunError(f"the processes of this run differ; this one has {'; '.join(different)}")
