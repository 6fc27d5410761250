"""A trained network is found and read, and its folder stays as it is."""

import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from mnist_jax.checkpoint import Checkpoints, Progress
from mnist_jax.config import Config, deciding_fields, load_config
from mnist_jax.errors import RunError
from mnist_jax.input_pipeline import describe_dataset, load_arrays, load_dataset
from mnist_jax.sharding import make_mesh
from mnist_jax.task import new_metrics, set_up
from mnist_jax.train import Result, train_and_evaluate
from mnist_jax.trained import find_run, load_trained, predict
from mnist_jax.workdir import lock_folder
from tests.oracle import forward, softmax


@pytest.fixture
def folder(sample_run: Result, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_run.workdir, tmp_path / "run"))


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_the_parameters_are_those_of_the_run(sample_run: Result) -> None:
    before = snapshot(sample_run.workdir)
    trained = load_trained(sample_run.workdir)
    chex.assert_trees_all_equal(trained.params, jax.tree.map(np.asarray, sample_run.state.params))
    assert (trained.step, trained.config.dataset) == (64, "mnist_sample")
    assert snapshot(sample_run.workdir) == before


def test_the_probabilities_are_those_of_the_oracle(sample_run: Result) -> None:
    """For any number of images; the same bits alone and in company."""
    trained = load_trained(sample_run.workdir)
    images = load_arrays("mnist_sample", trained.config).test_images[:600]
    probabilities = predict(trained, images)
    logits, _ = forward(jax.device_get(trained.params), images.reshape(600, 784) / 255)
    np.testing.assert_allclose(probabilities, softmax(logits), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(predict(trained, images[:1]), probabilities[:1])
    assert predict(trained, images[:0]).shape == (0, 10)


def test_a_run_may_be_read_while_another_process_has_its_lock(folder: Path) -> None:
    lock = lock_folder(folder, load_config(folder / "config.json"))
    assert load_trained(folder).step == 64
    os.close(lock)


def test_a_run_may_be_read_where_nothing_may_be_written(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    mounted = ["mount", "--bind", "-o", "ro", str(folder), str(place)]
    if not shutil.which("mount") or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        with pytest.raises(OSError, match="Read-only"):
            (place / "file").touch()
        assert load_trained(place).step == 64
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_the_checkpoint_that_is_read_may_be_deleted_by_a_run_that_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(folder / "config.json")
    dataset = load_dataset(config)
    task, state = set_up(config, dataset, make_mesh())
    origin = deciding_fields(config) | describe_dataset(dataset)
    directory = folder / "checkpoints"
    read, count = Checkpoints._read, 0

    def go_on_first(self: Checkpoints, step: int, template: Progress) -> Progress:
        nonlocal count
        count += 1
        if count == 1:
            with Checkpoints(directory, 1, origin) as writer:
                writer.save(Progress(state._replace(step=np.int32(96)), new_metrics(task), []))
            assert sorted(path.name for path in directory.iterdir()) == ["96"]
        return read(self, step, template)

    monkeypatch.setattr(Checkpoints, "_read", go_on_first)
    assert load_trained(folder).step == 96
    assert count == 2


def test_the_checkpoint_before_a_damaged_one_is_used(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "checkpoints" / "64" / "record" / "metadata").write_text("{}")
    before = snapshot(folder)
    assert load_trained(folder).step == 32
    assert "64 is damaged and not used" in caplog.text
    assert snapshot(folder) == before


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no checkpoint": (lambda folder: empty(folder / "checkpoints"), "no checkpoint yet"),
    "no folder of checkpoints": (
        lambda folder: shutil.rmtree(folder / "checkpoints"),
        "no checkpoint yet",
    ),
    "no run.json": (lambda folder: (folder / "run.json").unlink(), "is missing or damaged"),
    "half of run.json": (
        lambda folder: (folder / "run.json").write_text('{"dataset": "mnist_sample"}'),
        "is missing or damaged",
    ),
    "another seed": (
        lambda folder: replace(folder / "config.json", '"seed": 0', '"seed": 1'),
        "seed is 0 there and 1 here",
    ),
    "another size": (
        lambda folder: replace(folder / "run.json", "4000", "60000"),
        "train_examples is 4000 there and 60000 here",
    ),
    "another network": (
        lambda folder: replace(folder / "config.json", "512", "256"),
        "hidden_sizes is",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_that_cannot_be_read_is_named(name: str, folder: Path) -> None:
    break_it, message = BROKEN[name]
    break_it(folder)
    with pytest.raises(RunError, match=message):
        load_trained(folder)


def test_without_a_name_the_run_that_finished_last_is_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"no run has finished .* make one: python -m mnist_jax"):
        find_run(None)
    for i, name in enumerate(("older", "newer", "unfinished")):
        copy = Path(shutil.copytree(folder, Path("runs", name)))
        os.utime(copy / "result.json", (1000 + i, 1000 + i))
    Path("runs/unfinished/result.json").unlink()
    assert find_run(None) == Path("runs/newer")
    assert find_run(Path("runs/unfinished")) == Path("runs/unfinished")
    with pytest.raises(RunError, match="holds no run"):
        find_run(tmp_path)


def test_it_says_which_run_it_uses(sample_run: Result, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mnist_jax"):
        load_trained(sample_run.workdir)
    assert f"Using {sample_run.workdir}, after step 64" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("standard_dtypes")  # the schedule
def test_a_config_with_another_optimizer_is_read(sample_dir: Path, tmp_path: Path) -> None:
    """The checkpoint has another optimizer state, and an epoch of one step."""
    config = Config(
        dataset="mnist_sample", data_dir=str(sample_dir), num_epochs=1, batch_size=5000,
        optimizer="sgd", momentum=0.9, schedule="cosine", hidden_sizes=(16, 8),
    )  # fmt: skip
    result = train_and_evaluate(config, tmp_path / "run")
    trained = load_trained(result.workdir)
    chex.assert_trees_all_equal(trained.params, jax.tree.map(np.asarray, result.state.params))
