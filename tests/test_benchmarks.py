"""Tests of the benchmarks, with the contestants that need neither Keras nor PyTorch."""

import importlib
import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the modules of the folder importable, as they are for its scripts."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_the_limit_computes_all_products_of_an_epoch(benchmark_modules: None) -> None:
    lesson: Any = importlib.import_module("lesson")
    limit: Any = importlib.import_module("limit")
    operations = []

    def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        operations.append(2 * a.shape[0] * a.shape[1] * b.shape[1])
        np.matmul(a, b, out=out)

    images, labels = np.zeros((300, 784), np.float32), np.zeros(300, np.int32)
    data = lesson.Data(images, labels, images, labels)
    limit.products(data, SimpleNamespace(matmul=matmul), np.asarray).train_epoch()
    # Each weight needs 2 operations per example in the forward pass and in each gradient. The
    # first layer has one gradient, that of its kernel; the last layer has two.
    assert sum(operations) == 2 * 300 * (2 * 784 * 512 + 3 * 512 * 10)


def test_the_rows_hold_medians_and_ratios(benchmark_modules: None) -> None:
    results: Any = importlib.import_module("results")
    epochs = {
        "mnist_jax": [2.0, 1.0, 9.0],
        "flax_nnx": [3.0, 3.0, 4.0],
        "products_numpy": [0.9, 0.9, 0.9],
        "products_torch": [0.7, 0.7, 0.7],
        "update_numpy": [0.3, 0.3, 0.3],
    }
    processes = {"mnist_jax": [results.Process(10.0, 500.0, 0.98)]}
    rows = results.summarize(epochs, processes)
    assert list(rows) == ["mnist_jax", "flax_nnx", "limit"]
    assert rows["mnist_jax"]["epoch_seconds"] == 2.0
    assert rows["flax_nnx"]["epoch_seconds_to_ours"] == 1.5
    assert rows["limit"]["epoch_seconds"] == pytest.approx(0.7 + 0.3)
    assert rows["mnist_jax"]["epoch_seconds_to_limit"] == pytest.approx(2.0)
    assert rows["mnist_jax"]["process_test_accuracy"] == 0.98
    assert "process_seconds" not in rows["flax_nnx"]


@pytest.mark.slow
def test_the_comparison_runs(mnist_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib, of the extra `bench`")
    flags = ["--quick", "--data-dir", mnist_dir, "--out", tmp_path]
    names = ["mnist_jax", "flax_nnx", "products_numpy", "update_numpy"]
    stdout = run("compare.py", *flags, "--only", *names)
    rows = json.loads((tmp_path / "compare.json").read_text())["contestants"]
    ours, flax, limit = rows["mnist_jax"], rows["flax_nnx"], rows["limit"]
    for row in (ours, flax):
        assert len(row["epochs"]) == 3
        assert row["epoch_seconds"] == statistics.median(row["epochs"])
    assert limit["epoch_seconds"] == limit["products"] + limit["update"]
    assert f"{ours['epoch_seconds']:.2f}" in stdout
    assert ours["process_test_accuracy"] == pytest.approx(0.98, abs=0.006)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_contestant_reaches_the_accuracy_of_the_lesson(mnist_dir: Path) -> None:
    data = mnist_dir / "mnist_jax" / "mnist.npz"
    accuracy = float(run("contestants.py", "flax_nnx", data, "--num-epochs", "5"))
    assert accuracy == pytest.approx(0.98, abs=0.006)


def run(script: str, *args: str | Path) -> str:
    """Runs a script of the folder. Returns its stdout."""
    command = [sys.executable, BENCHMARKS / script, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
