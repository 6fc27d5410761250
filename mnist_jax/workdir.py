"""The run folder: whose it is, and files in it that are whole or not there."""

import contextlib
import datetime
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

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


def has_checkpoint(path: Path) -> bool:
    """Whether there is one: folders that are named after steps are whole."""
    return any(entry.name.isdigit() for entry in path.glob("checkpoints/*"))


def write_whole(path: Path, text: str) -> None:
    """Writes under another name and renames: `path` is as it was, or whole."""
    incomplete = path.with_name(f"{path.name}{INCOMPLETE}")
    with naming(path):
        with incomplete.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        incomplete.replace(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raises RunError for what goes wrong with `path`: a full disk's error names no file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
