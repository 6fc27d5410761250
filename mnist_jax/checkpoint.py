"""Saving and restoring a TrainState with Orbax: the only module that knows it."""

from pathlib import Path

import jax

from mnist_jax.steps import TrainState


def save(directory: Path, state: TrainState) -> Path:
    """Saves `state` below `directory`, in a folder named after its step; returns that folder.

    Orbax writes to a temporary name and renames: the folder is whole, or it is not there.
    """
    import orbax.checkpoint as ocp  # half a second, which the first step need not wait for

    path = directory.absolute() / str(int(state.step))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)
    return path


def restore(path: Path, template: TrainState) -> TrainState:
    """The state saved in `path`; `template` gives its tree, shapes, dtypes and devices."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        return checkpointer.restore(path.absolute(), shapes)
