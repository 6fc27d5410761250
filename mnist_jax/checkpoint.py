"""Saving and restoring a TrainState with Orbax: the only module that knows it."""

import shutil
from pathlib import Path

import jax

from mnist_jax.errors import RunError
from mnist_jax.steps import TrainState


def save(directory: Path, state: TrainState) -> Path:
    """Saves `state` below `directory`, in a folder named after its step; returns that folder.

    Orbax writes to a temporary name and renames: the folder is whole, or it is not there.

    Raises:
        RunError: it cannot be written.
    """
    import orbax.checkpoint as ocp  # half a second, which the first step need not wait for

    path = directory.absolute() / str(int(state.step))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**20
        if shutil.disk_usage(directory).free < needed:  # Orbax says so in a hundred lines
            raise OSError(f"the disk is full; {needed / 2**20:.0f} MiB are needed")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, state)
    except Exception as error:  # Orbax passes on what its storage raises, which is no OSError
        raise RunError(f"the state cannot be saved in {directory}: {error}") from error
    return path


def restore(path: Path, template: TrainState) -> TrainState:
    """The state saved in `path`; `template` gives its tree, shapes, dtypes and devices."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        return checkpointer.restore(path.absolute(), shapes)
