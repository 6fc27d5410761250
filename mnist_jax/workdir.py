"""The run folder: whose it is, and files in it that are whole or not there."""

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

from mnist_jax.config import CONFIG_FILE, Config, check_continues, load_config
from mnist_jax.errors import RunError

log = logging.getLogger(__name__)
FILES = (CONFIG_FILE, "run.json", "metrics.jsonl", "result.json")
INCOMPLETE = ".incomplete"


def new_folder() -> Path:
    """Makes runs/DATE-TIME or, where there is one, one with a name a little longer."""
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    name = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    while True:
        try:
            (runs / name).mkdir()
            return runs / name
        except FileExistsError:
            name += "_"


def lock_folder(path: Path, config: Config) -> int:
    """Locks `path`, an empty folder or one with a run, for `config`; returns the lock's descriptor.

    Raises:
        RunError: another process trains in it, or it holds something else.
        ConfigError: it holds a run that `config` cannot continue.
    """
    lock = _lock(path)
    try:
        left = [path / f"{name}{INCOMPLETE}" for name in FILES]  # by a process that was killed
        if (path / CONFIG_FILE).exists():
            check_continues(config, load_config(path / CONFIG_FILE))
        elif {*path.iterdir()} - {*left, path / "checkpoints"}:
            raise RunError(f"{path} is not empty and holds no run; name another --workdir")
        for file in left:
            file.unlink(missing_ok=True)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _lock(path: Path) -> int:
    """The lock is on the folder itself, and ends with the process, however that ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(f"another process trains in {path}") from None
    except OSError as error:  # some network file systems cannot
        log.warning(f"{path} cannot be locked ({error}): see that no other process trains in it")
    return descriptor


def check_same_folder(path: Path, lock: int) -> None:
    """Raises RunError unless `path` is still the folder that was locked."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), os.fstat(lock)):
            return
    raise RunError(f"{path} was moved or removed during the run; to go on, name where it is")


def checkpoint_steps(path: Path) -> list[int]:
    """Of which steps there are checkpoints: folders that are named after steps are whole."""
    names = [entry.name for entry in path.glob("checkpoints/*")]
    return sorted(int(name) for name in names if name.isdigit())


def check_history(path: Path, step: int, history: list[dict[str, Any]], num_epochs: int) -> None:
    """Raises RunError if the run in `path` cannot be that of a checkpoint with these numbers."""
    finished = (path / "result.json").exists()
    # The line of an epoch is written when the checkpoint before it is: the second proves one.
    lines = _read_metrics(path).count("\n")
    if not step and (lines > 1 or finished or read_object(path / "run.json").get("saved")):
        raise RunError(f"{path} has lost its checkpoints; name another --workdir")
    epochs = len(history) + (step > (history[-1]["step"] if history else 0))
    if epochs > num_epochs:
        raise RunError(f"{path} is in epoch {epochs} already; ask for as many")


def rewrite_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """Writes metrics.jsonl as the checkpoint knows it: the file may be ahead, or damaged."""
    file, found = path / "metrics.jsonl", _read_metrics(path)
    known = "".join(json.dumps(record) + "\n" for record in history)
    if not found.startswith(known):
        log.warning(f"{file} was damaged; it is written anew, nothing is lost.")
    elif found.count("\n") > len(history) + 1:  # the last one may not have been saved yet
        log.warning(f"{path} has lost its checkpoints after epoch {len(history)}.")
    write_whole(file, known)


def _read_metrics(path: Path) -> str:
    file = path / "metrics.jsonl"
    return file.read_text(errors="replace") if file.exists() else ""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one, if that is damaged or not there."""
    try:
        read = json.loads(path.read_text())
    except (ValueError, FileNotFoundError):
        return {}
    return read if isinstance(read, dict) else {}


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes under another name and renames: `path` is as it was, or whole."""
    incomplete = path.with_name(f"{path.name}{INCOMPLETE}")
    with naming(path):
        with incomplete.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        incomplete.replace(path)


def check_writable(path: Path) -> Path:
    """The file itself where `path` is a link to it.

    Raises:
        RunError: it cannot be written, which is better known before the work than after it.
    """
    path = Path(os.path.expanduser(path)).resolve()
    if path.exists() and not path.is_file():
        raise RunError(f"{path} is no file; name one")
    with naming(path):
        tempfile.TemporaryFile(dir=path.parent).close()
    return path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raises RunError for what goes wrong with `path`: a full disk's error names no file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
