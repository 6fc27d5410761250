"""The network of a run is found and loaded, and nothing in the run directory changes."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from mnist_jax.config import Config
from mnist_jax.data.sources import load_arrays
from mnist_jax.inference.predictor import Predictor, find_run, load_predictor
from mnist_jax.runtime.checkpoint import Checkpoints
from mnist_jax.runtime.errors import RunError
from mnist_jax.runtime.workdir import RunDirectory, read_run_info
from mnist_jax.train import Result, train_and_evaluate
from tests.helpers import snapshot
from tests.oracle import forward, softmax


@pytest.fixture
def folder(sample_run: Result, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_run.workdir, tmp_path / "run"))


def test_the_parameters_are_those_of_the_run(
    sample_run: Result, caplog: pytest.LogCaptureFixture
) -> None:
    before = snapshot(sample_run.workdir)
    with caplog.at_level("INFO", "mnist_jax"):
        predictor = load_predictor(sample_run.workdir)
    chex.assert_trees_all_equal(predictor.params, jax.tree.map(np.asarray, sample_run.state.params))
    assert (predictor.step, predictor.config.dataset) == (64, "mnist_sample")
    assert predictor.history == sample_run.history
    assert f"Using {sample_run.workdir}, after step 64" in caplog.text
    assert snapshot(sample_run.workdir) == before


def test_the_probabilities_are_those_of_the_oracle(predictor: Predictor) -> None:
    """For any number of images; an image alone gets the same bits as among others."""
    images = load_arrays("mnist_sample", predictor.config).test_images[:600]
    probabilities = predictor.probabilities(images)
    logits, _ = forward(jax.device_get(predictor.params), images.reshape(600, 784) / 255)
    np.testing.assert_allclose(probabilities, softmax(logits), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(predictor.probabilities(images[:1]), probabilities[:1])
    assert predictor.probabilities(images[:0]).shape == (0, 10)


def test_a_run_can_be_loaded_while_it_is_locked(folder: Path) -> None:
    with RunDirectory(folder, read_run_info(folder)["fingerprint"]):
        assert load_predictor(folder).step == 64


def test_a_run_can_be_loaded_from_a_read_only_file_system(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    mounted = ["mount", "--bind", "-o", "ro", str(folder), str(place)]
    if not shutil.which("mount") or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        assert load_predictor(place).step == 64
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_training_run_may_delete_the_checkpoint_that_is_being_read(
    folder: Path, sample_run: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, steps = Checkpoints._read, []

    def save_first(self: Checkpoints, step: int, template: Any) -> Any:
        steps.append(step)
        if len(steps) == 1:
            workdir = RunDirectory(folder, self.run_dir.info["fingerprint"])
            with workdir, Checkpoints(workdir, keep=1) as checkpoints:
                state = jax.tree.map(np.asarray, sample_run.state)._replace(step=np.int32(96))
                checkpoints.save(96, state, {"history": []})
        return read(self, step, template)

    monkeypatch.setattr(Checkpoints, "_read", save_first)
    assert load_predictor(folder).step == 96
    assert steps == [64, 96]


def test_a_damaged_checkpoint_is_not_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "checkpoints" / "64" / "record" / "metadata").write_text("{}")
    before = snapshot(folder)
    assert load_predictor(folder).step == 32
    assert "64 is damaged" in caplog.text
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("run.json", "format", "fmt", "reads format"),
        ("config.json", '"seed": 0', '"seed": 1', "seed is 0 in the saved run and 1 now"),
        ("run.json", '_examples": 4000', '_examples": 6000', "6000 now"),
    ],
)
def test_a_run_whose_files_were_changed_is_refused(
    file: str, old: str, new: str, message: str, folder: Path
) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(RunError, match=message):
        load_predictor(folder)


def test_by_default_the_run_that_finished_last_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("older", "newer", "unfinished")):
        copy = Path(shutil.copytree(folder, Path("runs", name)))
        os.utime(copy / "result.json", (1000 + i, 1000 + i))
    Path("runs/unfinished/result.json").unlink()
    assert find_run() == Path("runs/newer")
    assert find_run("runs/unfinished") == Path("runs/unfinished")


@pytest.mark.slow
@pytest.mark.usefixtures("standard_dtypes")  # for the schedule
def test_a_run_with_another_optimizer_is_loaded(sample_dir: Path, tmp_path: Path) -> None:
    """Its checkpoint has another optimizer state, and an epoch has one step."""
    config = Config(
        dataset="mnist_sample", data_dir=str(sample_dir), num_epochs=1, batch_size=5000,
        optimizer="sgd", momentum=0.9, schedule="cosine", hidden_sizes=(16, 8),
    )  # fmt: skip
    result = train_and_evaluate(config, tmp_path / "run")
    params = jax.tree.map(np.asarray, result.state.params)
    chex.assert_trees_all_equal(load_predictor(result.workdir).params, params)
