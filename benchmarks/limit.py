"""The limit: the least work of an epoch, without any framework.

It has two parts: the matrix products, and the memory traffic of the optimizer. NumPy and PyTorch
each run both parts, and `compare.py` adds up the faster of each.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from lesson import BATCH_SIZE, HIDDEN, Contestant, Data, batches


def products(data: Data, library: Any, convert: Callable[[Any], Any]) -> Contestant:
    """The matrix products of every training step.

    Forward: x W1 and h W2. Backward: g W2', h' g and x' d. The gradient of the images is not
    needed.

    Args:
        library: numpy or torch.
        convert: makes an array of this library from a NumPy array.
    """
    images = convert(data.train_images)
    w1, w2 = convert(ones(784, HIDDEN)), convert(ones(HIDDEN, 10))
    h, d = convert(ones(BATCH_SIZE, HIDDEN)), convert(ones(BATCH_SIZE, HIDDEN))
    g = convert(ones(BATCH_SIZE, 10))
    w1_grads, w2_grads = convert(ones(784, HIDDEN)), convert(ones(HIDDEN, 10))

    def train_epoch() -> None:
        for x in batches(images):
            n = len(x)
            library.matmul(x, w1, out=h[:n])
            library.matmul(h[:n], w2, out=g[:n])
            library.matmul(g[:n], w2.T, out=d[:n])
            library.matmul(h[:n].T, g[:n], out=w2_grads)
            library.matmul(x.T, d[:n], out=w1_grads)

    return Contestant(train_epoch, test=no_test)


def update(data: Data, library: Any, convert: Callable[[Any], Any]) -> Contestant:
    """The memory traffic of a single pass of RMSprop.

    It reads gradients, running squares and weights once, and writes the last two.
    """
    grads, squares, weights = (convert(np.zeros((784, HIDDEN), np.float32)) for _ in range(3))

    def train_epoch() -> None:
        for _ in batches(data.train_labels):
            library.add(grads, squares, out=squares)
            library.add(weights, 0, out=weights)

    return Contestant(train_epoch, test=no_test)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def no_test() -> float:
    return float("nan")


def products_numpy(data: Data) -> Contestant:
    """The products with NumPy's BLAS library."""
    return products(data, np, np.asarray)


def products_torch(data: Data) -> Contestant:
    """The products with PyTorch's BLAS library."""
    import torch

    return products(data, torch, torch.as_tensor)


def update_numpy(data: Data) -> Contestant:
    """The update on one core."""
    return update(data, np, np.asarray)


def update_torch(data: Data) -> Contestant:
    """The update on all cores."""
    import torch

    return update(data, torch, torch.as_tensor)
