"""`python -m mnist_jax predict IMAGE...`: which digits are in these pictures?"""

from mnist_jax.commands.options import PredictOptions, parse_options

if __name__ == "__main__":  # before jax is imported
    OPTIONS = parse_options(PredictOptions, "predict")

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from rich.progress_bar import ProgressBar
from rich.table import Table

from mnist_jax.errors import ConfigError, ImageError
from mnist_jax.images import MAX_BYTES, list_images, read_image, to_png
from mnist_jax.runtime import console, exit_at_once, print_error, run_program
from mnist_jax.trained import load_reader, predict
from mnist_jax.workdir import naming, write_whole

STDIN = "-"
MAX_CHARTS = 10  # for more pictures, a line each


class Picture(NamedTuple):
    """One that could be read."""

    name: str
    pixels: UInt8[np.ndarray, "28 28"]


def run(options: PredictOptions) -> int:
    """Answers, with errors as messages. Returns the exit code."""
    return run_program(lambda: answer(options))


def answer(options: PredictOptions) -> int:
    """Prints what is in the pictures; returns 1 if one of them could not be read.

    Raises:
        RunError: there is no trained network, or a picture cannot be saved.
        ConfigError: --show names one file for several pictures, or one of the files.
    """
    trained = load_reader(options.workdir)
    with silence():
        read = list(read_all(options.images))
    pictures = [Picture(name, found) for name, found in read if isinstance(found, np.ndarray)]
    for name, found in read:
        if isinstance(found, ImageError):
            print_error(f"{printable(name)}: {found}")
    if options.show:
        save(pictures, options.show, keep=[name for name, _ in read])
    pixels = [picture.pixels for picture in pictures]
    probabilities = predict(trained, np.array(pixels, np.uint8).reshape(-1, 28, 28))
    (print_json if options.json else print_charts)(pictures, probabilities)
    return 0 if len(pictures) == len(read) else 1


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps what Pillow's libraries write of a file off stderr, where it is said in one line."""
    warnings.filterwarnings("ignore", module="PIL")
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere:
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def read_all(names: Sequence[str]) -> Iterator[tuple[str, UInt8[np.ndarray, "28 28"] | ImageError]]:
    """What each file that `names` give has, in order: a picture, or what is wrong with it."""
    for name in names:
        try:
            for file in find_files(name):
                yield file, read_or_error(file)
        except ImageError as error:
            yield name, error


def find_files(name: str) -> list[str]:
    """The images in the folder `name`; or `name` itself, which is a file's, or STDIN.

    Raises:
        ImageError: the folder cannot be read, or has none.
    """
    if name == STDIN or not os.path.isdir(name):
        return [name]
    try:
        files = [str(path) for path in list_images(Path(name))]
    except OSError as error:
        raise ImageError(error.strerror) from error
    if not files:
        raise ImageError("a folder without images")
    return files


def read_or_error(file: str) -> UInt8[np.ndarray, "28 28"] | ImageError:
    """The picture in `file`, or why there is none."""
    try:
        return read_image(read_stdin() if file == STDIN else Path(file))
    except ImageError as error:
        return error


def read_stdin() -> bytes:
    """The bytes of standard input, or one more than are allowed."""
    return sys.stdin.buffer.read(MAX_BYTES + 1)


def printable(name: str) -> str:
    """`name` on one line, and without what would steer a terminal."""
    return name if name and name.isprintable() else ascii(name)


def save(pictures: Sequence[Picture], path: Path, keep: Sequence[str]) -> None:
    """Saves what the network sees of `pictures` as PNG, but in no file's place that is in `keep`.

    Raises:
        ConfigError: `path` is that of one file, and there are more pictures; or of one in `keep`.
        RunError: it cannot be written.
    """
    path = Path(os.path.expanduser(path))
    one_file = path.suffix.lower() == ".png" and not path.is_dir()
    if one_file and len(pictures) > 1:
        raise ConfigError(f"--show {path} is one file for {len(pictures)} pictures; name a folder")
    stems = ["stdin" if name == STDIN else Path(name).stem for name, _ in pictures]
    files = [path / f"{i:04}_{stem}.png" for i, stem in enumerate(stems)]
    files = [path] * len(pictures) if one_file else files
    if taken := {*map(os.path.realpath, files)} & {*map(os.path.realpath, keep)}:
        raise ConfigError(f"--show would overwrite {min(taken)}; name another place")
    with naming(path):
        if not one_file:
            path.mkdir(parents=True, exist_ok=True)
        for file, picture in zip(files, pictures, strict=True):
            write_whole(file, to_png(picture.pixels))


def print_json(pictures: Sequence[Picture], probabilities: Float[np.ndarray, "n 10"]) -> None:
    """Prints one list, and nothing else."""
    objects = [
        {"file": picture.name, "digit": int(row.argmax()), "probabilities": row.tolist()}
        for picture, row in zip(pictures, probabilities, strict=True)
    ]
    print(json.dumps(objects))


def print_charts(pictures: Sequence[Picture], probabilities: Float[np.ndarray, "n 10"]) -> None:
    """Prints the likeliest digit of each picture and, unless they are many, a bar for every one."""
    for picture, row in zip(pictures, probabilities, strict=True):
        digit = int(row.argmax())
        line = f"{printable(picture.name)}: {digit} ({100 * row[digit]:.1f} %)"
        console.print(line, emoji=False)  # ":100:" may be part of a name
        if len(pictures) <= MAX_CHARTS:
            chart = Table.grid(padding=(0, 1))
            for i, p in enumerate(row.tolist()):
                bar = ProgressBar(1, p, 40, complete_style="green" if i == digit else "cyan")
                chart.add_row(f"  {i}", bar, f"{100 * p:5.1f} %")
            console.print(chart)


if __name__ == "__main__":
    exit_at_once(run(OPTIONS))  # pyright: ignore[reportPossiblyUnboundVariable]
