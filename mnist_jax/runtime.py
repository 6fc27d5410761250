"""The process that a run is in: its signals, its output, its device, its compilation cache."""

import contextlib
import glob
import hashlib
import logging
import os
import platform
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
from rich.console import Console

from mnist_jax.command_line import Launch, print_usage_error, take_signals_back
from mnist_jax.errors import ConfigError, Interrupted, RunError
from mnist_jax.processes import LOST, is_first_process, is_loss, join_processes, leave_processes

INTERRUPTED = 75  # EX_TEMPFAIL: whoever started the program may start it again


class Signals(contextlib.AbstractContextManager["Signals"]):
    """From `defer` to the end of the context, notes SIGINT and SIGTERM instead of obeying them.

    A SIGINT after another signal interrupts all the same; a SIGTERM does not: schedulers repeat it.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def defer(self) -> None:
        """Begins; in any thread but the main one, which alone gets signals, it does nothing."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous.setdefault(number, signal.signal(number, self._note))

    def _note(self, number: int, frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def run_program(function: Callable[[], int | None], launch: Launch | None = None) -> int:
    """Runs a program's function with errors as messages. Returns the exit code.

    With a `launch`, it first joins the other processes and looks at the platform.
    """
    take_signals_back()
    show_log_messages()
    code = 1
    try:
        if launch:
            join_processes(launch.coordinator_address, launch.num_processes, launch.process_id)
            check_platform(launch.require_platform)
            if not is_first_process():  # the first one prints
                console.quiet = True
                logging.getLogger("mnist_jax").setLevel(logging.ERROR)
        enable_compilation_cache()
        code = function() or 0
    except Exception as error:
        code = _explain(error)
    except KeyboardInterrupt:
        print_error("interrupted")
        code = 130
    except SystemExit as error:  # by SIGTERM
        code = int(error.code or 0)
    finally:
        leave_processes(failed=code not in (0, INTERRUPTED))
    return code


def _explain(error: Exception) -> int:
    """Says what is wrong, and returns the exit code; raises what is a bug."""
    if isinstance(error, ConfigError):
        print_usage_error(str(error))
        return 2
    if isinstance(error, Interrupted):
        if is_first_process():
            print_error(error)
        return INTERRUPTED
    reason = str(error).partition("\n")[0]
    if isinstance(error, RunError | OSError):
        message = str(error)
    elif isinstance(error, MemoryError) or _is_out_of_memory(error):
        message = f"not enough memory for the network, the batch or the data: {reason}"
    elif is_loss(error):
        message = f"{LOST} ({reason})"
    elif jax.process_count() > 1:  # raised, it would wait for the others, who wait for this one
        message = "".join(traceback.format_exception(error))
    else:
        raise error
    print_error(f"error: {message}")
    return 1


def _is_out_of_memory(error: Exception) -> bool:
    found = re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE)
    return isinstance(error, jax.errors.JaxRuntimeError) and found is not None


def exit_at_once(code: int) -> NoReturn:
    """Ends the process, whose work is done, without waiting for anything.

    A signal has nothing more to stop, and where an interrupt broke into Orbax, one of its threads
    would be waited for, for minutes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader has left
            stream.flush()
    os._exit(code)


class QuietConsole(Console):
    """One whose reader may leave: at Ctrl-C `| tee` dies first, and the run must still be saved."""

    def on_broken_pipe(self) -> None:
        """Goes on in silence, where rich would exit."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


# Lines in a log file are as long as they are, and nothing is guessed to be a colour.
console = QuietConsole(soft_wrap=True, highlight=False, markup=False)


def show_log_messages() -> None:
    """For a program: prints the package's log messages, and silences those of its libraries."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("mnist_jax").setLevel(logging.INFO)
    # TFDS advertises OpenCV; Orbax logs what it raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def print_error(message: object) -> None:
    """Prints to stderr, whose reader may have left: at Ctrl-C `2>&1 | tee` ends first."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def check_platform(required: str | None) -> None:
    """Raises RunError where JAX cannot have the platform that it is told to use."""
    try:
        platform = jax.default_backend()
    except Exception as error:  # of what kind depends on the platform
        platforms = os.environ.get("JAX_PLATFORMS")
        reason = str(error) or type(error).__name__
        raise RunError(f"JAX finds no device (JAX_PLATFORMS is {platforms}): {reason}") from error
    if required not in (None, platform):
        raise RunError(
            f"{required} is required, and jax runs on {describe_devices()}. Is jax installed for "
            f"it? For a GPU: pip install -U 'jax[cuda12]'; for a TPU: 'jax[tpu]'"
        )


def describe_devices() -> str:
    """How many devices there are, of what kind, and whether jax leaves an accelerator unused."""
    device, count = jax.devices()[0], jax.device_count()
    text = f"{count} {device.platform} device{'s' if count > 1 else ''} ({device.device_kind})"
    if jax.process_count() > 1:
        text += f" in {jax.process_count()} processes"
    chosen = os.environ.get("JAX_PLATFORMS") == "cpu"
    if device.platform == "cpu" and not chosen and (unused := find_accelerators()):
        text += f": fallen back to the CPU, {unused[0]} is not used"
    return text


def find_accelerators() -> list[str]:
    """The GPUs and TPUs that the system has, whether or not jax can use them."""
    patterns = "/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*"
    return [path for pattern in patterns for path in sorted(glob.glob(pattern))]


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
