"""Which dataset a run gets and its cache, and what the network sees of it and in which order."""

import dataclasses
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mnist_jax.config import Config
from mnist_jax.errors import ConfigError, DataError, DownloadError
from mnist_jax.input_pipeline import (
    Dataset,
    batch_rows,
    epoch_order,
    find_arrays,
    load_dataset,
    normalize,
)

REMEDIES = ("HTTPS_PROXY", "--manual-dir", "--data-dir")
MNIST_HOST, FASHION_HOST = "storage.googleapis.com", "fashion-mnist.s3-website"


@pytest.fixture
def sample(sample_dir: Path) -> Dataset:
    return load_dataset(Config(dataset="mnist_sample", data_dir=str(sample_dir)))


@pytest.fixture
def cached(sample_dir: Path, tmp_path: Path) -> Config:
    """A run on a copy of sample_dir, which a test may damage."""
    shutil.copytree(sample_dir, tmp_path / "data")
    return Config(dataset="mnist_sample", data_dir=str(tmp_path / "data"))


@pytest.fixture
def cache(cached: Config) -> Path:
    return Path(cached.data_dir) / "mnist_jax" / "mnist_sample.npz"


def assert_same(one: Dataset, other: Dataset) -> None:
    assert (one.name, one.splits) == (other.name, other.splits)
    for a, b in zip(one.examples, other.examples, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# The dataset that a run gets


def test_mnist_falls_back_on_the_sample_and_says_so(
    sample_dir: Path, sample: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    assert_same(load_dataset(Config(data_dir=str(sample_dir))), sample)
    (warning,) = warnings_in(caplog)
    for text in (MNIST_HOST, "train-images-idx3-ubyte.gz", "sample", *REMEDIES):
        assert text in warning


@pytest.mark.parametrize(
    ("setting", "host"),
    [({"require_full_data": True}, MNIST_HOST), ({"dataset": "fashion_mnist"}, FASHION_HOST)],
)
def test_no_fallback_but_three_remedies(
    setting: dict[str, Any], host: str, sample_dir: Path
) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(Config(data_dir=str(sample_dir), **setting))
    for text in (host, *REMEDIES):
        assert text in str(caught.value)


def test_bad_manual_dir_never_falls_back(sample_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing") as caught:
        load_dataset(Config(data_dir=str(sample_dir), manual_dir=str(tmp_path)))
    assert not isinstance(caught.value, DownloadError)


# The decoded cache


def test_cached_dataset_needs_neither_tfds_nor_its_files(cached: Config, sample: Dataset) -> None:
    shutil.rmtree(Path(cached.data_dir) / "mnist_sample")
    code = """if True:
        import sys
        from mnist_jax import config, input_pipeline
        cached = config.Config(dataset="mnist_sample", data_dir=sys.argv[1])
        input_pipeline.load_dataset(cached)
        assert "tensorflow_datasets" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, cached.data_dir], check=True)
    assert_same(load_dataset(cached), sample)
    assert os.listdir(cached.data_dir) == ["mnist_jax"]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def rewrite(path: Path, **arrays: np.ndarray | None) -> None:
    """Replaces arrays in a cache, or drops those that are None."""
    with np.load(path) as file:
        kept = {name: value for name, value in {**file, **arrays}.items() if value is not None}
    np.savez(path, **kept)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: flip(path, path.stat().st_size // 2), id="pixel-flipped"),
        pytest.param(
            lambda path: flip(path, path.read_bytes().index(b"{'descr'")), id="header-flipped"
        ),
        pytest.param(lambda path: os.truncate(path, path.stat().st_size // 2), id="truncated"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"<html>" * 99), id="not-a-zip"),
        pytest.param(lambda path: rewrite(path, test_labels=None), id="array-missing"),
        pytest.param(
            lambda path: rewrite(path, test_images=np.zeros((999, 28, 28), np.uint8)), id="short"
        ),
        pytest.param(lambda path: rewrite(path, test_images=np.zeros((1000, 28, 28))), id="floats"),
        pytest.param(lambda path: rewrite(path, name=np.array("mnist")), id="another-dataset"),
    ],
)
def test_damaged_cache_is_built_anew(
    cached: Config,
    cache: Path,
    sample: Dataset,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(cache)
    assert_same(load_dataset(cached), sample)
    (warning,) = warnings_in(caplog)
    assert str(cache) in warning
    assert os.listdir(cache.parent) == [cache.name]
    caplog.clear()
    assert_same(load_dataset(cached), sample)
    assert not warnings_in(caplog)


def test_cache_that_cannot_be_written_does_not_matter(
    cached: Config, cache: Path, sample: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(cache.parent)
    cache.parent.write_text("precious")
    assert_same(load_dataset(cached), sample)
    assert any(f"{cache} cannot be written" in warning for warning in warnings_in(caplog))
    assert cache.parent.read_text() == "precious"


# What the network sees


def test_more_classes_than_the_network_has_are_refused(cached: Config, cache: Path) -> None:
    rewrite(cache, test_labels=np.full(1000, 9, np.uint8))
    load_dataset(cached)
    rewrite(cache, test_labels=np.full(1000, 10, np.uint8))
    with pytest.raises(DataError, match="mnist_sample has more classes than the network: 10"):
        load_dataset(cached)


def test_normalize_divides_by_255_and_flattens_row_by_row() -> None:
    images = np.arange(3 * 784).astype(np.uint8).reshape(3, 28, 28)  # every value, in every row
    rows = normalize(images)
    assert (rows.shape, rows.dtype) == ((3, 784), np.float32)
    assert set(images.flat) == set(range(256))
    for row in range(28):
        for column in range(28):
            expected = [np.float32(x) / np.float32(255) for x in images[:, row, column]]
            assert rows[:, 28 * row + column].tolist() == expected


def test_examples_are_the_training_set_and_then_the_test_set(
    sample_dir: Path, sample: Dataset
) -> None:
    _, arrays = find_arrays(Config(dataset="mnist_sample", data_dir=str(sample_dir)))
    images = np.concatenate([arrays.train_images, arrays.test_images]).reshape(5000, 784)
    labels = np.concatenate([arrays.train_labels, arrays.test_labels])
    np.testing.assert_array_equal(sample.examples.images, np.float32(images) / np.float32(255))
    np.testing.assert_array_equal(sample.examples.labels, labels)
    assert sample.splits == {"train": range(4000), "test": range(4000, 5000)}


def test_validation_split_is_the_end_of_the_training_set(sample_dir: Path, sample: Dataset) -> None:
    config = Config(dataset="mnist_sample", data_dir=str(sample_dir), validation_size=1000)
    held_out = load_dataset(config)
    splits = {name: np.array(rows) for name, rows in held_out.splits.items()}
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 3000,
        "validation": 1000,
        "test": 1000,
    }
    assert sorted(np.concatenate(list(splits.values()))) == list(range(5000))
    assert_same(held_out._replace(splits=sample.splits), sample)
    np.testing.assert_array_equal(splits["validation"], np.array(sample.splits["train"])[-1000:])
    np.testing.assert_array_equal(splits["test"], sample.splits["test"])


def test_validation_split_must_leave_something_to_train_on(sample_dir: Path) -> None:
    config = Config(dataset="mnist_sample", data_dir=str(sample_dir), validation_size=3999)
    assert load_dataset(config).splits["train"] == range(1)
    with pytest.raises(ConfigError, match=r"validation_size is 4000.* 4,000 training examples"):
        load_dataset(dataclasses.replace(config, validation_size=4000))


# The order of an epoch

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("num_examples", "batch_size"),
    [(60_000, 128), (60_000, 100), (60_000, 1000), (60_000, 7), (5, 8), (1, 1)],
)
def test_epoch_takes_every_row_once(num_examples: int, batch_size: int) -> None:
    order = epoch_order(KEY, 1, num_examples, batch_size)
    assert order.shape == (math.ceil(num_examples / batch_size), batch_size)
    rows, padding = np.split(order.ravel(), [num_examples])
    np.testing.assert_array_equal(np.sort(rows), np.arange(num_examples))
    np.testing.assert_array_equal(padding, -1)
    assert len(padding) < batch_size


def test_order_depends_on_key_and_epoch_alone() -> None:
    order = epoch_order(KEY, 1, 1000, 100)
    np.testing.assert_array_equal(epoch_order(KEY, 1, 1000, 100), order)
    np.testing.assert_array_equal(epoch_order(KEY, 1, 1000, 7).ravel()[:1000], order.ravel())
    for other in (
        epoch_order(KEY, 2, 1000, 100),
        epoch_order(jax.random.key(1), 1, 1000, 100),
        np.arange(1000).reshape(10, 100),
    ):
        assert np.mean(other == order) < 0.02  # as many as chance lets agree


def test_batch_rows_pads_to_the_batches_asked_for() -> None:
    np.testing.assert_array_equal(
        batch_rows(np.arange(5, 10), 3, num_batches=3), [[5, 6, 7], [8, 9, -1], [-1, -1, -1]]
    )
    np.testing.assert_array_equal(batch_rows(np.arange(5, 10), 3), [[5, 6, 7], [8, 9, -1]])
