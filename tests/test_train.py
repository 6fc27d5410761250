"""Whole runs on the embedded sample, and the program around them."""

import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from mnist_jax import run_log, steps, train
from mnist_jax.command_line import Launch
from mnist_jax.config import Config, load_config
from mnist_jax.errors import ConfigError, Interrupted, RunError
from mnist_jax.input_pipeline import batch_rows, epoch_order, load_dataset
from mnist_jax.metrics import Summary, summarize
from mnist_jax.model import MLP, make_model
from mnist_jax.optimizer import make_optimizer
from mnist_jax.train import Result, train_and_evaluate

FAST = Path(__file__).parent.parent / "configs" / "fast.py"


@pytest.fixture(scope="session")
def config(sample_dir: Path) -> Config:
    return Config(dataset="mnist_sample", data_dir=str(sample_dir), num_epochs=2)


@pytest.fixture(scope="session")
def result(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train_and_evaluate(config, tmp_path_factory.mktemp("runs") / "first")


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def test_learns(result: Result) -> None:
    first, last = result.history
    assert first["running_train_accuracy"] < last["running_train_accuracy"]
    assert result.test.accuracy > 0.85
    assert "tensorflow" not in sys.modules
    assert result.train.loss < last["running_train_loss"] < first["running_train_loss"]


def test_counts_every_example_of_every_split(result: Result) -> None:
    for record in result.history:
        assert (record["running_train_count"], record["test_count"]) == (4000, 1000)
    assert [record["step"] for record in result.history] == [32, 64]  # 31 batches and one of 32
    assert (result.train.count, result.test.count, result.state.step) == (4000, 1000, 64)


def test_run_folder_records_the_run(result: Result, config: Config) -> None:
    folder = result.workdir
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "run.json", "metrics.jsonl", "result.json", "checkpoints"}
    assert load_config(folder / "config.json") == config
    run = json.loads((folder / "run.json").read_text())
    assert (run["dataset"], run["train"], run["test"]) == ("mnist_sample", 4000, 1000)
    assert run["jax"] == jax.__version__
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    final = json.loads((folder / "result.json").read_text())
    assert final["test_accuracy"] == result.test.accuracy == final["test_correct"] / 1000
    assert sorted(os.listdir(folder / "checkpoints")) == ["32", "64"]


@pytest.mark.slow
def test_a_plain_loop_without_evaluation_gives_the_same_bits(
    config: Config, tmp_path: Path
) -> None:
    """The same run in fifteen lines: no chunks, no evaluation, no run folder."""
    config = replace(config, schedule="linear", warmup_steps=3)
    result = train_and_evaluate(config, tmp_path)
    examples = jax.device_put(load_dataset(config).examples)
    model, tx = make_model(config), make_optimizer(config, 64)
    init_key, order_key = jax.random.split(jax.random.key(0, impl="threefry2x32"))
    state = steps.init_state(init_key, 784, model=model, tx=tx)
    step = jax.jit(steps.train_step, static_argnames=("model", "tx"))
    for epoch in (1, 2):
        for rows in epoch_order(order_key, epoch, 4000, config.batch_size):
            batch = steps.take_batch(examples, jax.device_put(rows))
            state, _ = step(state, batch, model=model, tx=tx)
    chex.assert_trees_all_equal(state, result.state)


def test_the_size_of_a_chunk_changes_no_bit(result: Result, config: Config, tmp_path: Path) -> None:
    other = train_and_evaluate(replace(config, steps_per_chunk=5), tmp_path)
    chex.assert_trees_all_equal(other.state, result.state)
    assert without_seconds(other.history) == without_seconds(result.history)
    assert (other.train, other.test) == (result.train, result.test)


def test_another_process_gives_the_same_bits(
    result: Result, config: Config, tmp_path: Path
) -> None:
    flags = ["--dataset", "mnist_sample", "--num-epochs", "2", "--data-dir", config.data_dir]
    command = [sys.executable, "-m", "mnist_jax.train", *flags, "--workdir", str(tmp_path / "run")]
    # Bit-identity is promised for the same number of devices.
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert without_seconds(list(map(json.loads, lines))) == without_seconds(result.history)
    continued = train_and_evaluate(load_config(tmp_path / "run" / "config.json"), tmp_path / "run")
    chex.assert_trees_all_equal(continued.state, result.state)
    assert not process.stderr
    assert "\x1b" not in process.stdout  # no colours, no bar: it is no terminal
    assert list((tmp_path / "cache" / "mnist_jax").glob("*/jit_train_steps*"))


