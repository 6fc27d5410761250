"""What the network sees of a dataset, and in which order."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mnist_jax.config import Config
from mnist_jax.data.pipeline import (
    Dataset,
    Examples,
    batch_rows,
    epoch_order,
    fingerprint,
    load_dataset,
    normalize,
    plan_batches,
    take_batch,
)
from mnist_jax.data.sources import find_arrays


@pytest.fixture
def config(sample_dir: Path) -> Config:
    return Config(dataset="mnist_sample", data_dir=str(sample_dir))


@pytest.fixture
def sample(config: Config) -> Dataset:
    return load_dataset(config)


def test_normalize_divides_by_255_and_flattens_row_by_row() -> None:
    images = np.arange(3 * 784).astype(np.uint8).reshape(3, 28, 28)  # contains every value
    rows = normalize(images)
    assert rows.dtype == np.float32
    for row in range(28):
        expected = images[:, row].astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(rows[:, 28 * row : 28 * row + 28], expected)


def test_examples_are_the_training_set_followed_by_the_test_set(
    config: Config, sample: Dataset
) -> None:
    _, arrays = find_arrays(config)
    images = np.concatenate([arrays.train_images, arrays.test_images]).reshape(5000, 784)
    labels = np.concatenate([arrays.train_labels, arrays.test_labels])
    np.testing.assert_array_equal(sample.examples.images, np.float32(images) / np.float32(255))
    np.testing.assert_array_equal(sample.examples.labels, labels)
    assert sample.splits == {"train": range(4000), "test": range(4000, 5000)}


def test_the_validation_split_is_the_end_of_the_training_set(
    config: Config, sample: Dataset
) -> None:
    held_out = load_dataset(dataclasses.replace(config, validation_size=3999))
    validation, test = range(1, 4000), range(4000, 5000)
    assert held_out.splits == {"train": range(1), "validation": validation, "test": test}
    np.testing.assert_array_equal(held_out.examples.images, sample.examples.images)


def test_the_fingerprint_differs_for_other_settings_and_other_examples(
    config: Config, sample: Dataset
) -> None:
    def differing(config: Config, dataset: Dataset) -> list[str]:
        now = fingerprint(config, dataset)
        return [name for name, value in now.items() if value != saved[name]]

    saved, images = fingerprint(config, sample), sample.examples.images.copy()
    images[-1, -1] += 1e-3
    changed = sample._replace(examples=Examples(images, sample.examples.labels))
    assert differing(config, changed) == ["crc32_of_examples"]
    assert differing(dataclasses.replace(config, seed=1), sample) == ["seed"]
    assert differing(dataclasses.replace(config, keep=1, num_epochs=9), sample) == []
    saved = fingerprint(dataclasses.replace(config, schedule="linear"), sample)
    longer = dataclasses.replace(config, schedule="linear", num_epochs=9)
    assert differing(longer, sample) == ["num_epochs"]


@given(
    n=st.sampled_from([1, 5, 199, 60_000]),  # each number is compiled once
    batch_size=st.sampled_from([1, 7, 100, 128]),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(1, 1000),
)
@settings(deadline=None, max_examples=50)
@example(n=60_000, batch_size=128, seed=0, epoch=1)
def test_an_epoch_takes_every_row_once(n: int, batch_size: int, seed: int, epoch: int) -> None:
    order = epoch_order(jax.random.key(seed), epoch, n, batch_size)
    rows, padding = np.split(order.ravel(), [n])
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))
    np.testing.assert_array_equal(padding, -1)
    num_steps = math.ceil(n / batch_size)  # 469 for MNIST in batches of 128
    assert order.shape == (num_steps, batch_size)
    assert plan_batches(Config(batch_size=batch_size), n) == (min(batch_size, n), num_steps)


def test_the_order_depends_only_on_the_key_and_the_epoch() -> None:
    one, other = jax.random.split(jax.random.key(0))
    order = epoch_order(one, 1, 1000, 100)
    np.testing.assert_array_equal(epoch_order(one, 1, 1000, 7).ravel()[:1000], order.ravel())
    for different in (epoch_order(one, 2, 1000, 100), epoch_order(other, 1, 1000, 100)):
        assert np.mean(different == order) < 0.02  # chance lets some rows agree


def test_the_last_batch_is_padded_and_its_padding_is_masked() -> None:
    rows = batch_rows(range(5, 10), 3)
    np.testing.assert_array_equal(rows, [[5, 6, 7], [8, 9, -1]])
    examples = Examples(jnp.arange(20.0).reshape(10, 2), jnp.arange(10))
    batch = take_batch(examples, jnp.asarray(rows[1]))
    np.testing.assert_array_equal(batch.images[:2], [[16, 17], [18, 19]])
    np.testing.assert_array_equal(batch.labels[:2], [8, 9])
    np.testing.assert_array_equal(batch.mask, [True, True, False])
