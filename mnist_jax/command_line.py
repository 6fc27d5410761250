"""The command line: a Config, from a preset and flags, and what else a command wants to know.

Imports no jax, so that `--help` and a wrong flag are answered at once.
"""

import argparse
import dataclasses
import os
import signal
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import rich.console
import rich.panel
import rich.text
import tyro

from mnist_jax.config import CONFIG_FILE, Config, Range, check_value, load_config
from mnist_jax.errors import ConfigError

T = TypeVar("T")
Platform = Literal["cpu", "gpu", "tpu"] | None


@dataclasses.dataclass(frozen=True)
class Launch:
    """Train the network, test it and save it."""

    workdir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The run folder, to make or to continue: then its config.json gives the settings; without it,
    runs/DATE-TIME."""
    require_platform: Platform = None
    """Fail rather than run on another: where jax finds no accelerator, it takes the CPU."""
    coordinator_address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Of process 0, in a run of several processes that share --workdir; or auto: as the cluster
    says: the default where the environment tells of several (srun, Open MPI, TPUs on GKE)."""
    num_processes: Annotated[int | None, Range(1)] = None
    """How many processes the run has; each gets the same command, but for its process_id."""
    process_id: Annotated[int | None, Range(0)] = None
    """Which one this is, from 0."""

    def __post_init__(self) -> None:
        check_options(self)
        flags = self.coordinator_address, self.num_processes, self.process_id
        if flags != (None, None, None) and flags != ("auto", None, None):
            if None in flags or "auto" in flags:
                raise ConfigError(
                    "coordinator_address, num_processes and process_id go together; give all three "
                    "or, where a cluster knows them, only --coordinator-address auto"
                )
            if self.process_id >= self.num_processes:  # pyright: ignore[reportOperatorIssue]
                raise ConfigError(
                    f"process_id is {self.process_id}; with {self.num_processes} processes, "
                    f"it must be below {self.num_processes}"
                )


def check_options(options: Any) -> None:
    """Raises ConfigError for a number in a dataclass of options that is out of its Range."""
    for name, hint in typing.get_type_hints(type(options), include_extras=True).items():
        if any(isinstance(part, Range) for part in getattr(hint, "__metadata__", ())):
            check_value(name, getattr(options, name), hint)


def parse_args(
    args: Sequence[str] | None = None, options: type[T] = Launch, command: str | None = None
) -> tuple[Config, T]:
    """What a command line says; prints a box and exits with 2 if it is wrong.

    Args:
        args: the words after the command; None: of this process.
        options: a dataclass of the flags beside those of Config; all must have defaults. Its
            docstring says what the command does.
        command: its name; None: `python -m mnist_jax.train`.
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", nargs="?")  # tyro, below, complains of a missing path
    files.add_argument("--workdir", nargs="?")
    known = files.parse_known_args(args)[0]
    path, run = known.config, Path(os.path.expanduser(known.workdir or ""), CONFIG_FILE)
    if known.workdir and not path and os.path.isfile(run):  # false, too, for what is no path
        path = run
    try:
        base = load_config(path) if path else Config()
    except ConfigError as error:
        print_usage_error(str(error))
        sys.exit(2)

    default = options()

    def parse(
        config: tyro.conf.OmitArgPrefixes[Config] = base,  # pyright: ignore
        preset: Annotated[Path | None, tyro.conf.arg(name="config", metavar="PATH")] = None,
        options: tyro.conf.OmitArgPrefixes[options] = default,  # pyright: ignore
    ) -> tuple[Config, Any]:
        """Returns them as they come.

        Args:
            config: the settings of the run
            preset: take the settings from this file (configs/*.py, or a run's config.json);
                the other flags override it
            options: where it runs, and what it leaves
        """
        return config, options  # pyright: ignore

    prog = f"python -m mnist_jax {command}" if command else "python -m mnist_jax.train"
    return tyro.cli(parse, prog=prog, description=options.__doc__, args=args)


# How Python starts with them; a shell's own tools leave both to the system.
PYTHONS_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGPIPE: signal.SIG_IGN}


def leave_signals_to_the_system() -> None:
    """For a program, while it has nothing to lose: no signal makes a traceback.

    Neither Ctrl-C while it imports, nor a reader of its --help that leaves.
    """
    for number, handler in PYTHONS_HANDLERS.items():
        if signal.getsignal(number) == handler:  # a background job's shell has SIGINT ignored
            signal.signal(number, signal.SIG_DFL)


def take_signals_back() -> None:
    """Ends what `leave_signals_to_the_system` has begun, if it has."""
    for number, handler in PYTHONS_HANDLERS.items():
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, handler)


def print_usage_error(message: str) -> None:
    """Prints a box like tyro's to stderr."""
    box = rich.panel.Panel(rich.text.Text(message), title="Wrong usage", border_style="red")
    rich.console.Console(stderr=True).print(box)
