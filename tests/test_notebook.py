"""The notebook: what is committed of it, and that it runs where there is no network."""

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

from tools.run_notebook import NOTEBOOK, PICTURE, find_picture, run

COMMITTED: Any = nbformat.read(NOTEBOOK, as_version=4)
CODE = [cell for cell in COMMITTED.cells if cell.cell_type == "code"]
HEADINGS = [
    "The problem",
    "Samples, labels, classes",
    "The four arrays",
    "The workflow",
    "Layers",
    "relu and softmax",
    "Loss, optimiser, metric",
    "Preparing the images",
    "Preparing the labels",
    "Training",
    "Testing",
    "Overfitting",
    "Predictions",
    "What a tensor is",
    "Tensor operations",
    "Gradient descent",
]


def outputs(notebook: NotebookNode) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook: NotebookNode, name: str = "stdout") -> str:
    return "".join(output.text for output in outputs(notebook) if output.get("name") == name)


def pictures(notebook: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_its_parts_are_there_in_their_order() -> None:
    lines = [line for cell in COMMITTED.cells for line in cell.source.splitlines()]
    assert [line[3:] for line in lines if line.startswith("## ")] == HEADINGS


def test_no_cell_is_longer_than_15_lines() -> None:
    assert max(len(cell.source.splitlines()) for cell in CODE) <= 15


def test_it_is_committed_as_it_ran_on_the_full_data() -> None:
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert "mnist: 60,000 images to train on, 10,000 to test on" in printed(COMMITTED)
    assert pictures(COMMITTED) == 10
    assert not [output for output in outputs(COMMITTED) if output.output_type == "error"]
    assert printed(COMMITTED, "stderr") == ""  # no bars, no warnings
    assert not re.search(r"/(home|root|tmp|Users)/", printed(COMMITTED))
    assert NOTEBOOK.stat().st_size < 1.5e6


def test_its_first_cell_installs_the_package_beside_the_jax_that_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        SimpleNamespace(name=name, version=version)
        for name, version in {"numpy": "2.4", "jaxlib": "0.9.1", "jax": "0.9.0"}.items()
    ]
    commands = []
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    exec(CODE[0].source, {})
    ((*_, project, jax, jaxlib),) = commands
    assert project == "mnist_jax[figures]"
    assert (jax, jaxlib) == ("jax==0.9.0", "jaxlib==0.9.1")
    assert capsys.readouterr().out == "Installing mnist_jax beside jax==0.9.0 jaxlib==0.9.1\n"
    found.append(SimpleNamespace(name="mnist_jax", version="0.1.0"))
    exec(CODE[0].source, {})
    assert len(commands) == 1


def test_the_readme_shows_its_picture() -> None:
    assert find_picture(COMMITTED) == PICTURE.read_bytes()
    readme = (NOTEBOOK.parent.parent / "README.md").read_text()
    assert f"(notebooks/{PICTURE.name})" in readme
    assert f"(notebooks/{NOTEBOOK.name})" in readme


@pytest.mark.slow
def test_it_runs_on_the_sample_without_a_network_in_under_three_minutes(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k.lower() not in ("no_proxy", "all_proxy")}
    env.pop("MNIST_JAX_MANUAL_DIR", None)
    # Nothing is in this home, and behind this proxy there is nothing.
    env |= {"HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    notebook = copy.deepcopy(COMMITTED)
    started = time.perf_counter()
    run(notebook, env=env)
    assert time.perf_counter() - started < 180
    assert "Training on the embedded sample instead" in printed(notebook, "stderr")
    assert "mnist_sample: 4,000 images to train on, 1,000 to test on" in printed(notebook)
    assert pictures(notebook) == pictures(COMMITTED)
    assert (tmp_path / "tensorflow_datasets" / "mnist_jax" / "mnist_sample.npz").exists()
