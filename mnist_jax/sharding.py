"""Where arrays live: on one device, on several, on those of several processes.

Data parallelism is a matter of placement alone: every device has the state, the examples, and its
part of each batch. XLA sees that a sum over the batch is then a sum over the devices too.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from mnist_jax.errors import ConfigError

AXIS = "devices"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices of all processes, or those given, in one row."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ConfigError unless the devices can share a batch equally."""
    if batch_size % mesh.size:
        raise ConfigError(
            f"batches have {batch_size} examples, which {mesh.size} devices cannot share equally; "
            f"take a batch_size that is a multiple of {mesh.size}"
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of each array on every device. Every process must have the same arrays."""
    return _place(tree, NamedSharding(mesh, PartitionSpec()))


def split_batches(
    order: Int[np.ndarray, "batches batch"], mesh: Mesh
) -> Int[Array, "batches batch"]:
    """Puts an equal part of each batch on every device."""
    return _place(order, NamedSharding(mesh, PartitionSpec(None, AXIS)))


def split_leading_axis(tree: Any, mesh: Mesh) -> Any:
    """Puts an equal part of each array on every device: seeds, which have nothing in common."""
    return _place(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def _place(tree: Any, sharding: NamedSharding) -> Any:
    def place(array: Any) -> Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)
