"""Tests of the notebook: its committed outputs, its first cell, and that it runs offline."""

import copy
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

from tools.run_notebook import FIGURE, NOTEBOOK, find_figure, run

COMMITTED: Any = nbformat.read(NOTEBOOK, as_version=4)
CODE = [cell for cell in COMMITTED.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook: NotebookNode, stream: str = "stdout") -> str:
    return "".join(output.text for output in outputs(notebook) if output.get("name") == stream)


def number_of_figures(notebook: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def find_numbers(pattern: str, notebook: NotebookNode) -> list[float]:
    """The groups of the only place in stdout that fits `pattern`, as numbers."""
    (match,) = re.finditer(pattern, printed(notebook))
    return [float(group.replace(",", "")) for group in match.groups()]


def check_numbers(notebook: NotebookNode) -> None:
    """Checks the printed numbers against each other."""
    accuracy, correct, count = find_numbers(
        r"test accuracy ([\d.]+)%: ([\d,]+) of ([\d,]+)", notebook
    )
    assert accuracy == pytest.approx(100 * correct / count, abs=0.006)
    train, test = find_numbers(r"training accuracy ([\d.]+)%, test accuracy ([\d.]+)%\n", notebook)
    (gap,) = find_numbers(r"gap ([\d.]+) points", notebook)
    assert test == accuracy
    assert gap == pytest.approx(train - test, abs=0.011)
    (loss,) = find_numbers(r"loss of the first image: +([\d.]+)", notebook)
    (expected,) = find_numbers(r"minus the log of its probability: +([\d.]+)", notebook)
    assert loss == pytest.approx(expected, abs=2e-5)


def test_it_is_committed_with_all_outputs_of_one_run() -> None:
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert not [output for output in outputs(COMMITTED) if output.output_type == "error"]
    assert printed(COMMITTED, "stderr") == ""  # no progress bars, no warnings
    assert not re.search(r"/(home|root|tmp|Users)/", printed(COMMITTED))
    assert NOTEBOOK.stat().st_size < 1.5e6


def test_its_numbers_are_those_of_the_lesson() -> None:
    check_numbers(COMMITTED)
    assert "mnist: 60,000 training images, 10,000 test images" in printed(COMMITTED)
    assert find_numbers(r"\n([\d,]+) parameters", COMMITTED) == [407_050]
    (accuracy,) = find_numbers(r"\ntest accuracy ([\d.]+)%", COMMITTED)
    assert accuracy == pytest.approx(98.0, abs=0.3)


def test_its_first_cell_keeps_the_installed_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        SimpleNamespace(name="numpy", version="2.4"),
        SimpleNamespace(name="jaxlib", version="0.9.1"),
        SimpleNamespace(name="jax", version="0.9.0"),
    ]
    commands = []
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    exec(CODE[0].source, {})
    assert commands[0][-3:] == ["mnist_jax[figures]", "jax==0.9.0", "jaxlib==0.9.1"]
    found.append(SimpleNamespace(name="mnist_jax", version="0.1.0"))
    exec(CODE[0].source, {})
    assert len(commands) == 1


def test_the_readme_shows_its_figure() -> None:
    assert find_figure(COMMITTED) == FIGURE.read_bytes()
    readme = (NOTEBOOK.parent.parent / "README.md").read_text()
    assert f"(notebooks/{FIGURE.name})" in readme
    assert f"(notebooks/{NOTEBOOK.name})" in readme


@pytest.mark.slow
def test_it_runs_offline_in_under_three_minutes(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k.lower() not in ("no_proxy", "all_proxy")}
    env.pop("MNIST_JAX_MANUAL_DIR", None)
    # The home directory is empty, and no proxy listens on this port.
    env |= {"HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    notebook = copy.deepcopy(COMMITTED)
    started = time.perf_counter()
    run(notebook, env=env)
    assert time.perf_counter() - started < 180
    assert "mnist_sample: 4,000 training images, 1,000 test images" in printed(notebook)
    assert printed(notebook, "stderr")  # the warning that this is not MNIST
    check_numbers(notebook)
    assert number_of_figures(notebook) == number_of_figures(COMMITTED)
    assert (tmp_path / "tensorflow_datasets" / "mnist_jax" / "mnist_sample.npz").exists()
