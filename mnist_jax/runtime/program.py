"""A program around a function: its output, signals, errors as messages, exit codes."""

import contextlib
import hashlib
import logging
import os
import platform
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
from rich.console import Console

from mnist_jax.runtime import devices
from mnist_jax.runtime.cli import LaunchOptions, parse
from mnist_jax.runtime.errors import Interrupted, RunError, UsageError

T = TypeVar("T")
PACKAGE = __name__.partition(".")[0]
INTERRUPTED = 75  # EX_TEMPFAIL: with --workdir, the same command resumes the run
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED|[Oo]ut of memory"  # in the messages of XLA


class TolerantConsole(Console):
    """A console that ignores a closed pipe: Ctrl-C ends `tee` in `train | tee`, too."""

    def on_broken_pipe(self) -> None:
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


# No wrapping, so that a line stays one line in a log file; no guessed colours.
console = TolerantConsole(soft_wrap=True, highlight=False, markup=False)


def print_error(message: object) -> None:
    """Prints to stderr, whose reader may be gone."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


class Signals(contextlib.AbstractContextManager["Signals"]):
    """While open, SIGINT and SIGTERM only set `received`, so that the run can save first.

    A second Ctrl-C raises KeyboardInterrupt. A second SIGTERM does nothing: schedulers repeat it.
    """

    stopping = False  # whether a signal is ending the run

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        Signals.stopping = False
        with contextlib.suppress(ValueError):  # only the main thread receives signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def received_anywhere(self) -> bool:
        """Whether a process of this run has received a signal. All processes get one answer."""
        Signals.stopping = devices.any_process(self.received)
        return Signals.stopping

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def run_command(
    options: type[T], main: Callable[[T], int | None], prog: str, args: Sequence[str] | None = None
) -> NoReturn:
    """Parses `args` into `options`, runs `main(options)` as a program, and exits."""
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # set by __main__
        signal.signal(signal.SIGINT, signal.default_int_handler)
    exit_now(run_program(lambda: main(parse(options, prog, args))))


def _exit_on_sigterm(number: int, frame: object) -> None:
    # A repeated SIGTERM must not change the exit code of a run that is already stopping.
    if not Signals.stopping:
        sys.exit(128 + number)


def run_program(function: Callable[[], int | None]) -> int:
    """Calls `function`, prints its errors as messages, and returns the exit code.

    0: success, 1: failed, 2: wrong usage, 75: stopped and saved, 130: SIGINT, 143: SIGTERM, 141: a
    closed output. Any other error is a bug and keeps its traceback.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger(PACKAGE).setLevel(logging.INFO)
    for name in ("absl", "asyncio"):  # Orbax also raises what it logs and what its tasks raise.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    enable_compilation_cache()
    try:
        try:
            code = function() or 0
        except SystemExit as error:  # by the parser, or by SIGTERM
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        sys.stdout.flush()  # fails here if the disk is full, or the reader has gone
    except Exception as error:
        code = report_error(error)
    except KeyboardInterrupt:
        print_error("interrupted")
        code = 128 + signal.SIGINT
    with contextlib.suppress(KeyboardInterrupt, SystemExit):  # a signal ends the wait
        devices.leave_processes(failed=code not in (0, INTERRUPTED))
    return code


def report_error(error: Exception) -> int:
    """Prints a message for an expected error, a traceback for a bug. Returns the exit code."""
    first_line = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, Interrupted):
        if devices.is_first_process():
            print_error(error)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # for example `--help | head`
        return 128 + signal.SIGPIPE
    if isinstance(error, UsageError | RunError | OSError):
        print_error(f"error: {error}")
    elif isinstance(error, MemoryError) or re.search(OUT_OF_MEMORY, str(error)):
        print_error(f"error: not enough memory ({first_line}). Try a smaller batch or network")
    elif jax.process_count() > 1 and re.match("[A-Z_]{5,}: ", first_line):  # a status of XLA
        print_error(f"error: another process of this run has probably failed ({first_line})")
    else:
        traceback.print_exception(error)
    return 2 if isinstance(error, UsageError) else 1


def exit_now(code: int) -> NoReturn:
    """Ends the process without waiting for threads: Orbax's may take minutes after a Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader is gone
            stream.flush()
    os._exit(code)


def prepare_process(options: LaunchOptions) -> None:
    """Connects the processes of a run, and checks the platform. Only the first process prints."""
    if options.distributed or options.coordinator_address:
        address = options.coordinator_address
        devices.join_processes(address, options.num_processes, options.process_id)
    devices.check_platform(options.require_platform)
    if not devices.is_first_process():
        console.quiet = True
        logging.getLogger(PACKAGE).setLevel(logging.ERROR)


def enable_compilation_cache() -> None:
    """Makes JAX keep compiled programs on the disk, unless JAX_COMPILATION_CACHE_DIR is set.

    XLA compiles for one kind of processor, so each kind has its own directory of programs.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cpu = [platform.machine(), platform.processor()]
    if os.path.exists("/proc/cpuinfo"):
        lines = sorted(set(Path("/proc/cpuinfo").read_text().splitlines()))
        cpu += [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    root = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    path = Path(root) / PACKAGE / hashlib.sha256(repr(cpu).encode()).hexdigest()[:16]
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
