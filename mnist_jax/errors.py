"""The errors that a user can mend: each ends the program with a message, without a traceback."""


class ConfigError(ValueError):
    """Wrong usage: a flag, a field or a config file. Exit code 2."""


class RunError(Exception):
    """A run that cannot start or go on. Exit code 1."""


class DataError(RunError):
    """Data that cannot be had or read; the message names the file or URL, and the remedy."""


class DownloadError(DataError):
    """A download that failed. Plain `mnist` may then fall back on the embedded sample."""


class ImageError(RunError):
    """A picture that cannot be read, or that shows nothing; the message does not name its file."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved all it did. Exit code 75: call it again."""
