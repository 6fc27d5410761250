"""From a dataset's name to arrays in memory, and from a seed to the order of an epoch."""

import functools
import logging
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8, UInt32

from mnist_jax.config import Config
from mnist_jax.errors import ConfigError, DataError, DownloadError
from mnist_jax.model import MLP
from mnist_jax.steps import Examples

log = logging.getLogger(__name__)
UINT8 = np.dtype(np.uint8)

REMEDIES = """\
  1. connect to the network (behind a proxy: set HTTPS_PROXY) and run again;
  2. or get the four *-ubyte.gz files by other means and name their directory: --manual-dir DIR
  3. or name a directory where TFDS has prepared it as array_record: --data-dir DIR"""


class Arrays(NamedTuple):
    """A dataset as it comes: grey pixels 0..255, and the class of each image."""

    train_images: UInt8[np.ndarray, "train 28 28"]
    train_labels: UInt8[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test 28 28"]
    test_labels: UInt8[np.ndarray, " test"]


class Dataset(NamedTuple):
    """What the network sees."""

    name: str
    """The dataset really had: `mnist_sample` where `mnist` could not be."""
    examples: Examples
    """All of them: on the host as they are loaded, then on the device."""
    splits: dict[str, range]
    """Which rows are `train`, `validation` (if any is held out) and `test`."""


def load_dataset(config: Config) -> Dataset:
    """The dataset of `config`; the embedded sample where plain mnist cannot be had.

    Raises:
        DataError: the data cannot be had, or is damaged.
        ConfigError: validation_size leaves nothing to train on.
    """
    name, arrays = find_arrays(config)
    num_all, num_test = len(arrays.train_labels), len(arrays.test_labels)
    num_train = num_all - config.validation_size
    if num_train < 1:
        raise ConfigError(
            f"validation_size is {config.validation_size}; {name} has {num_all:,} training "
            "examples, and it must leave some of them to train on"
        )
    splits = {
        "train": range(num_train),
        "validation": range(num_train, num_all),
        "test": range(num_all, num_all + num_test),
    }
    if max(arrays.train_labels.max(), arrays.test_labels.max()) >= MLP.num_classes:
        raise DataError(f"{name} has more classes than the network: {MLP.num_classes}")
    images = normalize(np.concatenate([arrays.train_images, arrays.test_images]))
    labels = np.concatenate([arrays.train_labels, arrays.test_labels]).astype(np.int32)
    return Dataset(name, Examples(images, labels), {k: rows for k, rows in splits.items() if rows})


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What tells a dataset from another: its name, its sizes, a checksum of its examples."""
    checksum = 0
    for array in dataset.examples:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    sizes = {f"{split}_examples": len(rows) for split, rows in dataset.splits.items()}
    return {"dataset": dataset.name, **sizes, "crc32_of_examples": checksum}


def normalize(images: UInt8[np.ndarray, "n 28 28"]) -> Float[np.ndarray, "n 784"]:
    """The one way from pixels 0..255 to the network's input: rows of float32 in [0, 1].

    On the host and once: XLA would make the division a multiplication, which differs in the last
    bit from what NumPy and Keras compute.
    """
    images = images.reshape(len(images), images.shape[1] * images.shape[2])
    # Beginning at a multiple of 64 bytes, as JAX wants it to share the memory with a CPU's device.
    spare = np.empty(images.size + 16, np.float32)
    rows = spare[-spare.ctypes.data // 4 % 16 :][: images.size].reshape(images.shape)
    return np.divide(images, np.float32(255), out=rows)


def find_arrays(config: Config) -> tuple[str, Arrays]:
    """The name and the arrays of the dataset that `config` gets: its own, or the sample."""
    try:
        return config.dataset, load_arrays(config.dataset, config)
    except DownloadError as error:
        if config.dataset != "mnist" or config.require_full_data:
            message = f"{config.dataset} cannot be had: {error}\nRemedies:\n{REMEDIES}"
            raise DataError(message) from error
        log.warning(
            f"mnist cannot be had: {error}\n"
            "Training on the embedded sample instead: 5,000 digits, about 90 % in 5 epochs.\n"
            f"To train on MNIST itself:\n{REMEDIES}"
        )
    return "mnist_sample", load_arrays("mnist_sample", config)


def load_arrays(name: str, config: Config) -> Arrays:
    """The arrays of the dataset `name`: from the decoded cache, or through TFDS and into it."""
    data_dir = Path(os.path.expanduser(config.data_dir))
    manual_dir = Path(os.path.expanduser(config.manual_dir)) if config.manual_dir else None
    cache = data_dir / "mnist_jax" / f"{name}.npz"
    try:
        return _read_cache(cache, name)
    except (FileNotFoundError, NotADirectoryError):
        log.info(f"Preparing {name} in {data_dir}, once.")
    except Exception as error:  # on damaged bytes, NumPy and zipfile raise what they like
        log.warning(f"{cache} is damaged ({error}); it is built anew.")
    from mnist_jax import datasets  # loads TFDS, which a run with a cache does not need

    arrays = Arrays(*datasets.read_splits(name, data_dir, manual_dir))
    try:
        _write_cache(cache, name, arrays)
    except OSError as error:
        log.warning(f"{cache} cannot be written ({error}); the next start will be as slow.")
    return arrays


def _read_cache(path: Path, name: str) -> Arrays:
    with path.open("rb") as opened, np.load(opened) as file:  # checks the CRC of every array
        arrays = Arrays(*(file[field] for field in Arrays._fields))
        if str(file["name"]) != name:
            raise ValueError(f"it holds {file['name']}")
    for images, labels in (arrays[:2], arrays[2:]):
        if images.shape != (*labels.shape, 28, 28) or {images.dtype, labels.dtype} != {UINT8}:
            raise ValueError(f"it holds {images.dtype}{images.shape} and {labels.dtype} labels")
    return arrays


def _write_cache(path: Path, name: str, arrays: Arrays) -> None:
    """Writes to a temporary name and renames: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=path.parent) as scratch:
        temporary = Path(scratch) / path.name
        np.savez(temporary, name=np.array(name), **arrays._asdict())
        os.replace(temporary, path)


def epoch_order(
    key: PRNGKeyArray, epoch: int, num_examples: int, batch_size: int
) -> Int[np.ndarray, "steps batch"]:
    """The rows that each step of an epoch takes: every row once, in random order, then -1.

    It depends on the key and the number of the epoch alone, so that a resumed run needs no stored
    state of a generator.
    """
    high, low = np.asarray(_random_bits(key, epoch, num_examples)).astype(np.uint64)
    # The order that sorts random 64-bit numbers: NumPy finds it seven times faster than XLA's CPU.
    rows = np.argsort(high << np.uint64(32) | low, kind="stable")
    return batch_rows(rows, batch_size)


@functools.partial(jax.jit, static_argnames="n")
def _random_bits(key: PRNGKeyArray, epoch: int | Int[Array, ""], n: int) -> UInt32[Array, "2 n"]:
    return jax.random.bits(jax.random.fold_in(key, epoch), (2, n), "uint32")


def batch_rows(
    rows: Int[np.ndarray, " n"], batch_size: int, num_batches: int | None = None
) -> Int[np.ndarray, "batches batch"]:
    """`rows` cut into batches and padded with -1: to whole batches, `num_batches` of them."""
    num_batches = num_batches or -(-len(rows) // batch_size)
    padding = num_batches * batch_size - len(rows)
    return np.pad(rows.astype(np.int32), (0, padding), constant_values=-1).reshape(-1, batch_size)