def test_another_seed_gives_other_bits(result: Result, config: Config, tmp_path: Path) -> None:
    other = train_and_evaluate(replace(config, seed=1), tmp_path)
    for a, b in zip(*map(jax.tree.leaves, (other.state.params, result.state.params)), strict=True):
        assert not np.array_equal(a, b)


def test_each_compiled_function_is_traced_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3,900 examples: a short last batch, a short last chunk, splits of three sizes."""
    jax.clear_caches()
    for module, name, n in [
        (steps, "train_step", 1),
        (steps, "loss_fn", 2),  # in train_steps and in evaluate
        (MLP, "__call__", 3),  # and in init_state
        (jax.random, "permutation", 1),
    ]:
        monkeypatch.setattr(module, name, chex.assert_max_traces(getattr(module, name), n=n))
    result = train_and_evaluate(replace(config, validation_size=100, steps_per_chunk=10), tmp_path)
    assert result.train.count == 3900


def test_validation_split_is_shown_instead_of_the_test_set(config: Config, tmp_path: Path) -> None:
    result = train_and_evaluate(replace(config, validation_size=500, num_epochs=1), tmp_path)
    (record,) = result.history
    assert (record["running_train_count"], record["validation_count"]) == (3500, 500)
    assert not any(name.startswith("test") for name in record)
    assert (result.train.count, result.test.count) == (3500, 1000)


def test_validation_rows_are_not_trained_on(config: Config) -> None:
    splits = load_dataset(replace(config, validation_size=500)).splits
    order = epoch_order(jax.random.key(0), 1, len(splits["train"]), 128)
    assert set(order[order >= 0]) == set(splits["train"])
    assert not set(splits["train"]) & (set(splits["validation"]) | set(splits["test"]))


def test_reported_accuracy_is_that_of_the_saved_parameters(result: Result, config: Config) -> None:
    dataset = load_dataset(config)
    rows = batch_rows(np.array(dataset.splits["test"]), 1000)
    model = make_model(config)
    metrics = steps.evaluate(result.state.params, dataset.examples, rows, model=model)
    assert summarize(metrics).correct == result.test.correct


def test_what_a_person_reads(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train_and_evaluate(config, tmp_path / "run")
    text = capsys.readouterr().out
    assert re.search(r"jax \S+, \d+ (cpu|gpu|tpu) devices? \(\S+\)", text)
    assert "mnist_sample: 4,000 train, 1,000 test images" in text
    assert "MLP: 407,050 parameters" in text
    assert re.search(
        r"epoch 2/2   running train loss 0\.\d{4} accuracy \d\d\.\d\d %   test loss", text
    )
    percent = f"{100 * result.test.accuracy:.2f} % ({result.test.correct} of 1,000)"
    assert f"Test accuracy: {percent}" in text
    gap = 100 * (result.train.accuracy - result.test.accuracy)
    assert f"Gap: {gap:.2f} points of overfitting" in text
    assert f"Run folder: {tmp_path / 'run'}" in text


def test_no_overfitting_is_claimed_where_there_is_none(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = run_log.RunLog(tmp_path, config)
    log.take_folder()
    log.finish(Summary(0.5, 0.75, correct=3, count=4), Summary(0.5, 0.875, correct=7, count=8))
    assert "Gap: -12.50 points\n" in capsys.readouterr().out


def test_tensorboard_events_hold_the_metrics(config: Config, tmp_path: Path) -> None:
    result = train_and_evaluate(replace(config, tensorboard=True), tmp_path)
    (file,) = tmp_path.glob("events.out.tfevents.*")
    data, shown = file.read_bytes(), {}
    while data:  # a TFRecord: length (8 bytes), its CRC (4), the event, its CRC (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        shown |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    for record in result.history:
        for name, value in record.items():
            np.testing.assert_allclose(shown[record["step"], name], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        ({"optimizer": "sgd", "learning_rate": 1e30}, "at step 2"),
        # Seen in evaluation.
        ({"optimizer": "sgd", "learning_rate": 1e30, "batch_size": 4000}, "after step 1"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(
    settings: dict[str, Any], step: str, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=f"not finite {step}. Try a lower .* checkpoint: None"):
        train_and_evaluate(replace(config, **settings), tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(config: Config, tmp_path: Path) -> None:
    rising = {"optimizer": "sgd", "schedule": "constant", "warmup_steps": 60, "learning_rate": 1e37}
    slow = replace(config, **rising, checkpoint_every_steps=1, steps_per_chunk=1)
    with pytest.raises(RunError) as caught:
        train_and_evaluate(slow, tmp_path)
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert str(caught.value).endswith(f"checkpoint: {tmp_path / 'checkpoints' / str(newest)}")
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["error"]) == ("failed", str(caught.value))
    with pytest.raises(RunError) as again:
        train_and_evaluate(slow, tmp_path)
    assert str(again.value) == str(caught.value)


def test_bar_moves_within_the_epoch_on_a_terminal(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120, soft_wrap=True)
    monkeypatch.setattr(run_log, "console", terminal)
    log = run_log.RunLog(tmp_path, config)
    with log.bar(epoch=2, num_steps=32) as update:
        for step in (16, 32):
            update(step, Summary(0.5, 0.25, correct=step, count=4 * step))
    assert re.search(
        r"epoch 2/2 .*32/32   running train loss 0.5000 accuracy 25.00 %", screen.getvalue()
    )


def test_two_runs_without_a_workdir_get_two_folders(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logs = [run_log.RunLog(None, config) for _ in range(2)]
    folders = [log.take_folder() for log in logs]
    assert folders[0] != folders[1]
    assert len(list((tmp_path / "runs").glob("20??-??-??_??-??-??*"))) == 2


def test_tensorboard_that_is_not_installed_is_asked_for(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[tensorboard\]"'):
        train_and_evaluate(replace(config, tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_had_leaves_no_run_folder(config: Config, tmp_path: Path) -> None:
    with pytest.raises(RunError):
        train_and_evaluate(
            replace(config, dataset="mnist", manual_dir=str(tmp_path)), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_else_is_left_alone(config: Config, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        train_and_evaluate(config, tmp_path)
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_a_batch_may_be_larger_than_the_dataset(config: Config, tmp_path: Path) -> None:
    result = train_and_evaluate(replace(config, batch_size=10**12, num_epochs=1), tmp_path)
    assert (result.state.step, result.train.count, result.test.count) == (1, 4000, 1000)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("install .[tensorboard]"), 2, "install .[tensorboard]"),
        (RunError("the data is gone"), 1, "error: the data is gone"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (jax.errors.JaxRuntimeError("out of memory\nby ..."), 1, "error: not enough memory"),
        (MemoryError("Unable to allocate 9 GiB"), 1, "error: not enough memory"),
        (Interrupted("interrupted; to go on"), 75, "interrupted; to go on"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_messages_and_exit_codes(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(train, "train_and_evaluate", fail)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    try:
        returned = train.run(Config(), Launch())
    except SystemExit as exit_:
        returned = exit_.code
    assert returned == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_named(platform: str, config: Config) -> None:
    flags = ["--dataset", "mnist_sample", "--data-dir", config.data_dir]
    process = subprocess.run(
        [sys.executable, "-m", "mnist_jax.train", *flags],
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert f"error: JAX finds no device (JAX_PLATFORMS is {platform})" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("bug", [ZeroDivisionError(), jax.errors.JaxRuntimeError("INTERNAL")])
def test_bugs_keep_their_tracebacks(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise bug

    monkeypatch.setattr(train, "train_and_evaluate", fail)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    with pytest.raises(type(bug)):
        train.run(Config(), Launch())


@pytest.mark.slow
def test_the_lesson_on_full_mnist(mnist_dir: Path, tmp_path: Path) -> None:
    config = Config(data_dir=str(mnist_dir))
    results = [
        train_and_evaluate(replace(config, seed=seed), tmp_path / f"{seed}") for seed in range(2)
    ]
    test = [result.test.accuracy for result in results]
    running = [result.history[-1]["running_train_accuracy"] for result in results]
    assert np.mean(test) >= 0.978
    assert min(test) >= 0.974
    assert min(running) >= 0.986
    assert max(running) <= 0.991


@pytest.mark.slow
@pytest.mark.usefixtures("standard_dtypes")  # the schedule
def test_the_fast_preset_on_full_mnist(mnist_dir: Path, tmp_path: Path) -> None:
    """Its header names a mean of 98.26 % over ten seeds, and a deviation of 0.06."""
    config = replace(load_config(FAST), data_dir=str(mnist_dir))
    result = train_and_evaluate(config, tmp_path / "run")
    assert len(result.history) == 2
    assert result.test.accuracy == pytest.approx(0.9826, abs=0.002)


@pytest.mark.slow
def test_answers_and_starts_quickly(config: Config, tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    flags = ["--dataset", "mnist_sample", "--data-dir", config.data_dir, "--num-epochs", "1"]
    for args, seconds in [(["--help"], 1.2), (flags, None), (flags, 3.5)]:
        started = time.perf_counter()
        workdir = ["--workdir", str(tmp_path / f"{started}")]
        command = [sys.executable, "-m", "mnist_jax.train", *args, *workdir]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        assert seconds is None or time.perf_counter() - started < seconds
