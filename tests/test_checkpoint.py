"""Saving and restoring: every bit, or a message."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mnist_jax.checkpoint import Checkpoints, Progress
from mnist_jax.config import Config
from mnist_jax.errors import RunError
from mnist_jax.model import MLP
from mnist_jax.optimizer import make_optimizer
from mnist_jax.steps import Examples, empty_metrics, init_state, train_steps

pytestmark = pytest.mark.usefixtures("standard_dtypes")  # Adam
CONFIG = Config(optimizer="adam", schedule="cosine")
ORIGIN = {"seed": 0, "hidden_sizes": (4,)}
STATIC: dict[str, Any] = {"model": MLP((4,)), "tx": make_optimizer(CONFIG, 10)}
EXAMPLES = Examples(jnp.ones((6, 3)) * jnp.arange(6.0)[:, None], jnp.arange(6))
ORDER = np.arange(6, dtype=np.int32).reshape(3, 2)


def start(seed: int = 0, hidden: int = 4) -> Progress:
    static = {**STATIC, "model": MLP((hidden,))}
    return Progress(init_state(jax.random.key(seed), 3, **static), empty_metrics(3), [])


def advance(progress: Progress, steps: int) -> Progress:
    state, metrics = jax.tree.map(jnp.copy, progress[:2])
    first = int(state.step)
    done = train_steps(state, metrics, EXAMPLES, ORDER, first, first + steps, **STATIC)
    return Progress(*done, [*progress.history, {"epoch": first, "loss": 0.1 + 0.2}])


def reopen(directory: Path, **changes: Any) -> Checkpoints:
    return Checkpoints(directory, **{"keep": 3, "origin": ORIGIN, **changes})


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[Progress]]:
    """A directory with the checkpoints of steps 1 and 2, and what they hold."""
    first = advance(start(), 1)
    second = advance(first, 1)
    checkpoints = reopen(tmp_path / "checkpoints")
    for progress in (first, second):
        checkpoints.save(progress)
    checkpoints.close()
    return tmp_path / "checkpoints", [first, second]


def test_what_is_restored_is_what_was_saved_and_goes_on_alike(
    saved: tuple[Path, list[Progress]],
) -> None:
    directory, (_, newest) = saved
    restored = reopen(directory).restore(start(seed=1))
    chex.assert_trees_all_equal(restored, newest)
    chex.assert_trees_all_equal_structs(restored, newest)
    chex.assert_trees_all_equal_dtypes(restored[:2], newest[:2])
    chex.assert_trees_all_equal(advance(restored, 1)[:2], advance(newest, 1)[:2])


def test_nothing_saved_gives_the_template(tmp_path: Path) -> None:
    template = start()
    assert reopen(tmp_path / "checkpoints").restore(template) is template


def test_training_on_while_a_save_is_under_way_does_not_change_it(tmp_path: Path) -> None:
    checkpoints = reopen(tmp_path / "checkpoints")
    progress = advance(start(), 1)
    expected = jax.tree.map(np.array, progress[:2])
    checkpoints.save(progress)
    train_steps(*progress[:2], EXAMPLES, ORDER, 1, 3, **STATIC)  # reuses its memory
    checkpoints.close()
    chex.assert_trees_all_equal(reopen(tmp_path / "checkpoints").restore(start())[:2], expected)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints, progress = reopen(tmp_path / "checkpoints", keep=2), start()
    for _ in range(3):
        progress = advance(progress, 1)
        checkpoints.save(progress)
    assert checkpoints.newest() == tmp_path / "checkpoints" / "3"
    checkpoints.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "3"]


def test_any_flipped_byte_is_noticed_or_changes_nothing(
    saved: tuple[Path, list[Progress]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In every file of the newest checkpoint, a byte at its start, middle and end."""
    directory, (older, newest) = saved
    files = [path for path in (directory / "2").rglob("*") if path.is_file()]
    outcomes = []
    for number, file in enumerate(files):
        size = file.stat().st_size
        for position in sorted({0, size // 2, size - 1}) if size else []:
            copy = tmp_path / f"{number}.{position}"
            shutil.copytree(directory, copy)
            damaged = copy / file.relative_to(directory)
            data = bytearray(damaged.read_bytes())
            data[position] ^= 0xFF
            damaged.write_bytes(data)
            caplog.clear()
            checkpoints = reopen(copy)
            restored = checkpoints.restore(start(seed=1))
            checkpoints.close()
            outcomes.append(int(restored.state.step))
            expected = newest if outcomes[-1] == 2 else older
            chex.assert_trees_all_equal(restored, expected)
            warned = [r for r in caplog.records if "is damaged" in r.getMessage()]
            assert len(warned) == (outcomes[-1] == 1), file
            shutil.rmtree(copy)
    assert 0 < outcomes.count(1) < len(outcomes)


@pytest.mark.parametrize("cut", ["half", "empty", "gone"])
def test_a_checkpoint_cut_off_is_named_and_the_one_before_is_used(
    cut: str, saved: tuple[Path, list[Progress]], caplog: pytest.LogCaptureFixture
) -> None:
    directory, (older, newest) = saved
    largest = max((directory / "2").rglob("*"), key=lambda path: path.stat().st_size)
    if cut == "gone":
        largest.unlink()
    else:
        os.truncate(largest, largest.stat().st_size // 2 if cut == "half" else 0)
    checkpoints = reopen(directory)
    chex.assert_trees_all_equal(checkpoints.restore(start(seed=1)), older)
    (record,) = [r for r in caplog.records if "is damaged" in r.getMessage()]
    assert str(directory / "2") in record.getMessage()
    checkpoints.tidy()
    checkpoints.save(newest)  # the step of the damaged one is free again
    checkpoints.close()
    chex.assert_trees_all_equal(reopen(directory).restore(start(seed=1)), newest)


def put_older_arrays(directory: Path) -> None:
    shutil.rmtree(directory / "2" / "arrays")
    shutil.copytree(directory / "1" / "arrays", directory / "2" / "arrays")


def change_history(directory: Path) -> None:
    path = directory / "2" / "record" / "metadata"
    path.write_text(path.read_text().replace("0.3000", "0.2000"))


def rename_older(directory: Path) -> None:
    shutil.rmtree(directory / "2")
    shutil.copytree(directory / "1", directory / "7")


def add_strange_folder(directory: Path) -> None:
    shutil.rmtree(directory / "2")
    (directory / "9").mkdir()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put_older_arrays, "arrays do not match"),
        (change_history, "record does not match"),
        (rename_older, "it is that of step 1"),
        (add_strange_folder, "9"),
    ],
)
def test_what_orbax_restores_without_a_word_is_noticed(
    change: Callable[[Path], None],
    reason: str,
    saved: tuple[Path, list[Progress]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory, (older, newest) = saved
    change(directory)
    checkpoints = reopen(directory)
    chex.assert_trees_all_equal(checkpoints.restore(start(seed=1)), older)
    assert reason in caplog.text
    checkpoints.tidy()
    checkpoints.save(newest)
    assert checkpoints.newest() == directory / "2"
    checkpoints.close()
    assert not list(directory.glob("*.orbax*"))
    assert sorted(os.listdir(directory))[:2] == ["1", "2"]


def test_a_damaged_or_refused_checkpoint_costs_no_intact_one(
    saved: tuple[Path, list[Progress]],
) -> None:
    directory, (older, _) = saved
    with pytest.raises(RunError):
        reopen(directory, keep=1, origin={}).restore(start())
    assert sorted(os.listdir(directory)) == ["1", "2"]
    change_history(directory)
    checkpoints = reopen(directory, keep=1)
    chex.assert_trees_all_equal(checkpoints.restore(start(seed=1)), older)
    assert sorted(os.listdir(directory)) == ["1", "2"]
    checkpoints.tidy()
    assert sorted(os.listdir(directory)) == ["1", "2.damaged"]


def test_without_an_intact_checkpoint_nothing_begins_anew(
    saved: tuple[Path, list[Progress]],
) -> None:
    directory, _ = saved
    for path in directory.glob("*/record/metadata"):
        path.write_text("{}")
    with pytest.raises(RunError, match=f"no checkpoint in {directory} is intact"):
        reopen(directory).restore(start())
    assert sorted(os.listdir(directory)) == ["1", "2"]


def test_another_model_is_named_leaf_by_leaf(saved: tuple[Path, list[Progress]]) -> None:
    directory, _ = saved
    with pytest.raises(RunError, match="is of another run") as caught:
        reopen(directory).restore(start(hidden=5))
    named = "params['Dense_0']['kernel'] is 'float32[3, 4]' there and 'float32[3, 5]' here"
    assert named in str(caught.value)
    assert "['Dense_1']['bias']" not in str(caught.value)  # the same in both


def test_another_origin_is_named_field_by_field(saved: tuple[Path, list[Progress]]) -> None:
    directory, _ = saved
    with pytest.raises(RunError, match=r"seed is 0 there and 1 here$"):
        reopen(directory, origin={**ORIGIN, "seed": 1}).restore(start())


def test_what_cannot_be_saved_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"{tmp_path}/file/x cannot be opened: "):
        reopen(tmp_path / "file" / "x")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(RunError, match="the disk is full; 1 MiB are needed"):
        reopen(tmp_path / "checkpoints").save(start())
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_save_that_fails_in_the_background_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ValueError("No space left on device")

    checkpoints = reopen(tmp_path / "checkpoints")
    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", fail)
    for call in (checkpoints.wait, checkpoints.close, lambda: checkpoints.save(start())):
        with pytest.raises(RunError, match=r"no checkpoint can be saved .*: No space left"):
            call()


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    progress = start()
    progress.state.params["Dense_0"]["bias"] = jnp.array([0.0, jnp.nan, 0.0, 0.0])
    checkpoints = reopen(tmp_path / "checkpoints")
    with pytest.raises(FloatingPointError, match="the state is not finite after step 0"):
        checkpoints.save(progress)
    assert checkpoints.newest() is None


def test_nothing_is_pickled(saved: tuple[Path, list[Progress]]) -> None:
    directory, (_, newest) = saved
    record = json.loads((directory / "2" / "record" / "metadata").read_text())["record"]
    assert record["history"] == newest.history
    for path in directory.rglob("*"):
        assert not path.is_file() or not path.read_bytes().startswith(b"\x80")
