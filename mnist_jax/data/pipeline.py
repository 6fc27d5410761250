"""The whole life of a batch: dataset, normalisation, order of an epoch, batches and their mask."""

import functools
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8, UInt32

from mnist_jax.config import Config, deciding_fields
from mnist_jax.data.sources import find_arrays
from mnist_jax.runtime.errors import UsageError

NUM_PIXELS = 28 * 28


class Examples(NamedTuple):
    """Images with pixels in [0, 1], and their labels."""

    images: Float[Array | np.ndarray, "examples pixels"]
    labels: Int[Array | np.ndarray, " examples"]


class Dataset(NamedTuple):
    """All examples, and the rows of each split: train, test and, if held out, validation."""

    name: str  # mnist_sample if mnist could not be loaded
    examples: Examples
    splits: dict[str, range]


class Batch(NamedTuple):
    """Some examples. The mask is false where an example is padding."""

    images: Float[Array, "batch pixels"]
    labels: Int[Array, " batch"]
    mask: Bool[Array, " batch"]


def load_dataset(config: Config, workdir: str | Path | None = None) -> Dataset:
    """Loads the dataset of `config`; or the sample, if the run in `workdir` has used the sample."""
    name, arrays = find_arrays(config, workdir)
    num_all, num_test = len(arrays.train_labels), len(arrays.test_labels)
    num_train = num_all - config.validation_size
    if num_train < 1:
        size = config.validation_size
        raise UsageError(f"validation_size is {size}; for {name} it must be below {num_all}")
    splits = {"train": range(num_train), "test": range(num_all, num_all + num_test)}
    if config.validation_size:
        splits["validation"] = range(num_train, num_all)
    labels = np.concatenate([arrays.train_labels, arrays.test_labels]).astype(np.int32)
    images = normalize(np.concatenate([arrays.train_images, arrays.test_images]))
    return Dataset(name, Examples(images, labels), splits)


def normalize(images: UInt8[np.ndarray, "n 28 28"]) -> Float[np.ndarray, "n 784"]:
    """Converts pixels 0..255 to the input of the network: rows of float32 in [0, 1].

    This runs on the host: XLA would replace the division by a multiplication, which differs from
    NumPy and Keras in the last bit.
    """
    images = images.reshape(len(images), NUM_PIXELS)
    # The memory starts at a multiple of 64 bytes, so that JAX can share it instead of copying.
    buffer = np.empty(images.size + 16, np.float32)
    rows = buffer[-buffer.ctypes.data // 4 % 16 :][: images.size].reshape(images.shape)
    return np.divide(images, np.float32(255), out=rows)


def fingerprint(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Everything that determines the results of a run, as JSON: settings, sizes, a checksum."""
    checksum = 0
    for array in dataset.examples:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    sizes = {f"{split}_examples": len(rows) for split, rows in dataset.splits.items()}
    used = {"dataset": dataset.name, **sizes, "crc32_of_examples": checksum}
    return json.loads(json.dumps(deciding_fields(config) | used))


def plan_batches(config: Config, num_train: int) -> tuple[int, int]:
    """The batch size, and the number of steps per epoch; the last batch may be padded."""
    batch_size = min(config.batch_size, num_train)
    return batch_size, -(-num_train // batch_size)


def epoch_order(
    key: PRNGKeyArray, epoch: int, num_examples: int, batch_size: int
) -> Int[np.ndarray, "steps batch"]:
    """The rows that each step of an epoch uses: all rows in random order, padded with -1.

    The order depends only on key and epoch: a resume needs no stored random state.
    """
    high, low = np.asarray(_random_bits(key, epoch, num_examples)).astype(np.uint64)
    # Sorting 64-bit numbers in NumPy is seven times faster than jax.random.permutation on a CPU.
    rows = np.argsort(high << np.uint64(32) | low, kind="stable")
    return batch_rows(rows, batch_size)


@functools.partial(jax.jit, static_argnames="n")
def _random_bits(key: PRNGKeyArray, epoch: int | Int[Array, ""], n: int) -> UInt32[Array, "2 n"]:
    return jax.random.bits(jax.random.fold_in(key, epoch), (2, n), "uint32")


def batch_rows(
    rows: Int[np.ndarray, " n"] | range, batch_size: int
) -> Int[np.ndarray, "batches batch"]:
    """Cuts rows into batches; the last batch is padded with -1."""
    padding = (0, -len(rows) % batch_size)
    padded = np.pad(np.asarray(rows, np.int32), padding, constant_values=-1)
    return padded.reshape(-1, batch_size)


def take_batch(examples: Examples, rows: Int[Array, " batch"]) -> Batch:
    """The examples in `rows`; the mask is false where a row is -1."""
    valid_rows = jnp.maximum(rows, 0)
    return Batch(examples.images[valid_rows], examples.labels[valid_rows], rows >= 0)
