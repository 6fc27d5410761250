"""Which dataset a run gets, and its decoded cache."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_jax.config import Config
from mnist_jax.data.sources import Arrays, DataError, find_arrays, load_arrays
from tests.helpers import cut_in_half, flip_byte

REMEDIES = ("HTTPS_PROXY", "--manual-dir", "--data-dir")
MNIST_HOST = "storage.googleapis.com"


@pytest.fixture
def config(tmp_path: Path, few_dir: Path, publish: Callable[[str], None]) -> Config:
    """A run on the few digits, which are prepared and cached."""
    publish("http://mnist.invalid/")
    config = Config(data_dir=str(tmp_path / "data"), manual_dir=str(few_dir))
    load_arrays("mnist", config)
    return config


def cache_of(config: Config) -> Path:
    return Path(config.data_dir) / "mnist_jax" / "mnist.npz"


def assert_same(one: Arrays, other: Arrays) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_mnist_falls_back_on_the_sample_with_a_warning(
    sample_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, arrays = find_arrays(Config(data_dir=str(sample_dir)))
    assert (name, len(arrays.train_labels)) == ("mnist_sample", 4000)
    (warning,) = warnings_in(caplog)
    texts = (MNIST_HOST, "train-images-idx3-ubyte.gz", "sample", *REMEDIES)
    assert all(text in warning for text in texts)


@pytest.mark.parametrize(
    ("setting", "texts"),
    [
        ({"require_full_data": True}, (MNIST_HOST, *REMEDIES)),
        ({"dataset": "fashion_mnist"}, ("fashion-mnist.s3-website", *REMEDIES)),
        ({"manual_dir": "nowhere"}, (MNIST_HOST, "nowhere/train-images-idx3-ubyte.gz is missing")),
    ],
)
def test_without_a_fallback_the_error_names_the_remedies(
    setting: dict[str, Any], texts: tuple[str, ...], sample_dir: Path
) -> None:
    with pytest.raises(DataError) as caught:
        find_arrays(Config(data_dir=str(sample_dir), **setting))
    assert all(text in str(caught.value) for text in texts)


def test_a_cached_dataset_needs_neither_tfds_nor_its_files(config: Config) -> None:
    arrays = load_arrays("mnist", config)
    shutil.rmtree(Path(config.data_dir) / "mnist")
    code = """if True:
        import sys
        from mnist_jax import config
        from mnist_jax.data import sources
        sources.load_arrays("mnist", config.Config(data_dir=sys.argv[1]))
        assert "tensorflow_datasets" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, config.data_dir], check=True)
    assert_same(load_arrays("mnist", config), arrays)


def rewrite(path: Path, **arrays: np.ndarray | None) -> None:
    """Replaces arrays in a cache, or removes those that are None."""
    with np.load(path) as file:
        kept = {name: value for name, value in {**file, **arrays}.items() if value is not None}
    np.savez(path, **kept)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "pixel flipped": flip_byte,
    "truncated": cut_in_half,
    "array missing": lambda path: rewrite(path, test_labels=None),
    "floats": lambda path: rewrite(path, test_images=np.zeros((20, 28, 28))),
    "another dataset": lambda path: rewrite(path, name=np.array("mnist_sample")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_rebuilt(
    config: Config, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    arrays, cache = load_arrays("mnist", config), cache_of(config)
    damage(cache)
    assert_same(load_arrays("mnist", config), arrays)
    (warning,) = warnings_in(caplog)
    assert str(cache) in warning
    assert os.listdir(cache.parent) == [cache.name]
    caplog.clear()
    assert_same(load_arrays("mnist", config), arrays)
    assert not warnings_in(caplog)


def test_a_cache_that_cannot_be_written_only_causes_a_warning(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    arrays, cache = load_arrays("mnist", config), cache_of(config)
    shutil.rmtree(cache.parent)
    cache.parent.write_text("precious")
    assert_same(load_arrays("mnist", config), arrays)
    assert any(f"{cache} cannot be written" in warning for warning in warnings_in(caplog))
    assert cache.parent.read_text() == "precious"
