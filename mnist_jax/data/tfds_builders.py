"""TFDS datasets prepared without TensorFlow, and the download of their files.

TFDS's own MNIST builders need TensorFlow to unzip, parse and encode. These builders use gzip, NumPy
and Pillow, and write the official layout: `tfds.builder("mnist")` opens it.
"""

import contextlib
import gzip
import io
import multiprocessing
import os
import re
import tempfile
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core.download import checksums

from mnist_jax.runtime.errors import DataError, DownloadError

FILES = {  # split: (images, labels)
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
FILE_NAMES = [name for pair in FILES.values() for name in pair]
ANSWER_SECONDS = 5  # for the host to answer at all
READ_SECONDS = 20  # for the next bytes of a download to arrive


class MNIST(tfds.image_classification.MNIST, skip_registration=True):
    """TFDS's builder, but it reads files and encodes images without TensorFlow."""

    name = "mnist"

    def paths(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        """The four files. TFDS looks for them in its manual_dir and checks their SHA-256."""
        return dl_manager.download({name: self.URL + name for name in FILE_NAMES})

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
        paths = self.paths(dl_manager)
        return {
            split: encode_examples(paths[images], paths[labels])
            for split, (images, labels) in FILES.items()
        }


class FashionMNIST(MNIST, skip_registration=True):
    name = "fashion_mnist"
    URL = tfds.image_classification.FashionMNIST.URL
    _info = tfds.image_classification.FashionMNIST._info


class MNISTSample(MNIST, skip_registration=True):
    """5,000 digits of MNIST's training set, as files of this package."""

    name = "mnist_sample"
    VERSION = tfds.core.Version("1.0.0")

    def paths(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {name: Path(__file__).parent / "mnist_sample" / name for name in FILE_NAMES}


BUILDERS = {builder.name: builder for builder in (MNIST, FashionMNIST, MNISTSample)}


def encode_examples(
    images_path: os.PathLike[str], labels_path: os.PathLike[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields keys and examples for TFDS's `Image` and `ClassLabel`, from two IDX files."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        png = io.BytesIO()
        Image.fromarray(image).save(png, format="PNG")
        png.seek(0)
        yield index, {"image": png, "label": int(label)}


def read_idx(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "..."]:
    """Reads a gzipped IDX file of bytes, the format of the official files.

    The format: two zero bytes, the type (8), the number of dimensions, each dimension as a
    big-endian 32-bit number, the data (LeCun, "The MNIST database", "The IDX file format").
    Not checked here: `prepare` compares the SHA-256 of downloaded and manual files.
    """
    with gzip.open(path) as file:
        data = file.read()
    num_dimensions = data[3]
    shape = np.frombuffer(data, ">u4", count=num_dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)


def read_splits(
    name: str, data_dir: Path, manual_dir: Path | None
) -> list[UInt8[np.ndarray, "..."]]:
    """Train images, train labels, test images and test labels, in the order TFDS stores them.

    Uses what TFDS has prepared in `data_dir`; else the files in `manual_dir`; if it is None, a
    download. Raises DataError if they are missing, damaged, or cannot be prepared.
    """
    prepared = _prepared_directory(name, data_dir)
    if not prepared.exists():
        prepare(name, data_dir, manual_dir)
    try:
        sources: Any = tfds.builder_from_directory(prepared).as_data_source()
        # Reading all records in one call is three times as fast as one by one.
        splits = [sources[split].__getitems__(range(len(sources[split]))) for split in FILES]
    except NotImplementedError as error:
        remedy = "choose another --data-dir, or convert it with `tfds convert_format`"
        raise DataError(f"{prepared} is not in the format array_record; {remedy}") from error
    except Exception as error:  # on damaged files, TFDS and array_record raise anything
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{prepared} cannot be read ({reason}); remove it to rebuild it") from error
    arrays = []
    for examples in splits:
        arrays.append(np.stack([example["image"][..., 0] for example in examples]))
        arrays.append(np.array([example["label"] for example in examples], np.uint8))
    return arrays


def prepare(name: str, data_dir: Path, manual_dir: Path | None) -> None:
    """Writes the dataset `name` to `data_dir`: the whole dataset or nothing."""
    tfds.disable_progress_bar()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
        with tempfile.TemporaryDirectory(prefix="mnist_jax.incomplete.", dir=data_dir) as scratch:
            if name != "mnist_sample":
                manual_dir = _find_files(builder.URL, manual_dir, Path(scratch))
            config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
            with contextlib.redirect_stdout(None):  # TFDS would print "Unknown size"
                builder.download_and_prepare(download_dir=scratch, download_config=config)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError on a full disk
        if _prepared_directory(name, data_dir).exists():
            return  # another process has prepared it in the meantime
        message = f"{name} cannot be prepared in {data_dir}: {error}; choose another --data-dir"
        raise DataError(message) from error


def _prepared_directory(name: str, data_dir: Path) -> Path:
    """Where TFDS stores the dataset `name`."""
    return data_dir / name / str(BUILDERS[name].VERSION)


def _find_files(base_url: str, manual_dir: Path | None, scratch: Path) -> Path:
    """A directory with the four files of `base_url`. Compares their checksums to those of TFDS."""
    directory, error = (manual_dir, DataError) if manual_dir else (scratch, DownloadError)
    if not manual_dir:
        download(base_url, scratch)
    known = checksums.get_all_url_infos()
    for name in FILE_NAMES:
        path, url = directory / name, base_url + name
        if not path.is_file():
            raise error(f"{path} is missing. Get it from {url}")
        actual, expected = checksums.compute_url_info(path), known[url]
        if actual != expected:
            culprit = path if manual_dir else "the download"
            raise error(
                f"{culprit} is incomplete or of another dataset: it has {int(actual.size):,} bytes "
                f"and SHA-256 {actual.checksum}, not {int(expected.size):,} and "
                f"{expected.checksum}. Get it from {url}"
            )
    return directory


def download(base_url: str, directory: Path) -> None:
    """Downloads the four files at `base_url` into `directory`. Proxies are used (HTTPS_PROXY).

    TFDS's own downloader waits forever for a silent host, and for minutes without a network. This
    one raises DownloadError within seconds.
    """
    url = base_url + FILE_NAMES[0]
    try:
        # First a short request, in a thread: the `timeout` of requests.head excludes DNS.
        with ThreadPool(1) as pool:
            answer = pool.apply_async(requests.head, (url,), {"timeout": ANSWER_SECONDS})
            answer.get(timeout=ANSWER_SECONDS + 1)
        for name in FILE_NAMES:
            url = base_url + name
            with requests.get(url, stream=True, timeout=READ_SECONDS) as response:
                response.raise_for_status()
                with (directory / name).open("wb") as file:
                    for block in response.iter_content(chunk_size=2**16):
                        file.write(block)
    except (requests.RequestException, multiprocessing.TimeoutError) as error:
        raise DownloadError(f"{url} cannot be downloaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The reason, from the nested messages of requests and urllib3."""
    cause = error.args[0] if error.args else "no answer from the name server"
    cause = getattr(cause, "reason", cause)
    text = cause if isinstance(cause, str) else str(cause.args[0])
    return re.sub(r"^HTTPS?Connection(Pool)?\(.*?\): ", "", text)
