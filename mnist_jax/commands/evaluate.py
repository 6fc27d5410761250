"""`python -m mnist_jax evaluate`: how well a trained network does on each class."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from mnist_jax.data.pipeline import load_dataset
from mnist_jax.inference import report
from mnist_jax.inference.evaluation import Evaluation, evaluate_run, predict_split
from mnist_jax.inference.predictor import find_run, load_predictor, read_config
from mnist_jax.runtime.cli import Folder
from mnist_jax.runtime.program import console
from mnist_jax.runtime.workdir import name_errors, write_json, write_whole


@dataclasses.dataclass(frozen=True)
class Options:
    """Test a trained network, and show how well it does on each class."""

    workdir: Folder = None
    """The run to evaluate. By default, the one under runs/ that finished last."""
    data_dir: Folder = None
    """Where the prepared data are. By default, where they were in training."""
    manual_dir: Folder = None
    """Where the four official files are. By default, where they were in training."""


def main(options: Options) -> None:
    """Prints tables; writes evaluation.json, figures/ and report.html into the run directory."""
    workdir = find_run(options.workdir)
    directories = {"data_dir": options.data_dir, "manual_dir": options.manual_dir}
    given = {name: str(path) for name, path in directories.items() if path}
    config = dataclasses.replace(read_config(workdir), require_full_data=True, **given)
    dataset = load_dataset(config)
    predictor = load_predictor(workdir, dataset)
    test = predict_split(predictor, dataset, "test")
    evaluation = evaluate_run(predictor, predict_split(predictor, dataset, "train"), test)
    _print_tables(evaluation)
    write_json(workdir / "evaluation.json", evaluation.as_json())
    pngs = {}
    if importlib.util.find_spec("matplotlib"):
        pngs = _write_pngs(workdir / "figures", report.draw_figures(predictor, evaluation, test))
    else:
        console.print('For figures: pip install -e ".[figures]", and evaluate again')
    write_whole(workdir / "report.html", report.format_report(predictor, evaluation, pngs))
    console.print(f"Report: {workdir / 'report.html'}")


def _write_pngs(folder: Path, figures: dict[str, Any]) -> dict[str, bytes]:
    """Writes each figure to folder/NAME.png. Returns the contents of the files."""
    from mnist_jax.inference.figures import figure_to_png  # needs matplotlib, which is optional

    with name_errors(folder):
        folder.mkdir(exist_ok=True)
    pngs = {}
    for name, figure in figures.items():
        pngs[name] = figure_to_png(figure)
        write_whole(folder / f"{name}.png", pngs[name])
    return pngs


def _print_tables(evaluation: Evaluation) -> None:
    for name, text in report.summarize_results(evaluation).items():
        console.print(f"{name}: {text}")
    confusion = report.confusion_rows(evaluation)
    _print_table(report.CLASS_COLUMNS, report.class_rows(evaluation))
    console.print("Images of each class (row) that were read as each class (column):")
    _print_table(["class", *(row[0] for row in confusion)], confusion)


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    table = Table(*(Column(name, justify="right") for name in columns))
    for row in rows:
        table.add_row(*row)
    console.print(table)
