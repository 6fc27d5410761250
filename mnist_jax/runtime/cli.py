"""Command lines: flags from a dataclass, and ranges of numbers."""

import argparse
import dataclasses
import importlib.util
import os
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from mnist_jax.runtime.errors import UsageError

T = TypeVar("T")
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Platform = Literal["cpu", "gpu", "tpu"] | None


class Range(NamedTuple):
    """The allowed values of a number: `low <= value < high`."""

    low: float
    high: float = float("inf")

    def __str__(self) -> str:
        if self.high == float("inf"):
            return f"at least {self.low} and finite"
        return f"at least {self.low} and below {self.high}"


def check_fields(options: Any) -> None:
    """Raises UsageError if a field of a dataclass does not fit its annotation and its Range."""
    hints = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        check_value(field.name, getattr(options, field.name), hints[field.name])


def check_value(name: str, value: Any, hint: Any) -> None:
    """Checks one value against its annotation; `name` is for the message."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        check_value(name, value, args[0])
        for extra in args[1:]:
            if isinstance(extra, Range) and not (value is None or extra.low <= value < extra.high):
                raise UsageError(f"{name} is {value}; it must be {extra}")
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise UsageError(f"{name} is {value!r}; it must be a tuple")
        for i, item in enumerate(value):
            check_value(f"{name}[{i}]", item, args[0])
    elif origin is Literal:
        if value not in args:
            raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(args)}")
    elif type(None) in args:  # X | None
        if value is not None:
            check_value(name, value, args[0])
    else:
        allowed = (int, float) if hint is float else hint
        # Python counts True as an int; as a number of epochs it is a mistake.
        if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
            raise UsageError(f"{name} is {value!r}; it must be of type {hint.__name__}")


def parse(options: type[T], prog: str, args: Sequence[str] | None = None) -> T:
    """Parses a command line into a dataclass of options, whose docstring is the help text.

    If the defaults depend on the command line, the dataclass has a class method `defaults(args)`.
    Exits after the help text (0) or after a message about a wrong flag (2).
    """
    read_defaults = getattr(options, "defaults", None)
    default = read_defaults(args) if read_defaults else None
    parsed: Any = tyro.cli(
        options, prog=prog, description=options.__doc__, default=default, args=args
    )
    check_fields(parsed)
    return parsed


def require_packages(extra: str, *names: str) -> None:
    """Raises UsageError if one of the packages `names` is missing; `extra` installs them."""
    if not all(importlib.util.find_spec(name) for name in names):
        raise UsageError(f'{extra} needs {" and ".join(names)}: pip install -e ".[{extra}]"')


def find_preset(args: Sequence[str] | None, name_in_workdir: str) -> str | None:
    """The file of --config in a command line; else `name_in_workdir` in --workdir, if it exists."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", nargs="?")  # the real parser reports a missing value
    files.add_argument("--workdir", nargs="?")
    known, _ = files.parse_known_args(args)
    if known.config or not known.workdir:
        return known.config
    path = os.path.join(os.path.expanduser(known.workdir), name_in_workdir)
    return path if os.path.isfile(path) else None


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """The flags of a program that may run on several machines."""

    require_platform: Platform = None
    """Fail instead of running on another platform."""
    distributed: bool = False
    """A cluster has started several processes of this run: connect them. They share --workdir."""
    coordinator_address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Address of process 0, if you start the processes yourself. They share --workdir."""
    num_processes: Annotated[int | None, Range(1)] = None
    """Number of processes. All get the same command, except for --process-id."""
    process_id: Annotated[int | None, Range(0)] = None
    """Number of this process, from 0."""

    def __post_init__(self) -> None:
        flags = [self.coordinator_address, self.num_processes, self.process_id]
        if flags == [None, None, None]:
            return
        if None in flags or self.distributed:
            three = "--coordinator-address, --num-processes and --process-id"
            raise UsageError(f"{three} go together; give all three, or only --distributed")
        if self.process_id >= self.num_processes:  # pyright: ignore[reportOperatorIssue]
            raise UsageError(f"process_id is {self.process_id}; it must be below num_processes")
