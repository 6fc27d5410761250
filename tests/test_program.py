"""Errors as messages, exit codes, and signals."""

import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from jax.errors import JaxRuntimeError

from mnist_jax.runtime.errors import Interrupted, RunError, UsageError
from mnist_jax.runtime.program import run_program

pytestmark = pytest.mark.usefixtures("tests_cache")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("seed is -1"), 2, "seed is -1"),
        (RunError("there is no run"), 1, "error: there is no run\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (MemoryError("Unable to allocate 9 GiB"), 1, "not enough memory (Unable to all"),
        (JaxRuntimeError("Out of memory\nby ..."), 1, "not enough memory (Out of memory). Try"),
        (Interrupted(Path("my run")), 75, "--workdir 'my run'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(), 141, ""),
        (SystemExit(143), 143, ""),
        (ZeroDivisionError("a bug"), 1, "Traceback"),
        (JaxRuntimeError("INTERNAL: a bug"), 1, "Traceback"),
    ],
    ids=repr,
)
def test_an_error_gives_a_message_and_an_exit_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(Mock(side_effect=error)) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert ("Traceback" in errors) == ("a bug" in str(error))


PROGRAM = """
import dataclasses, os, signal, sys, threading, time
from pathlib import Path
from mnist_jax.runtime.errors import Interrupted
from mnist_jax.runtime.program import Signals, run_command

@dataclasses.dataclass
class Options:
    pass

def main(options):
    threading.Thread(target=time.sleep, args=(90,)).start()
    if "training" in sys.argv:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.received_anywhere()
        os.kill(os.getpid(), signal.SIGTERM)
        raise Interrupted(Path("run"))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)

run_command(Options, main, "a test", args=[])
"""
START = [sys.executable, "-c", PROGRAM]


def test_sigterm_ends_a_program_that_is_starting() -> None:
    process = subprocess.run([*START, "starting"], stderr=subprocess.PIPE, timeout=60)
    assert (process.returncode, process.stderr) == (128 + signal.SIGTERM, b"")


def test_a_repeated_sigterm_does_not_change_the_exit_code_of_an_interrupted_run() -> None:
    """Nor does a reader that is gone: after Ctrl-C, `2>&1 | tee` ends before the run is saved."""
    with subprocess.Popen([*START, "training"], stderr=subprocess.PIPE) as process:
        process.stderr.close()
        assert process.wait(timeout=60) == 75
