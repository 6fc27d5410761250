"""Whole runs on the embedded sample: what they compute, write and print."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from mnist_jax import steps
from mnist_jax.config import Config, load_config
from mnist_jax.data.pipeline import epoch_order, load_dataset, take_batch
from mnist_jax.inference.predictor import load_predictor
from mnist_jax.model import make_model
from mnist_jax.optimizer import make_optimizer
from mnist_jax.runtime.errors import RunError, UsageError
from mnist_jax.runtime.metric_writer import Totals
from mnist_jax.runtime.workdir import RunDirectory
from mnist_jax.train import Result, finish, train_and_evaluate
from tests import oracle
from tests.helpers import assert_same_run, jit_step, read_history, to_float64

FAST = Path(__file__).parent.parent / "configs" / "fast.py"


@pytest.fixture(scope="module")
def config(sample_dir: Path) -> Config:
    """The settings of `sample_run`."""
    return Config(dataset="mnist_sample", data_dir=str(sample_dir), num_epochs=2)


def test_training_learns(sample_run: Result) -> None:
    first, last = sample_run.history
    assert first["running_train_accuracy"] < last["running_train_accuracy"]
    assert sample_run.train.loss < last["running_train_loss"] < first["running_train_loss"]
    assert sample_run.test.accuracy > 0.85
    assert "tensorflow" not in sys.modules


def test_every_example_of_every_split_is_counted(sample_run: Result) -> None:
    for record in sample_run.history:
        assert (record["running_train_count"], record["test_count"]) == (4000, 1000)
    assert [record["step"] for record in sample_run.history] == [32, 64]  # 31.25 batches per epoch
    assert (sample_run.train.count, sample_run.test.count) == (4000, 1000)


def test_the_result_is_that_of_the_saved_parameters(sample_run: Result, config: Config) -> None:
    """Computed again in NumPy, in float64."""
    dataset = load_dataset(config)
    params = to_float64(load_predictor(sample_run.workdir).params)
    for split, totals in (("train", sample_run.train), ("test", sample_run.test)):
        rows = np.array(dataset.splits[split])
        images, labels = dataset.examples.images[rows], dataset.examples.labels[rows]
        logits, _ = oracle.forward(params, images)
        assert totals.correct == (logits.argmax(axis=1) == labels).sum()
        loss = oracle.cross_entropy(logits, labels).mean()
        np.testing.assert_allclose(totals.loss, loss, rtol=1e-5)
    assert sample_run.history[-1].items() >= sample_run.test.as_record("test").items()


def test_the_run_directory_records_the_run(sample_run: Result, config: Config) -> None:
    folder = sample_run.workdir
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "run.json", "metrics.jsonl", "result.json", "checkpoints"}
    assert load_config(folder / "config.json") == config
    run = json.loads((folder / "run.json").read_text())
    assert (run["format"], run["saved"], run["status"]) == (2, True, "finished")
    assert (run["dataset"], run["train"], run["test"]) == ("mnist_sample", 4000, 1000)
    assert run["jax"] == jax.__version__
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == sample_run.history
    final = json.loads((folder / "result.json").read_text())
    assert final["test_accuracy"] == sample_run.test.accuracy == final["test_correct"] / 1000
    assert sorted(os.listdir(folder / "checkpoints")) == ["32", "64"]


def test_a_plain_loop_gives_the_same_bits(sample_run: Result, config: Config) -> None:
    """The same run in ten lines: no chunks, no evaluation, no run directory."""
    examples = jax.device_put(load_dataset(config).examples)
    model, tx = make_model(config), make_optimizer(config, 64)
    init_key, order_key = jax.random.split(jax.random.key(0, impl="threefry2x32"))
    state = steps.init_state(init_key, 784, model=model, tx=tx)
    for epoch in (1, 2):
        for rows in epoch_order(order_key, epoch, 4000, 128):
            batch = take_batch(examples, jax.device_put(rows))
            state, _ = jit_step(state, batch, model=model, tx=tx)
    chex.assert_trees_all_equal(state, sample_run.state)


def test_another_process_and_other_chunks_give_the_same_bits(
    sample_run: Result, config: Config, tmp_path: Path
) -> None:
    flags = ["--dataset", "mnist_sample", "--num-epochs", "2", "--data-dir", config.data_dir]
    flags += ["--steps-per-chunk", "5", "--workdir", str(tmp_path / "run")]
    # Bit-identity is promised for the same number of devices.
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "mnist_jax.train", *flags]
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert not process.stderr
    assert "\x1b" not in process.stdout  # no colours and no progress bar: it is not a terminal
    assert list((tmp_path / "cache" / "mnist_jax").glob("*/jit_train_steps*"))
    assert read_history(tmp_path / "run") == read_history(sample_run.workdir)
    assert_same_run(train_and_evaluate(config, tmp_path / "run"), sample_run)  # it is finished


def test_the_validation_split_is_held_out_and_shown(config: Config, tmp_path: Path) -> None:
    result = train_and_evaluate(replace(config, validation_size=500, num_epochs=1), tmp_path)
    (record,) = result.history
    assert (record["running_train_count"], record["validation_count"]) == (3500, 500)
    assert not any(name.startswith("test") for name in record)
    assert (result.train.count, result.test.count) == (3500, 1000)


def test_a_batch_may_be_larger_than_the_dataset(config: Config, tmp_path: Path) -> None:
    result = train_and_evaluate(replace(config, batch_size=10**12, num_epochs=1), tmp_path)
    assert (result.state.step, result.train.count, result.test.count) == (1, 4000, 1000)


def test_a_run_prints_what_it_does(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train_and_evaluate(replace(config, num_epochs=1), tmp_path / "run")
    text = capsys.readouterr().out
    assert re.search(r"jax \S+, \d+ (cpu|gpu|tpu) devices? \(\S+\)", text)
    assert "mnist_sample: 4,000 train, 1,000 test images" in text
    assert "MLP: 407,050 parameters" in text
    epoch = r"epoch 1/1   running train loss 0\.\d{4} accuracy \d\d\.\d\d %   test loss"
    assert re.search(epoch, text)
    percent = f"{100 * result.test.accuracy:.2f} % ({result.test.correct} of 1,000)"
    assert f"Test accuracy: {percent}" in text
    assert f"Run directory: {tmp_path / 'run'}" in text


@pytest.mark.parametrize(
    ("correct", "gap"), [(7, "12.50 points of overfitting"), (5, "-12.50 points")]
)
def test_overfitting_is_claimed_only_if_the_training_set_does_better(
    correct: int, gap: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunDirectory(tmp_path / "run", {}) as folder:
        finish(folder, Totals(4.0, correct, 8), Totals(4.0, 6, 8))
    assert f"Gap: {gap}\n" in capsys.readouterr().out


def test_a_test_loss_that_is_not_finite_stops_the_run(config: Config, tmp_path: Path) -> None:
    """An epoch has only one step, whose training loss is still finite."""
    config = replace(config, optimizer="sgd", learning_rate=1e30, batch_size=4000)
    with pytest.raises(RunError, match=r"not finite after step 1\. Lower learning_rate"):
        train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(config: Config, tmp_path: Path) -> None:
    rising = {"optimizer": "sgd", "schedule": "constant", "warmup_steps": 60, "learning_rate": 1e37}
    config = replace(config, **rising, checkpoint_every_steps=1, steps_per_chunk=1)
    with pytest.raises(RunError) as caught:
        train_and_evaluate(config, tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["error"]) == ("failed", str(caught.value))
    chex.assert_tree_all_finite(load_predictor(tmp_path).params)
    with pytest.raises(RunError) as again:
        train_and_evaluate(config, tmp_path)
    assert str(again.value) == str(caught.value)


def test_two_runs_without_a_name_get_two_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunDirectory(None, {}) as first, RunDirectory(None, {}) as second:
        assert first.path != second.path
    assert len(list((tmp_path / "runs").glob("20??-??-??_??-??-??*"))) == 2


def test_tensorboard_that_is_not_installed_is_asked_for(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UsageError, match=r'pip install -e "\.\[tensorboard\]"'):
        train_and_evaluate(replace(config, tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_lesson_on_full_mnist(full_run: Result, mnist_dir: Path, tmp_path: Path) -> None:
    second = train_and_evaluate(Config(data_dir=str(mnist_dir), seed=1), tmp_path)
    test = [result.test.accuracy for result in (full_run, second)]
    running = [result.history[-1]["running_train_accuracy"] for result in (full_run, second)]
    assert np.mean(test) >= 0.978
    assert min(test) >= 0.974
    assert 0.986 <= min(running) <= max(running) <= 0.991


@pytest.mark.slow
@pytest.mark.usefixtures("standard_dtypes")  # for the schedule
def test_the_fast_preset_on_full_mnist(mnist_dir: Path, tmp_path: Path) -> None:
    """Its docstring gives a mean of 98.26 % over ten seeds, and a deviation of 0.06."""
    result = train_and_evaluate(replace(load_config(FAST), data_dir=str(mnist_dir)), tmp_path)
    assert len(result.history) == 2
    assert result.test.accuracy == pytest.approx(0.9826, abs=0.002)


@pytest.mark.slow
def test_help_and_a_run_with_cached_programs_are_quick(config: Config, tmp_path: Path) -> None:
    """The best of three, with limits that leave room for a slow machine."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def measure(*flags: str) -> float:
        started = time.perf_counter()
        command = [sys.executable, "-m", "mnist_jax.train", *flags]
        subprocess.run(command, env=environment, check=True, capture_output=True, cwd=tmp_path)
        return time.perf_counter() - started

    flags = ["--dataset", "mnist_sample", "--data-dir", config.data_dir, "--num-epochs", "1"]
    assert min(measure("--help") for _ in range(3)) < 3.0
    assert min(measure(*flags) for _ in range(3)) < 4.5
