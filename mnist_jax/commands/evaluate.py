"""`python -m mnist_jax evaluate`: how well a trained network does, class by class."""

from mnist_jax.commands.options import EvaluateOptions, parse_options

if __name__ == "__main__":  # before jax is imported
    OPTIONS = parse_options(EvaluateOptions, "evaluate")

import dataclasses
import importlib.util
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from mnist_jax.config import Config
from mnist_jax.evaluation import (
    CLASS_COLUMNS,
    answer_split,
    class_rows,
    confusion_rows,
    describe,
    to_json,
)
from mnist_jax.input_pipeline import load_dataset
from mnist_jax.report import Picture, format_report
from mnist_jax.runtime import console, exit_at_once, run_program
from mnist_jax.trained import find_run, load_trained, read_config
from mnist_jax.workdir import naming, write_whole

FIGURES = "figures"  # in a run folder


def run(options: EvaluateOptions) -> int:
    """Evaluates, with errors as messages. Returns the exit code."""
    return run_program(lambda: evaluate(options))


def evaluate(options: EvaluateOptions) -> None:
    """Prints the tables; writes evaluation.json, figures/ and report.html into the run folder.

    Raises:
        ConfigError, RunError: there is no run, or its files or its data are not as they were; or
            the folder cannot be written.
    """
    workdir = find_run(options.workdir)
    dataset = load_dataset(config_of_data(read_config(workdir), options))
    trained = load_trained(workdir, dataset)
    train, test = (answer_split(trained, dataset, split) for split in ("train", "test"))
    evaluation = to_json(trained, train, test)
    show(evaluation)
    write_whole(workdir / "evaluation.json", json.dumps(evaluation, indent=2) + "\n")
    pictures = []
    if importlib.util.find_spec("matplotlib"):
        from mnist_jax.pictures import draw_pictures

        pictures = draw_pictures(trained, evaluation, test)
        write_pictures(workdir / FIGURES, pictures)
    else:
        console.print('For the pictures: pip install -e ".[figures]", and evaluate again')
    report = format_report(trained, evaluation, pictures, command_for(options, workdir))
    write_whole(workdir / "report.html", report)
    console.print(f"Report: {workdir / 'report.html'}")


def write_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    """Writes them as PNG files into `folder`, which it makes."""
    with naming(folder):
        folder.mkdir(exist_ok=True)
    for picture in pictures:
        write_whole(folder / f"{picture.name}.png", picture.png)


def command_for(options: EvaluateOptions, workdir: Path) -> str:
    """The command line that evaluates this run again, whatever runs come after it."""
    words = ["python", "-m", "mnist_jax", "evaluate"]
    for name, value in vars(dataclasses.replace(options, workdir=workdir)).items():
        words += [f"--{name.replace('_', '-')}", str(value)] if value else []
    return shlex.join(words)


def config_of_data(config: Config, options: EvaluateOptions) -> Config:
    """`config`, with the places that the options name, and no other data than the run's."""
    places = {"data_dir": options.data_dir, "manual_dir": options.manual_dir}
    named = {name: str(place) for name, place in places.items() if place}
    return dataclasses.replace(config, require_full_data=True, **named)


def show(evaluation: dict[str, Any]) -> None:
    """Prints loss and accuracy, the scores of each class, and the confusion matrix."""
    console.print("\n".join(f"{name}: {text}" for name, text in describe(evaluation).items()))
    console.print(make_table(CLASS_COLUMNS, class_rows(evaluation)))
    matrix = confusion_rows(evaluation)
    console.print(make_table(["is", *(f"as {row[0]}" for row in matrix)], matrix))


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of numbers."""
    table = Table(*(Column(name, justify="right") for name in columns))
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    exit_at_once(run(OPTIONS))  # pyright: ignore[reportPossiblyUnboundVariable]
