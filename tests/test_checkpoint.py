"""Saving and restoring."""

import functools
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import pytest

from mnist_jax import checkpoint
from mnist_jax.config import Config
from mnist_jax.errors import RunError
from mnist_jax.model import MLP
from mnist_jax.optimizer import make_optimizer
from mnist_jax.steps import Batch, init_state, train_step


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model, tx = MLP((4,)), make_optimizer(Config(), 10)
    state = init_state(jax.random.key(0), 3, model=model, tx=tx)
    with pytest.raises(RunError, match=f"the state cannot be saved in {tmp_path}/file/x: "):
        checkpoint.save(tmp_path / "file" / "x", state)


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    model, tx = MLP((4,)), make_optimizer(Config(), 10)
    state = init_state(jax.random.key(0), 3, model=model, tx=tx)
    with pytest.raises(RunError, match="the disk is full; 1 MiB are needed"):
        checkpoint.save(tmp_path / "checkpoints", state)
    assert not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.usefixtures("standard_dtypes")
def test_a_restored_state_is_the_saved_one_and_trains_on_alike(tmp_path: Path) -> None:
    model, tx = MLP((4,)), make_optimizer(Config(optimizer="adam", schedule="cosine"), 10)
    step = jax.jit(functools.partial(train_step, model=model, tx=tx))
    batch = Batch(jnp.ones((2, 3)), jnp.array([1, 2]), jnp.array([True, True]))
    state, _ = step(init_state(jax.random.key(0), 3, model=model, tx=tx), batch)
    path = checkpoint.save(tmp_path / "checkpoints", state)
    assert path == tmp_path / "checkpoints" / "1"
    restored = checkpoint.restore(path, init_state(jax.random.key(1), 3, model=model, tx=tx))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_structs(restored, state)
    chex.assert_trees_all_equal(step(restored, batch), step(state, batch))
