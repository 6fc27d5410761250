"""A checkpoint restores every bit that was saved, or a message says why not."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.runtime.checkpoint import Checkpoints
from mnist_jax.runtime.errors import RunError
from mnist_jax.runtime.workdir import RunDirectory
from tests.helpers import cut_in_half, flip_byte, small_disk, snapshot

FINGERPRINT = {"seed": 0, "sizes": [4]}
PROGRESS = {"history": [{"epoch": 1, "loss": 0.1 + 0.2}]}


def make_tree(step: int) -> dict[str, Any]:
    """Arrays of two dtypes that differ from step to step."""
    kernel = jax.random.normal(jax.random.key(step), (300, 4))
    return {"step": jnp.int32(step), "params": {"kernel": kernel, "bias": jnp.ones(4)}}


@pytest.fixture
def workdir(tmp_path: Path) -> Iterator[RunDirectory]:
    """An empty run directory."""
    with RunDirectory(tmp_path / "run", FINGERPRINT) as workdir:
        yield workdir


@pytest.fixture
def directory(workdir: RunDirectory) -> Path:
    """The checkpoints of steps 1 and 2 of `workdir`."""
    save(workdir, 1, 2)
    return workdir.path / "checkpoints"


def save(workdir: RunDirectory, *steps: int, keep: int = 3) -> None:
    with Checkpoints(workdir, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_tree(step), PROGRESS)


def restore_step(workdir: RunDirectory) -> int:
    """Restores the newest intact checkpoint, compares it with what was saved; returns its step."""
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(make_tree(0))
    assert restored
    step = int(restored.tree["step"])
    chex.assert_trees_all_equal(restored.tree, make_tree(step), strict=True)  # also the dtypes
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored.tree))
    assert (restored.progress, checkpoints.last_step) == (PROGRESS, step)
    return step


def test_a_restored_checkpoint_equals_what_was_saved(
    workdir: RunDirectory, directory: Path
) -> None:
    """On the devices of the template, or on the host if the template has none."""
    assert restore_step(workdir) == 2
    with Checkpoints(RunDirectory.open_read_only(workdir.path)) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(make_tree, 0))
    assert restored
    assert isinstance(restored.tree["params"]["kernel"], np.ndarray)
    chex.assert_trees_all_equal(restored.tree, make_tree(2), strict=False)


def test_training_may_reuse_the_memory_of_a_state_that_is_being_saved(
    workdir: RunDirectory,
) -> None:
    tree = make_tree(1)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: 0 * x, tree), donate_argnums=0)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(1, tree, PROGRESS)
        overwrite(tree)
    assert tree["params"]["kernel"].is_deleted()
    assert restore_step(workdir) == 1


def test_only_the_newest_checkpoints_are_kept(workdir: RunDirectory) -> None:
    save(workdir, 1, 2, 3, keep=2)
    assert sorted(os.listdir(workdir.path / "checkpoints")) == ["2", "3"]


def test_a_flipped_byte_is_noticed_or_changes_nothing(
    workdir: RunDirectory, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In every file of the newest checkpoint, a byte at its start, middle and end."""
    files = [path for path in (directory / "2").rglob("*") if path.is_file()]
    steps = []
    for file in files:
        size = file.stat().st_size
        for position in {0, size // 2, size - 1} if size else ():
            flip_byte(file, position)
            caplog.clear()
            steps.append(restore_step(workdir))
            assert ("is damaged" in caplog.text) == (steps[-1] == 1), (file, position)
            flip_byte(file, position)  # restores it
    assert set(steps) == {1, 2}
    assert restore_step(workdir) == 2


def find_largest_file(folder: Path) -> Path:
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def cut_the_largest_file(directory: Path) -> None:
    cut_in_half(find_largest_file(directory / "2"))


def remove_the_largest_file(directory: Path) -> None:
    find_largest_file(directory / "2").unlink()


def put_older_arrays(directory: Path) -> None:
    shutil.rmtree(directory / "2" / "arrays")
    shutil.copytree(directory / "1" / "arrays", directory / "2" / "arrays")


def change_record(directory: Path) -> None:
    path = directory / "2" / "record" / "metadata"
    text = path.read_text()
    assert "0.3000" in text
    path.write_text(text.replace("0.3000", "0.2000"))


def rename_older(directory: Path) -> None:
    shutil.rmtree(directory / "2")
    shutil.copytree(directory / "1", directory / "7")


def add_empty_directory(directory: Path) -> None:
    shutil.rmtree(directory / "2")
    (directory / "9").mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_the_largest_file, "/2 is damaged"),
        (remove_the_largest_file, "/2 is damaged"),
        (put_older_arrays, "/2 is damaged and is not used: its arrays do not match"),
        (change_record, "/2 is damaged and is not used: its record does not match"),
        (rename_older, "/7 is damaged and is not used: it holds step 1"),
        (add_empty_directory, "/9 is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_replaced(
    damage: Callable[[Path], None],
    message: str,
    workdir: RunDirectory,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The one before it is restored, and the run can save its step again."""
    damage(directory)
    before = snapshot(directory)
    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(make_tree(0))
        assert restored
        chex.assert_trees_all_equal(restored.tree, make_tree(1))
        assert f"{directory}{message}" in caplog.text
        assert snapshot(directory) == before  # a restore changes nothing
        checkpoints.save(2, make_tree(2), PROGRESS)
    assert restore_step(workdir) == 2
    assert sorted(os.listdir(directory)) == ["1", "2"]


def test_an_intact_checkpoint_is_kept_until_a_newer_one_is_saved(
    workdir: RunDirectory, directory: Path
) -> None:
    change_record(directory)
    with Checkpoints(workdir, keep=1) as checkpoints:
        assert checkpoints.restore(make_tree(0))
        assert sorted(os.listdir(directory)) == ["1", "2"]
        checkpoints.save(2, make_tree(2), PROGRESS)
    assert sorted(os.listdir(directory)) == ["2"]


def test_another_model_is_named_leaf_by_leaf(workdir: RunDirectory, directory: Path) -> None:
    with Checkpoints(workdir) as checkpoints, pytest.raises(RunError) as caught:
        checkpoints.restore(make_tree(0) | {"params": {"kernel": jnp.ones((300, 5))}})
    message = str(caught.value)
    assert f"{directory}/2 belongs to a different run: " in message
    assert (
        """['kernel'] is "float32[300, 4]" in the saved run and "float32[300, 5]" now""" in message
    )
    assert """['bias'] is "float32[4]" in the saved run and null now""" in message
    assert "['step']" not in message  # the same in both


def test_a_checkpoint_of_another_run_is_refused(workdir: RunDirectory, directory: Path) -> None:
    """Somebody has copied it, or has changed run.json."""
    workdir.update(fingerprint={**FINGERPRINT, "seed": 1})
    before = snapshot(directory)
    with (
        Checkpoints(workdir, keep=1) as checkpoints,
        pytest.raises(
            RunError, match=r"belongs to a different run: seed is 0 in the saved run and 1 now$"
        ),
    ):
        checkpoints.restore(make_tree(0))
    assert snapshot(directory) == before


def test_a_directory_that_cannot_be_opened_is_named(workdir: RunDirectory) -> None:
    (workdir.path / "checkpoints").touch()
    with pytest.raises(RunError, match=f"{workdir.path}/checkpoints cannot be opened: "):
        Checkpoints(workdir)


def test_a_save_that_orbax_refuses_is_an_error(workdir: RunDirectory, directory: Path) -> None:
    with (
        Checkpoints(workdir) as checkpoints,
        pytest.raises(
            RunError,
            match=f"no checkpoint can be saved in {directory}: Orbax refuses to save step 1",
        ),
    ):
        checkpoints.save(1, make_tree(1), PROGRESS)


def test_a_state_that_is_not_finite_is_not_saved(workdir: RunDirectory) -> None:
    tree = make_tree(1) | {"params": jnp.array([0.0, jnp.nan])}
    with Checkpoints(workdir) as checkpoints:
        with pytest.raises(RunError, match="the state is not finite after step 1"):
            checkpoints.save(1, tree, PROGRESS)
        assert checkpoints.restore(make_tree(0)) is None


def test_checkpoints_hold_json_and_no_pickle(workdir: RunDirectory, directory: Path) -> None:
    saved = json.loads((directory / "2" / "record" / "metadata").read_text())["saved"]
    assert (saved["format"], saved["step"], saved["progress"]) == (2, 2, PROGRESS)
    for path in directory.rglob("*"):
        assert not path.is_file() or not path.read_bytes().startswith(b"\x80")


@pytest.mark.parametrize("own_error", [None, ZeroDivisionError()])
def test_a_save_that_fails_in_the_background_is_an_error(
    own_error: Exception | None, tmp_path: Path
) -> None:
    """The run's own error comes first. The previous checkpoint is kept."""
    array = np.random.default_rng(0).random(350_000, np.float32)  # the disk has space for one
    expected = pytest.raises(RunError, match=r"/checkpoints: No space left on device$")
    if own_error:
        expected = pytest.raises(type(own_error))
    with small_disk(tmp_path / "disk", "2m") as disk:
        with (
            expected,
            RunDirectory(disk, FINGERPRINT) as workdir,
            Checkpoints(workdir) as checkpoints,
        ):
            checkpoints.save(1, array, PROGRESS)
            checkpoints.save(2, array, PROGRESS)
            if own_error:
                raise own_error
        with Checkpoints(RunDirectory.open_read_only(disk)) as checkpoints:
            restored = checkpoints.restore(array)
    assert restored
    np.testing.assert_array_equal(restored.tree, array)
    assert checkpoints.last_step == 1
