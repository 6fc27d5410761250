"""The process that a run is in: its signals, its device, its compilation cache."""

import contextlib
import hashlib
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from mnist_jax.errors import RunError


@contextlib.contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGINT or SIGTERM came; a second SIGINT interrupts."""
    received = []

    def note(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:  # a scheduler may repeat its SIGTERM
            raise KeyboardInterrupt
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():  # no other gets any
        numbers = ()
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_device() -> None:
    """Raises RunError where JAX cannot have the platform that it is told to use."""
    try:
        jax.devices()
    except Exception as error:  # of what kind depends on the platform
        platforms = os.environ.get("JAX_PLATFORMS")
        raise RunError(f"JAX finds no device (JAX_PLATFORMS is {platforms}): {error}") from error


def enable_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless JAX is told already where to keep them.

    One folder per kind of processor: XLA compiles for the one at hand, and a home directory may
    be shared by unlike machines.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cpu = [platform.machine(), platform.processor()]
    if os.path.exists("/proc/cpuinfo"):
        lines = sorted(set(Path("/proc/cpuinfo").read_text().splitlines()))
        cpu += [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    root = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    path = Path(root) / "mnist_jax" / hashlib.sha256(repr(cpu).encode()).hexdigest()[:16]
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
