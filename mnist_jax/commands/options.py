"""What the commands are asked beside the settings of a run.

Imports no jax, so that `--help` and a wrong flag are answered at once.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from mnist_jax.command_line import Platform, check_options
from mnist_jax.config import Range


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
    """Train the default config, compare it with the known numbers, and print one JSON object.

    For a new accelerator or a new jax: the exit code is 1 if a number is not the known one.
    """

    require_platform: Platform = None
    """Fail rather than run on another platform."""
