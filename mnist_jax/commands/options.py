"""What the commands are asked: beside the settings of a run, or of a trained network.

Imports no jax, so that `--help` and a wrong flag are answered at once.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from mnist_jax.command_line import Platform, check_options
from mnist_jax.config import Range
from mnist_jax.errors import ConfigError

T = TypeVar("T")
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]


@dataclasses.dataclass(frozen=True)
class SeedsOptions:
    """Train the network from many seeds at once, and show how they spread."""

    num_seeds: Annotated[int, Range(2, 10**5)] = 10
    """How many: --seed and those after it."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("seeds.json")
    """Where the numbers go, as JSON."""
    require_platform: Platform = None
    """Fail rather than run on another platform."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Train, compare with what the default config is known to give, and print one JSON object.

    For a new accelerator or a new jax: the exit code is 1 if a number is not the known one.
    """

    require_platform: Platform = None
    """Fail rather than run on another platform."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Test a trained network, and show how it does on each class."""

    workdir: Folder = None
    """The run to evaluate; without it, the one under runs/ that finished last."""
    data_dir: Folder = None
    """Where the prepared data are, if not where they were in training."""
    manual_dir: Folder = None
    """Where the four official files are, if not where they were in training."""


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Say which digits are in pictures, of any size, dark on light or light on dark."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")] = ()
    """Files that Pillow can read, folders of them (not those within), or - for standard input."""
    workdir: Folder = None
    """The run to ask; without it, the one under runs/ that finished last."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a list of objects with file, digit and probabilities: one for each picture that could
    be read, in the order given."""
    show: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Save what the network saw: a name that ends in .png is the file for the one picture, any
    other the folder for all."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ConfigError("name one or more images, or - for standard input")


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Save a trained network as one file that only jax is needed to run."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The file to write."""
    workdir: Folder = None
    """The run to export; without it, the one under runs/ that finished last."""


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Serve a page to draw a digit on, until Ctrl-C."""

    workdir: Folder = None
    """The run to ask; without it, the one under runs/ that finished last."""
    host: str = "127.0.0.1"
    """The address to listen at: 0.0.0.0 lets in everyone who can reach this machine."""
    port: int = 7860
    """The port to listen at; 0: any free one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be 0 to 65535")


def parse_options(options: type[T], command: str, args: Sequence[str] | None = None) -> T:
    """What a command line says; prints a box and exits with 2 if it is wrong.

    Args:
        args: the words after the command; None: of this process.
    """
    return tyro.cli(options, prog=f"python -m mnist_jax {command}", args=args)
