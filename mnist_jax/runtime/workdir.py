"""The run directory: one run at a time, and files that are complete or absent."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from mnist_jax.runtime.devices import check_same, is_first_process
from mnist_jax.runtime.errors import Interrupted, RunError, UsageError
from mnist_jax.runtime.program import console

log = logging.getLogger(__name__)
RUN_FILE = "run.json"
FORMAT = 2  # of run.json and of the checkpoints
INCOMPLETE = ".incomplete"


class RunDirectory(contextlib.AbstractContextManager["RunDirectory"]):
    """A run directory, locked for one run until the context ends.

    In a run of several processes, only the first one locks the directory and writes to it.
    `info` is the content of run.json, which says which run this is, and its status.
    """

    is_read_only = False  # see `open_read_only`
    _is_changed = False
    _lock: int | None = None

    def __init__(self, path: str | Path | None, fingerprint: dict[str, Any]) -> None:
        """Creates or opens the directory; by default, a new one, runs/DATE-TIME.

        Raises RunError if it holds other files, UsageError if a run with another fingerprint, which
        is everything that determines the results of a run, as JSON.
        """
        if path is None and jax.process_count() > 1:
            raise UsageError("several processes need a directory that they share: --workdir DIR")
        path = path or f"runs/{datetime.datetime.now():%Y-%m-%d_%H-%M-%S.%f}"
        self.path = Path(os.path.expanduser(path))
        names = sorted(checkpoint.name for checkpoint in self.path.glob("checkpoints/*"))
        check_same(fingerprint | {"checkpoints": names})
        self.info: dict[str, Any] = {}
        self._lock = _create_and_lock(self.path) if is_first_process() else None
        try:
            self._open(fingerprint)
        except BaseException:
            self._unlock()
            raise

    @classmethod
    def open_read_only(cls, path: Path) -> "RunDirectory":
        """Opens a run directory only for reading; a run may be using it."""
        run_dir = cls.__new__(cls)
        run_dir.path, run_dir.info, run_dir.is_read_only = path, read_run_info(path), True
        return run_dir

    def _open(self, fingerprint: dict[str, Any]) -> None:
        leftovers: set[Path] = set()  # temporary files of this run's processes that were killed
        for name in (RUN_FILE, "config.json", "result.json", "metrics.jsonl"):
            leftovers |= set(self.path.glob(f"{name}.[0-9]*{INCOMPLETE}"))
        if (self.path / RUN_FILE).exists():
            self.info = read_run_info(self.path)
            self.info.pop("error", None)  # of the previous attempt
            if different := differences(self.info["fingerprint"], fingerprint):
                raise UsageError(f"cannot resume {self.path}: {different}; use another --workdir")
        else:
            if is_first_process() and set(self.path.iterdir()) - leftovers:
                raise RunError(f"{self.path} is not empty and holds no run; use another --workdir")
            self.update(format=FORMAT, fingerprint=fingerprint, saved=False)
        for leftover in leftovers if is_first_process() else ():
            leftover.unlink(missing_ok=True)

    def begin(self, step: int, last_step: int) -> None:
        """Says where the run starts. Raises UsageError if that is after its last step."""
        if step > last_step:
            now = f"{self.path} is already at step {step}; this config ends at step {last_step}"
            raise UsageError(f"{now}; increase --num-epochs")
        if step == last_step:
            console.print(f"{self.path} is finished")
        elif step:
            console.print(f"Resuming {self.path} after step {step:,}")
            if is_first_process():
                (self.path / "result.json").unlink(missing_ok=True)  # the result of fewer epochs
        elif "status" in self.info:
            console.print(f"{self.path} has no checkpoint yet; starting from the beginning")
        # A kill between a save and this note would hide that a checkpoint exists.
        self.update(status="running", saved=step > 0)

    def update(self, **values: Any) -> None:
        """Changes some values of run.json."""
        self.info |= values
        self._is_changed = True
        self.write_json(RUN_FILE, self.info)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Writes a JSON file in the directory: the whole file or nothing."""
        if is_first_process():
            write_json(self.path / name, values)

    def check_not_moved(self) -> None:
        """Raises RunError if `path` no longer is the directory that was locked."""
        with contextlib.suppress(FileNotFoundError):
            if self._lock is None or os.path.samestat(self.path.stat(), os.fstat(self._lock)):
                return
        raise RunError(f"{self.path} was moved or deleted during the run; use its new path")

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        """Records how the run ended, and unlocks the directory."""
        try:
            if self._is_changed:
                self.check_not_moved()
                self.update(**_status(error))
        except RunError:
            if error is None:  # else `error` takes precedence, for example a full disk
                raise
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _create_and_lock(path: Path) -> int:
    """Returns the descriptor that holds the lock. The lock ends with the process."""
    if path.is_file():
        raise RunError(f"{path} is a file; name a directory with --workdir")
    with name_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(f"another process is training in {path}") from None
    except OSError as error:  # some network file systems have no locks
        log.warning(f"{path} cannot be locked ({error}); start no second run in it")
    return descriptor


def _status(error: BaseException | None) -> dict[str, str]:
    if error is None:
        return {"status": "finished"}
    if isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
        return {"status": "interrupted"}
    return {"status": "failed", "error": str(error)}


def read_run_info(path: Path) -> dict[str, Any]:
    """The content of run.json; RunError if it is missing, damaged, or in another format."""
    damaged = RunError(f"{path / RUN_FILE} is missing or damaged; use another --workdir")
    try:
        info = json.loads((path / RUN_FILE).read_text())
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise damaged from error
    if not isinstance(info, dict):
        raise damaged
    if (found := info.get("format", 1)) != FORMAT:
        raise RunError(f"{path} has format {found}; this version reads format {FORMAT} only")
    if not {"fingerprint", "saved"} <= info.keys():
        raise damaged
    return info


def differences(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two dictionaries, as text; "" if their JSON is the same."""
    found = []
    for name in dict.fromkeys([*saved, *now]):
        before, after = saved.get(name), json.loads(json.dumps(now.get(name)))
        if before != after:
            found.append(
                f"{name} is {json.dumps(before)} in the saved run and {json.dumps(after)} now"
            )
    return "; ".join(found)


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a temporary file and renames it: `path` has its old content or all of the new."""
    # Two processes may write the same file.
    incomplete = path.with_name(f"{path.name}.{os.getpid()}{INCOMPLETE}")
    with name_errors(path):
        with incomplete.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        incomplete.replace(path)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file: the whole file or nothing."""
    write_whole(path, json.dumps(values, indent=2) + "\n")


def check_writable(path: Path) -> Path:
    """Raises RunError if a file cannot be written. Returns the path without links."""
    path = Path(os.path.expanduser(path)).resolve()
    if path.exists() and not path.is_file():
        raise RunError(f"{path} is not a regular file; choose another")
    with name_errors(path):
        tempfile.TemporaryFile(dir=path.parent).close()
    return path


@contextlib.contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into a RunError that names `path`; some OSErrors name no file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
