"""What all contestants share: the settings of the lesson, its data, and a common interface."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

BATCH_SIZE = 128
HIDDEN = 512
LEARNING_RATE = 1e-3
DECAY = 0.9
EPS = 1e-7


class Data(NamedTuple):
    """Images [n, 784] float32 in [0, 1], and labels [n] int32."""

    train_images: Any
    train_labels: Any
    test_images: Any
    test_labels: Any


class Contestant(NamedTuple):
    """One way to train the lesson's network."""

    train_epoch: Callable[[], None]
    """Trains one epoch and waits until the device has finished."""
    test: Callable[[], float]
    """Returns the accuracy on the test set."""


def load(path: str) -> Data:
    """Reads the decoded cache of this project and prepares it as the lesson does."""
    with np.load(path) as file:
        return Data(
            prepare_images(file["train_images"]),
            file["train_labels"].astype(np.int32),
            prepare_images(file["test_images"]),
            file["test_labels"].astype(np.int32),
        )


def prepare_images(images: np.ndarray) -> np.ndarray:
    """Converts uint8 [n, 28, 28] to float32 [n, 784] in [0, 1]."""
    return images.reshape(-1, 784) / np.float32(255)


def batches(rows: Any) -> Iterator[Any]:
    """Cuts `rows` into batches. The last batch is shorter."""
    for start in range(0, len(rows), BATCH_SIZE):
        yield rows[start : start + BATCH_SIZE]
