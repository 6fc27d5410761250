"""`export`: the exported file gives the same probabilities, and needs nothing but jax."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export

from mnist_jax.commands import export as command
from mnist_jax.data.sources import load_arrays
from mnist_jax.inference.predictor import Predictor
from mnist_jax.model import MLP
from mnist_jax.train import Result
from tests.helpers import call
from tests.oracle import forward, softmax

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.usefixtures("tests_cache")


def export_and_load(predictor: Predictor) -> export.Exported:
    return export.deserialize(command.export_predictor(predictor).serialize())


def test_the_probabilities_are_those_of_the_predictor(predictor: Predictor) -> None:
    """For any batch size."""
    images = load_arrays("mnist_sample", predictor.config).test_images
    exported, expected = export_and_load(predictor), predictor.probabilities(images)
    for size in (1, 7, 1000):
        found = exported.call(images[:size])
        np.testing.assert_allclose(found, expected[:size], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("precision", "in_stablehlo"),
    [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", None)],
)
def test_it_runs_on_all_platforms_with_the_precision_of_the_run(
    precision: str, in_stablehlo: str | None, predictor: Predictor
) -> None:
    exported = export_and_load(dataclasses.replace(predictor, model=MLP(precision=precision)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    products = re.findall(r"stablehlo.dot_general.*", exported.mlir_module())
    assert products
    for product in products:
        assert ("precision" in product) == (in_stablehlo is not None)  # the default is omitted
        assert in_stablehlo is None or f"precision = [{in_stablehlo}, {in_stablehlo}]" in product


def test_the_example_in_the_readme_works_with_jax_alone(sample_run: Result, tmp_path: Path) -> None:
    """Its images are black and white: the oracle computes the probabilities."""
    (example,) = re.findall(r"```python\n(import jax.*?)```", README.read_text(), re.DOTALL)
    out = tmp_path / "digits.bin"
    assert call(command, "--out", out, "--workdir", sample_run.workdir) == 0
    modules = "import sys; assert not {'mnist_jax', 'flax', 'optax'} & {*sys.modules}"
    words = [sys.executable, "-c", f"{example}\n{modules}"]
    process = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    printed = np.fromstring(process.stdout.replace("[", " ").replace("]", " "), sep=" ")
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sample_run.state.params)
    logits, _ = forward(params, np.repeat([[0.0], [1.0]], 784, axis=1))
    np.testing.assert_allclose(printed.reshape(2, 10), softmax(logits), rtol=1e-4, atol=1e-8)
