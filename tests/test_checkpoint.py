"""Saving and restoring."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp

from mnist_jax import checkpoint
from mnist_jax.config import Config
from mnist_jax.model import MLP
from mnist_jax.optimizer import make_optimizer
from mnist_jax.steps import Batch, init_state, train_step


def test_a_restored_state_is_the_saved_one_and_trains_on_alike(tmp_path: Path) -> None:
    model, tx = MLP((4,)), make_optimizer(Config(optimizer="adam", schedule="cosine"), 10)
    batch = Batch(jnp.ones((2, 3)), jnp.array([1, 2]), jnp.array([True, True]))
    state, _ = train_step(
        init_state(jax.random.key(0), 3, model=model, tx=tx), batch, model=model, tx=tx
    )
    path = checkpoint.save(tmp_path / "checkpoints", state)
    assert path == tmp_path / "checkpoints" / "1"
    template = init_state(jax.random.key(1), 3, model=model, tx=tx)
    restored = checkpoint.restore(path, template)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_structs(restored, state)
    chex.assert_trees_all_equal(
        train_step(restored, batch, model=model, tx=tx),
        train_step(state, batch, model=model, tx=tx),
    )
