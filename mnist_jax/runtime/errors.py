"""Errors that the user can fix. A program prints them as one message, without a traceback."""

import shlex
from pathlib import Path


class UsageError(Exception):
    """A wrong flag, setting or config file. Exit code 2. tyro would reword a ValueError."""


class RunError(Exception):
    """A run cannot start or continue. Exit code 1."""


class DataError(RunError):
    """The data cannot be loaded or are damaged. The message names the file or URL."""


class DownloadError(DataError):
    """A download failed. The caller may use another dataset instead."""


class Interrupted(Exception):
    """A signal stopped the run after everything was saved. Exit code 75."""

    def __init__(self, workdir: Path) -> None:
        super().__init__(f"interrupted; to resume, use --workdir {shlex.quote(str(workdir))}")
