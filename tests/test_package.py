"""The package as a whole: its public names, and what its modules may import."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_jax

PACKAGE = Path(mnist_jax.__file__).parent


def test_the_public_names_can_be_imported() -> None:
    from mnist_jax import Config, load_predictor, train_and_evaluate

    public = (Config, load_predictor, train_and_evaluate)
    assert [value.__name__ for value in public] == sorted(mnist_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mnist_jax.nonsense


def test_importing_the_package_imports_no_jax() -> None:
    code = "import sys, mnist_jax; assert not {'jax', 'numpy', 'tyro'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_trainer_runs_as_a_module_without_warnings() -> None:
    command = [sys.executable, "-W", "error", "-m", "mnist_jax.train", "--help"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert "--batch-size" in process.stdout


def test_runtime_names_nothing_of_this_project() -> None:
    for path in (PACKAGE / "runtime").glob("*.py"):
        assert not re.search(r"\b(Config|TrainState|MNIST)\b", path.read_text()), path


def test_no_module_imports_the_package_root() -> None:
    pattern = re.compile(r"^\s*(import mnist_jax\b(?!\.)|from mnist_jax import)", re.MULTILINE)
    assert not [path for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text())]
