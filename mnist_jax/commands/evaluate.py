"""`python -m mnist_jax evaluate`: how well a trained network does, class by class."""

from mnist_jax.commands.options import EvaluateOptions, parse_options

if __name__ == "__main__":  # before jax is imported
    OPTIONS = parse_options(EvaluateOptions, "evaluate")

import dataclasses
import json

import numpy as np
from jaxtyping import Int
from rich.table import Column, Table

from mnist_jax.config import Config
from mnist_jax.evaluation import (
    Answers,
    accuracy_interval,
    answer_test_set,
    confusion_matrix,
    score_classes,
    summarize_answers,
    to_json,
)
from mnist_jax.input_pipeline import load_dataset
from mnist_jax.runtime import console, exit_at_once, run_program
from mnist_jax.trained import find_run, load_trained, read_config
from mnist_jax.workdir import write_whole


def run(options: EvaluateOptions) -> int:
    """Evaluates, with errors as messages. Returns the exit code."""
    return run_program(lambda: evaluate(options))


def evaluate(options: EvaluateOptions) -> None:
    """Prints the tables, and writes evaluation.json into the run folder.

    Raises:
        ConfigError, RunError: there is no run, or its files or its data are not as they were.
    """
    workdir = find_run(options.workdir)
    dataset = load_dataset(config_of_data(read_config(workdir), options))
    trained = load_trained(workdir, dataset)
    answers = answer_test_set(trained, dataset)
    show(answers)
    text = json.dumps(to_json(trained, answers), indent=2) + "\n"
    write_whole(workdir / "evaluation.json", text)
    console.print(f"Written: {workdir / 'evaluation.json'}")


def config_of_data(config: Config, options: EvaluateOptions) -> Config:
    """`config`, with the places that the options name, and no other data than the run's."""
    places = {"data_dir": options.data_dir, "manual_dir": options.manual_dir}
    named = {name: str(place) for name, place in places.items() if place}
    return dataclasses.replace(config, require_full_data=True, **named)


def show(answers: Answers) -> None:
    """Prints loss and accuracy, the scores of each class, and the confusion matrix."""
    summary = summarize_answers(answers)
    low, high = accuracy_interval(summary.correct, summary.count)
    matrix = confusion_matrix(answers.labels, answers.predictions)
    console.print(
        f"Test loss: {summary.loss:.4f}\n"
        f"Test accuracy: {100 * summary.accuracy:.2f} % ({summary.correct:,} of "
        f"{summary.count:,}), 95 % interval {100 * low:.2f} to {100 * high:.2f} %"
    )
    console.print(class_table(matrix))
    console.print(confusion_table(matrix))


def right(name: str) -> Column:
    """A column of numbers."""
    return Column(name, justify="right")


def class_table(matrix: Int[np.ndarray, "classes classes"]) -> Table:
    """Precision and recall of each class, in percent."""
    table = Table(*(right(name) for name in ("class", "precision, %", "recall, %", "images")))
    for i, scores in enumerate(score_classes(matrix)):
        ratios = scores.precision, scores.recall
        shown = ("-" if ratio is None else f"{100 * ratio:.2f}" for ratio in ratios)
        table.add_row(str(i), *shown, f"{scores.count:,}")
    return table


def confusion_table(matrix: Int[np.ndarray, "classes classes"]) -> Table:
    """How many of each class were taken for each class; no number where there were none."""
    table = Table("is", *(right(f"as {i}") for i in range(len(matrix))))
    for i, row in enumerate(matrix.tolist()):
        table.add_row(str(i), *(f"{n}" if n else "" for n in row))
    return table


if __name__ == "__main__":
    exit_at_once(run(OPTIONS))  # pyright: ignore[reportPossiblyUnboundVariable]
