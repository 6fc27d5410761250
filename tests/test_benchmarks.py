"""The comparison runs, with contestants that need neither Keras nor PyTorch; its limit is one."""

import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = ["mnist_jax", "flax_nnx"]
PARTS = ["products_numpy", "update_numpy"]


def test_the_limit_has_all_products_of_an_epoch() -> None:
    """Of 300 examples: 2 operations for each weight, forwards and for both gradients."""
    spec = importlib.util.spec_from_file_location("contestants", BENCHMARKS / "contestants.py")
    assert spec
    assert spec.loader
    contestants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contestants)
    operations = []

    def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        operations.append(2 * a.shape[0] * a.shape[1] * b.shape[1])
        np.matmul(a, b, out=out)

    images, labels = np.zeros((300, 784), np.float32), np.zeros(300, np.int32)
    data = contestants.Data(images, labels, images, labels)
    contestants.products(data, SimpleNamespace(matmul=matmul), lambda array: array).train_epoch()
    # Of the first layer only the gradient of its kernel is needed, not that of the pixels.
    assert sum(operations) == 2 * 300 * (2 * 784 * 512 + 3 * 512 * 10)


@pytest.mark.slow
def test_the_comparison_trains_the_same_network_and_compares(
    mnist_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib, of the extra `bench`")
    flags = ["--data-dir", mnist_dir, "--out", tmp_path]
    command = [sys.executable, BENCHMARKS / "compare.py", "--quick", *flags]
    command += ["--only", *NAMES, *PARTS]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = json.loads((tmp_path / "compare.json").read_text())["contestants"]
    assert list(rows) == [*NAMES, "limit"]
    ours, flax, limit = rows.values()
    for row in (ours, flax):
        assert len(row["epochs"]) == 3
        assert row["epoch_seconds"] == statistics.median(row["epochs"])
        ratio = row["epoch_seconds"] / ours["epoch_seconds"]
        assert row["epoch_seconds_to_ours"] == pytest.approx(ratio)
    assert limit["epoch_seconds"] == limit["products"] + limit["update"]
    assert ours["epoch_seconds_to_limit"] == ours["epoch_seconds"] / limit["epoch_seconds"]
    # The lesson's own network and settings: two percent of errors after five epochs.
    data = mnist_dir / "mnist_jax" / "mnist.npz"
    command = [sys.executable, BENCHMARKS / "contestants.py", "flax_nnx", data, "--num-epochs", "5"]
    alone = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for accuracy in (ours["process_test_accuracy"], float(alone)):
        assert accuracy == pytest.approx(0.98, abs=0.006)
    assert "process_seconds" not in limit
    assert f"{ours['epoch_seconds']:.2f}" in process.stdout
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
