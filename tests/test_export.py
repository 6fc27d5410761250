"""The exported predictor: the same probabilities, with nothing but jax."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export

from mnist_jax.commands.export import PLATFORMS, export_predictor, run
from mnist_jax.commands.options import ExportOptions
from mnist_jax.input_pipeline import load_arrays, normalize
from mnist_jax.model import make_model
from mnist_jax.train import Result
from mnist_jax.trained import Trained, jit_probabilities, load_trained
from tests.oracle import forward, softmax

README = Path(__file__).parent.parent / "README.md"


def loaded(trained: Trained) -> export.Exported:
    return export.deserialize(export_predictor(trained).serialize())


def compare(trained: Trained, images: np.ndarray, batch_size: int) -> None:
    """The model's own probabilities, at the same batch size."""
    predictor = loaded(trained)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        expected = jit_probabilities(trained.params, normalize(batch), model=trained.model)
        np.testing.assert_allclose(predictor.call(batch), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_its_probabilities_are_those_of_the_model(batch_size: int, sample_run: Result) -> None:
    trained = load_trained(sample_run.workdir)
    images = load_arrays("mnist_sample", trained.config).test_images
    compare(trained, images[:500] if batch_size == 1 else images, batch_size)


@pytest.mark.slow
def test_its_probabilities_are_those_of_the_model_on_all_of_mnist(full_run: Result) -> None:
    trained = load_trained(full_run.workdir)
    images = load_arrays("mnist", trained.config).test_images
    for batch_size in (1, 7, 10_000):
        compare(trained, images, batch_size)


@pytest.mark.parametrize(
    ("precision", "in_stablehlo"),
    [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", None)],
)
def test_it_is_for_all_platforms_with_the_precision_of_the_run(
    precision: str, in_stablehlo: str | None, sample_run: Result
) -> None:
    trained = load_trained(sample_run.workdir)
    config = dataclasses.replace(trained.config, matmul_precision=precision)
    predictor = loaded(trained._replace(config=config, model=make_model(config)))
    assert predictor.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
    products = re.findall(r"stablehlo.dot_general.*", predictor.mlir_module())
    assert products
    for product in products:
        assert ("precision" in product) == (in_stablehlo is not None)  # the default is not written
        assert in_stablehlo is None or f"precision = [{in_stablehlo}, {in_stablehlo}]" in product


def test_the_example_of_the_readme_reads_it_with_jax_alone(
    sample_run: Result, tmp_path: Path
) -> None:
    """Its images are a blank one and a white one: the oracle knows what the network says."""
    (example,) = re.findall(r"```python\n(import jax.*?)```", README.read_text(), re.DOTALL)
    assert len(example.splitlines()) <= 10
    assert run(ExportOptions(tmp_path / "digits.bin", sample_run.workdir)) == 0
    modules = "import sys; assert not {'mnist_jax', 'flax', 'optax'} & {*sys.modules}"
    command = [sys.executable, "-c", f"{example}\n{modules}"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    printed = np.fromstring(process.stdout.replace("[", " ").replace("]", " "), sep=" ")
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sample_run.state.params)
    logits, _ = forward(params, np.repeat([[0.0], [1.0]], 784, axis=1))
    np.testing.assert_allclose(printed.reshape(2, 10), softmax(logits), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("out", "message"), [("none/digits.bin", "cannot be written"), (".", "is no file")]
)
def test_a_file_that_cannot_be_written_is_named(
    out: str, message: str, sample_run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ExportOptions(tmp_path / out, sample_run.workdir)) == 1
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_link_stays_one(sample_run: Result, tmp_path: Path) -> None:
    link, file = tmp_path / "newest.bin", tmp_path / "digits.bin"
    link.symlink_to(file.name)
    assert run(ExportOptions(link, sample_run.workdir)) == 0
    assert link.is_symlink()
    assert file.stat().st_size > 10**6
