"""`python -m mnist_jax predict IMAGE...`: which digits are in these pictures?"""

import dataclasses
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float
from rich.progress_bar import ProgressBar
from rich.table import Table

from mnist_jax.inference import images
from mnist_jax.inference.predictor import load_predictor
from mnist_jax.runtime.cli import Folder
from mnist_jax.runtime.errors import UsageError
from mnist_jax.runtime.program import console, print_error
from mnist_jax.runtime.workdir import name_errors, write_whole

STDIN = "-"
MAX_STDIN = images.MAX_FILE_BYTES + 1  # read_image refuses a file of this size
MAX_CHARTS = 10  # for more pictures, one line each


@dataclasses.dataclass(frozen=True)
class Options:
    """Name the digit in each picture: any size, dark on light or light on dark."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")] = ()
    """Image files, folders of them (without subfolders), or - for standard input."""
    workdir: Folder = None
    """The run to use. By default, the one under runs/ that finished last."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a list of objects with file, digit and probabilities, one for each readable picture."""
    show: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Save what the network sees: in this file (NAME.png, for one picture) or in this folder."""


def main(options: Options) -> int:
    """Prints the digit in each picture. Returns 1 if one of them cannot be read, otherwise 0."""
    if not options.images:
        raise UsageError("name one or more images, or - for standard input")
    predictor = load_predictor(options.workdir, only_digits=True)
    warnings.filterwarnings("ignore", module="PIL")  # a damaged file gets our own message
    files, names, pictures = _list_files(options.images), [], []
    for name in files:
        try:
            pictures.append(images.read_image(_read_stdin() if name == STDIN else Path(name)))
            names.append(name)
        except images.ImageError as error:
            print_error(f"{_printable(name)}: {error}")
    if options.show:
        _save(names, pictures, options.show, keep=files)
    pixels = np.array(pictures, np.uint8).reshape(-1, 28, 28)
    print_results = _print_json if options.json else _print_charts
    print_results(names, predictor.probabilities(pixels))
    return 1 if len(names) < len(files) else 0


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise images.ImageError("standard input is closed")
    return sys.stdin.buffer.read(MAX_STDIN)


def _list_files(words: tuple[str, ...]) -> list[str]:
    """Replaces each folder by the images in it, if there are any."""
    names = []
    for word in words:
        is_folder = word != STDIN and os.path.isdir(word) and os.access(word, os.R_OK)
        found = images.list_images(Path(word)) if is_folder else []
        names += [str(path) for path in found] or [word]
    return names


def _printable(name: str) -> str:
    """A file name without line breaks and terminal control codes."""
    return name if name and name.isprintable() else ascii(name)


def _save(names: list[str], pictures: list[np.ndarray], path: Path, keep: list[str]) -> None:
    """Saves one picture as file `path`, or all in folder `path`. Never overwrites `keep`."""
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() == ".png" and not path.is_dir():
        if len(names) > 1:
            raise UsageError(f"--show {path} is one file for {len(names)} pictures; name a folder")
        targets = [path] * len(names)
    else:
        with name_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        targets = [path / f"{i:04}_{Path(name).stem}.png" for i, name in enumerate(names)]
    kept = {os.path.realpath(name) for name in keep}
    for target in targets:
        if os.path.realpath(target) in kept:
            raise UsageError(f"--show would overwrite {target}; choose another place")
    for target, picture in zip(targets, pictures, strict=True):
        write_whole(target, images.encode_png(picture))


def _print_json(names: list[str], probabilities: Float[np.ndarray, "n 10"]) -> None:
    objects = []
    for name, row in zip(names, probabilities, strict=True):
        objects.append({"file": name, "digit": int(row.argmax()), "probabilities": row.tolist()})
    print(json.dumps(objects))


def _print_charts(names: list[str], probabilities: Float[np.ndarray, "n 10"]) -> None:
    """Prints the most probable digit of each picture and, if they are few, a bar chart."""
    for name, row in zip(names, probabilities.tolist(), strict=True):
        best = int(np.argmax(row))
        line = f"{_printable(name)}: {best} ({100 * row[best]:.1f} %)"
        console.print(line, emoji=False)  # a file name may contain ":100:"
        if len(names) > MAX_CHARTS:
            continue
        chart = Table.grid(padding=(0, 1))
        for digit, probability in enumerate(row):
            style = "green" if digit == best else "cyan"
            bar = ProgressBar(1, probability, 40, complete_style=style)
            chart.add_row(f"  {digit}", bar, f"{100 * probability:5.1f} %")
        console.print(chart)
