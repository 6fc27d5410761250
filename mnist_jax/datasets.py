"""TFDS datasets prepared without TensorFlow, and where their files come from.

TFDS's own MNIST builders need TensorFlow to unzip, parse and encode. The ones here do that with
gzip, NumPy and Pillow, and write the official layout: `tfds.builder("mnist")` opens it.
"""

import contextlib
import gzip
import importlib.resources
import io
import math
import multiprocessing
import os
import re
import tempfile
import zlib
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

from mnist_jax.errors import DataError, DownloadError

FILES = {  # split: (images, labels)
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
FILE_NAMES = [name for pair in FILES.values() for name in pair]
ANSWER_SECONDS = 5  # within which a host must answer at all
READ_SECONDS = 20  # within which the next bytes of a download must come


class MNIST(tfds.image_classification.MNIST, skip_registration=True):
    """TFDS's builder, with files read and images encoded by the functions below."""

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
    """5,000 digits of MNIST's training set; the files come with the package."""

    name = "mnist_sample"
    VERSION = tfds.core.Version("1.0.0")

    def paths(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        directory = importlib.resources.files("mnist_jax") / "mnist_sample"
        return {name: Path(str(directory / name)) for name in FILE_NAMES}


BUILDERS = {builder.name: builder for builder in (MNIST, FashionMNIST, MNISTSample)}


def encode_examples(
    images_path: os.PathLike[str], labels_path: os.PathLike[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Keys and examples as TFDS's `Image` and `ClassLabel` take them, from two IDX files."""
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1:
        raise DataError(
            f"{images_path} has the shape {images.shape} and {labels_path} {labels.shape}; "
            "they must be (n, 28, 28) and (n,). Get the files of one dataset."
        )
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        png = io.BytesIO()
        Image.fromarray(image).save(png, format="PNG")
        png.seek(0)
        yield index, {"image": png, "label": int(label)}


def read_idx(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "..."]:
    """The array in a gzipped IDX file of bytes: MNIST's own format.

    That is two zero bytes, the type (8), the number of dimensions, each dimension as a big-endian
    32-bit number, and the data (LeCun, "The MNIST database", "The IDX file format").

    Raises:
        DataError: the file is damaged, or no such file.
    """
    try:
        with gzip.open(path) as file:
            data = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged ({error}); get it again.") from error
    if data[:3] != b"\0\0\x08" or not 4 + 4 * data[3] <= len(data) or data[3] > 3:
        raise DataError(f"{path} is no IDX file of bytes: it begins with {data[:4].hex(' ')}.")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", count=data[3], offset=4))
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != math.prod(shape):
        raise DataError(f"{path} states the shape {shape}, but holds {values.size:,} bytes.")
    return values.reshape(shape)


def read_splits(
    name: str, data_dir: Path, manual_dir: Path | None
) -> list[UInt8[np.ndarray, "..."]]:
    """Train images, train labels, test images and test labels, in the order TFDS stores them.

    The first source that is there wins: what TFDS prepared earlier in `data_dir`; the four files
    in `manual_dir`; a download.

    Raises:
        DataError: there is no source, or it is damaged, or `data_dir` cannot be written.
    """
    where = _directory(name, data_dir)
    if not where.exists():
        prepare(name, data_dir, manual_dir)
    try:
        sources: Any = tfds.builder_from_directory(where).as_data_source()
        # All records in one call: one by one takes three times as long.
        splits = [sources[split].__getitems__(range(len(sources[split]))) for split in FILES]
    except NotImplementedError as error:
        raise DataError(
            f"{where} holds files of a format that only TensorFlow reads. "
            "Name another directory with --data-dir, or convert them where TensorFlow is:\n"
            f"  tfds convert_format --dataset_version_dir {where} --out_file_format array_record"
        ) from error
    except Exception as error:  # on damaged files, TFDS and array_record raise what they like
        raise DataError(
            f"{where} cannot be read ({type(error).__name__}: {error}).\n"
            "If it is damaged, remove it; the next run prepares it anew."
        ) from error
    arrays = []
    for examples in splits:
        arrays.append(np.stack([example["image"][..., 0] for example in examples]))
        arrays.append(np.array([example["label"] for example in examples], np.uint8))
    return arrays


def prepare(name: str, data_dir: Path, manual_dir: Path | None) -> None:
    """Writes the dataset `name` to `data_dir`: all of it, or nothing.

    Raises:
        DataError: see `read_splits`.
    """
    tfds.disable_progress_bar()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
        with tempfile.TemporaryDirectory(prefix="mnist_jax.incomplete.", dir=data_dir) as scratch:
            if name != "mnist_sample":
                manual_dir = _find_files(builder.URL, manual_dir, Path(scratch))
            config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
            with contextlib.redirect_stdout(None):  # two lines about sizes that it does not know
                builder.download_and_prepare(download_dir=scratch, download_config=config)
    except (OSError, RuntimeError) as error:  # array_record's kind, where a disk is full
        if not _directory(
            name, data_dir
        ).exists():  # else another process has just prepared the same
            raise DataError(
                f"{name} cannot be prepared in {data_dir}: {error}. "
                "Make room there, or name another directory with --data-dir."
            ) from error


def _directory(name: str, data_dir: Path) -> Path:
    """Where TFDS keeps the dataset `name`."""
    return data_dir / name / str(BUILDERS[name].VERSION)


def _find_files(base_url: str, manual_dir: Path | None, scratch: Path) -> Path:
    """A directory with the four files of `base_url`, each with the checksum that TFDS knows."""
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
            culprit = f"{path} is not the right file" if manual_dir else f"{url} sent a wrong file"
            raise error(
                f"{culprit}: it has {int(actual.size):,} bytes and the SHA-256 {actual.checksum}, "
                f"not {int(expected.size):,} and {expected.checksum}. Is it cut off, or another "
                f"dataset's (whose files bear the same names)? Get it from {url}"
            )
    return directory


def download(base_url: str, directory: Path) -> None:
    """Downloads the four files below `base_url` into `directory`.

    TFDS's own downloader waits for ever on a silent host, and for minutes on a dead network; this
    one gives up in seconds. It honours proxies (HTTPS_PROXY and the like).

    Raises:
        DownloadError: names the URL that failed, and why.
    """
    url = base_url + FILE_NAMES[0]
    try:
        # One short request first, in a thread: no time-out of requests covers the name server.
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
    """What is wrong, out of the nested messages of requests and urllib3."""
    if (response := getattr(error, "response", None)) is not None:
        return f"the server answers {response.status_code} {response.reason}"
    cause = error.args[0] if error.args else "no answer from the name server"
    cause = getattr(cause, "reason", cause)
    text = cause if isinstance(cause, str) else str(cause.args[0])
    return re.sub(r"^HTTPS?Connection(Pool)?\(.*?\): ", "", text)
