"""Runs that are stopped and go on: the same bits as if they had never stopped."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import pytest

from mnist_jax import input_pipeline, train
from mnist_jax.config import Config, load_config
from mnist_jax.errors import ConfigError, Interrupted, RunError
from mnist_jax.train import Result, train_and_evaluate

CHUNK = 10  # four chunks an epoch of 32 steps, the last of 2


@pytest.fixture(scope="module")
def config(sample_dir: Path) -> Config:
    return Config(
        dataset="mnist_sample", data_dir=str(sample_dir), num_epochs=2, steps_per_chunk=CHUNK
    )


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run that nothing stops."""
    return train_and_evaluate(config, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def after_chunk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """`after_chunk(n, act)` calls `act` once, when the n-th chunk from now has run."""
    train_steps = train.train_steps

    def arrange(n: int, act: Callable[[], Any]) -> None:
        count = 0

        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            result = train_steps(*args, **kwargs)
            count += 1
            if count == n:
                act()
            return result

        monkeypatch.setattr(train, "train_steps", counting)

    return arrange


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def interrupt(after_chunk: Any) -> Callable[[Config, Path, int], None]:
    """`interrupt(config, workdir, n)` runs, with a SIGTERM in the n-th chunk."""

    def run(config: Config, workdir: Path, n: int) -> None:
        after_chunk(n, terminate)
        with pytest.raises(Interrupted):
            train_and_evaluate(config, workdir)

    return run


def crash() -> None:
    raise ZeroDivisionError


def read_history(workdir: Path) -> list[dict[str, Any]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def newest(workdir: Path) -> int:
    return max((int(path.name) for path in (workdir / "checkpoints").iterdir()), default=0)


def status(workdir: Path) -> str:
    return json.loads((workdir / "run.json").read_text())["status"]


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(result: Result, whole: Result) -> None:
    chex.assert_trees_all_equal(result.state, whole.state)
    assert (result.train, result.test) == (whole.train, whole.test)
    assert read_history(result.workdir) == read_history(whole.workdir)
    for name in ("run.json", "result.json"):
        assert (result.workdir / name).read_text() == (whole.workdir / name).read_text()
    names = [sorted(path.name for path in run.workdir.iterdir()) for run in (result, whole)]
    assert names[0] == names[1]


@pytest.mark.parametrize(("chunks", "step"), [(1, 10), (3, 30), (4, 32), (7, 62)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_chunk_and_loses_nothing(
    chunks: int,
    step: int,
    number: int,
    config: Config,
    whole: Result,
    after_chunk: Any,
    tmp_path: Path,
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    after_chunk(chunks, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=f"--workdir {tmp_path}"):
        train_and_evaluate(config, tmp_path)
    assert newest(tmp_path) == step
    assert status(tmp_path) == "interrupted"
    assert not (tmp_path / "result.json").exists()
    assert_same_run(train_and_evaluate(config, tmp_path), whole)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_in_the_last_chunk_lets_the_run_finish(
    config: Config, whole: Result, after_chunk: Any, tmp_path: Path
) -> None:
    after_chunk(8, terminate)
    assert_same_run(train_and_evaluate(config, tmp_path), whole)


def test_a_second_signal_stops_at_once_and_leaves_a_readable_run(
    config: Config, whole: Result, after_chunk: Any, tmp_path: Path
) -> None:
    def twice() -> None:
        terminate()
        terminate()  # a scheduler may repeat it
        os.kill(os.getpid(), signal.SIGINT)

    after_chunk(6, twice)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path)
    assert (newest(tmp_path), status(tmp_path)) == (32, "interrupted")
    assert_same_run(train_and_evaluate(config, tmp_path), whole)


@pytest.mark.parametrize(
    ("every", "chunks", "step"),
    [(0, 1, 0), (0, 7, 32), (1, 3, 20), (1, 7, 52), (15, 3, 20), (15, 8, 52)],
)
def test_a_crash_loses_only_what_is_after_the_newest_checkpoint(
    every: int,
    chunks: int,
    step: int,
    config: Config,
    whole: Result,
    after_chunk: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = replace(config, checkpoint_every_steps=every)
    after_chunk(chunks, crash)
    with pytest.raises(ZeroDivisionError):
        train_and_evaluate(config, tmp_path)
    assert (newest(tmp_path), status(tmp_path)) == (step, "failed")
    assert_same_run(train_and_evaluate(config, tmp_path), whole)
    said = f"Continuing {tmp_path} after step {step}\n"
    if not step:
        said = f"{tmp_path} has no checkpoint: beginning anew\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("name", ["load_dataset", "train_steps", "evaluate_split", "stop_if"])
def test_a_folder_moved_during_the_run_stops_it(
    name: str, config: Config, whole: Result, after_chunk: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """While the data loads, in a chunk, before an evaluation, or after a signal."""
    here = tmp_path / "run"
    here.mkdir()

    def move() -> None:
        if here.exists() and not (tmp_path / "moved").exists():
            while list(here.glob("checkpoints/*tmp*")):  # a save in flight would fail, and say so
                time.sleep(0.01)
            here.rename(tmp_path / "moved")
            (here / "checkpoints").mkdir(parents=True)  # Orbax does, if it is about to write

    if name == "train_steps":
        after_chunk(6, move)
    else:
        function = getattr(train, name)

        def moving(*args: Any, **kwargs: Any) -> Any:
            if name != "stop_if" or args[0].received:
                move()
            return function(*args, **kwargs)

        monkeypatch.setattr(train, name, moving)
        after_chunk(6, terminate)
    with pytest.raises(RunError, match=f"{here} was moved or removed during the run"):
        train_and_evaluate(config, here)
    assert os.listdir(here) == ["checkpoints"]  # it is not ours any more
    assert not os.listdir(here / "checkpoints")
    monkeypatch.undo()
    assert_same_run(train_and_evaluate(config, tmp_path / "moved"), whole)


def test_a_finished_run_says_so_and_shows_its_result(
    config: Config,
    whole: Result,
    tmp_path: Path,
    after_chunk: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_and_evaluate(config, tmp_path)
    before = snapshot(tmp_path)
    after_chunk(1, crash)
    capsys.readouterr()
    assert_same_run(train_and_evaluate(config, tmp_path), whole)
    text = capsys.readouterr().out
    assert f"{tmp_path} is finished" in text
    assert f"Test accuracy: {100 * whole.test.accuracy:.2f} %" in text
    assert snapshot(tmp_path) == before


def test_more_epochs_continue_a_run(config: Config, tmp_path: Path) -> None:
    train_and_evaluate(replace(config, num_epochs=1), tmp_path / "grown")
    grown = train_and_evaluate(replace(config, num_epochs=3), tmp_path / "grown")
    assert_same_run(grown, train_and_evaluate(replace(config, num_epochs=3), tmp_path / "whole"))
    assert load_config(tmp_path / "grown" / "config.json").num_epochs == 3


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({}, {"seed": 1, "batch_size": 64}, "seed is 0 there and 1 here"),
        ({}, {"seed": 1, "batch_size": 64}, "batch_size is 128 there and 64 here"),
        ({}, {"num_epochs": 1}, "num_epochs is 2 there and 1 here"),
        ({"schedule": "linear"}, {"num_epochs": 3}, "num_epochs is 2 there and 3 here"),
        ({}, {"schedule": "linear"}, "schedule is 'constant' there and 'linear' here"),
    ],
)
def test_another_config_is_refused_field_by_field(
    first: dict[str, Any],
    then: dict[str, Any],
    message: str,
    config: Config,
    interrupt: Any,
    tmp_path: Path,
) -> None:
    interrupt(replace(config, **first), tmp_path, 5)
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=message):
        train_and_evaluate(replace(config, **{**first, **then}), tmp_path)
    assert snapshot(tmp_path) == before


def test_settings_that_change_no_number_may_differ(
    config: Config, whole: Result, interrupt: Any, tmp_path: Path
) -> None:
    interrupt(config, tmp_path, 5)
    other = replace(config, steps_per_chunk=7, keep=1, checkpoint_every_steps=5, tensorboard=True)
    result = train_and_evaluate(other, tmp_path)
    chex.assert_trees_all_equal(result.state, whole.state)
    assert read_history(tmp_path) == read_history(whole.workdir)
    assert os.listdir(tmp_path / "checkpoints") == ["64"]


def test_a_config_changed_behind_the_checkpoints_is_refused(
    config: Config, interrupt: Any, tmp_path: Path
) -> None:
    interrupt(config, tmp_path, 5)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match="seed is 0 there and 1 here"):
        train_and_evaluate(load_config(path), tmp_path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("chunks", [5, 8])
def test_epochs_taken_out_of_the_config_are_refused(
    chunks: int, config: Config, interrupt: Any, tmp_path: Path
) -> None:
    """In the middle of the second epoch or, by a signal too late for that, after it."""
    config = replace(config, checkpoint_every_steps=20)
    if chunks < 8:
        interrupt(config, tmp_path, chunks)
    else:
        train_and_evaluate(config, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"num_epochs": 2', '"num_epochs": 1'))
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match=f"{tmp_path} is in epoch 2 already"):
        train_and_evaluate(replace(load_config(path), keep=1), tmp_path)
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_a_run_that_fell_back_on_the_sample_goes_on_with_it(
    config: Config, interrupt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though mnist can be had by now: made up here, of the sample's images upside down."""
    config = replace(config, dataset="mnist")
    whole = train_and_evaluate(config, tmp_path / "whole")
    interrupt(config, tmp_path / "run", 5)
    load_arrays = input_pipeline.load_arrays

    def with_mnist(name: str, config: Config) -> Any:
        arrays = load_arrays("mnist_sample", config)
        if name == "mnist":
            return arrays._replace(train_images=arrays.train_images[:, ::-1])
        return arrays

    monkeypatch.setattr(input_pipeline, "load_arrays", with_mnist)
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match="is on mnist_sample, not on the full data"):
        train_and_evaluate(replace(config, require_full_data=True), tmp_path / "run")
    (tmp_path / "run" / "run.json").rename(tmp_path / "away")
    with pytest.raises(RunError, match="dataset is 'mnist_sample' there and 'mnist' here"):
        train_and_evaluate(config, tmp_path / "run")
    (tmp_path / "away").rename(tmp_path / "run" / "run.json")
    assert snapshot(tmp_path) == before
    assert_same_run(train_and_evaluate(config, tmp_path / "run"), whole)


@pytest.mark.parametrize("text", ["", '{"epoch": 1, "ste', "\x00" * 50, None])
def test_metrics_cut_off_or_flipped_are_written_anew(
    text: str | None, config: Config, whole: Result, interrupt: Any, tmp_path: Path
) -> None:
    interrupt(config, tmp_path, 6)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace("1", "7") if text is None else text)
    assert_same_run(train_and_evaluate(config, tmp_path), whole)


@pytest.mark.parametrize("end", [None, crash, terminate])
@pytest.mark.parametrize("chunks", [2, 6])
def test_lost_checkpoints_are_no_reason_to_begin_anew(
    chunks: int, end: Any, config: Config, after_chunk: Any, tmp_path: Path
) -> None:
    """However the run ended: at its end, or in its first or second epoch."""
    config = replace(config, checkpoint_every_steps=CHUNK)
    if end:
        after_chunk(chunks, end)
    with pytest.raises((Interrupted, ZeroDivisionError)) if end else contextlib.nullcontext():
        train_and_evaluate(config, tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        shutil.rmtree(path)
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match=f"{tmp_path} has lost its checkpoints"):
        train_and_evaluate(config, tmp_path)
    assert snapshot(tmp_path) == before


def test_lost_checkpoints_are_named_where_older_ones_are_left(
    config: Config, whole: Result, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = replace(config, num_epochs=4)
    train_and_evaluate(longer, tmp_path)
    for step in (96, 128):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    expected = (tmp_path / "result.json").read_text()
    train_and_evaluate(longer, tmp_path)
    assert f"{tmp_path} has lost its checkpoints after epoch 2" in caplog.text
    assert (tmp_path / "result.json").read_text() == expected


def test_the_folder_to_go_on_with_can_be_pasted_into_a_shell(
    config: Config, after_chunk: Any, tmp_path: Path
) -> None:
    after_chunk(2, terminate)
    with pytest.raises(Interrupted) as caught:
        train_and_evaluate(config, tmp_path / "it's my run")
    assert shlex.split(str(caught.value))[-2:] == ["--workdir", f"{tmp_path}/it's my run"]


def test_other_examples_of_the_same_name_are_refused(
    config: Config, interrupt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(config, tmp_path, 5)
    dataset = train.load_dataset(config)
    images = dataset.examples.images.copy()
    images[17, 300] += 0.5
    other = dataset._replace(examples=dataset.examples._replace(images=images))
    monkeypatch.setattr(train, "load_dataset", lambda _: other)
    with pytest.raises(RunError, match="crc32_of_examples is"):
        train_and_evaluate(config, tmp_path)


def test_a_refused_attempt_does_not_claim_an_empty_folder(
    config: Config, whole: Result, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        train_and_evaluate(replace(config, warmup_steps=1000), tmp_path)
    assert not list(tmp_path.iterdir())
    assert_same_run(train_and_evaluate(config, tmp_path), whole)


def test_a_strangers_incomplete_file_is_left_alone(config: Config, tmp_path: Path) -> None:
    (tmp_path / "film.mkv.incomplete").write_text("...")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        train_and_evaluate(config, tmp_path)
    assert os.listdir(tmp_path) == ["film.mkv.incomplete"]


def test_a_folder_has_one_run_at_a_time(config: Config, after_chunk: Any, tmp_path: Path) -> None:
    refused = []

    def second() -> None:
        with pytest.raises(RunError, match=f"another process trains in {tmp_path}"):
            train_and_evaluate(config, tmp_path)
        refused.append(True)

    after_chunk(2, second)
    train_and_evaluate(config, tmp_path)
    assert refused
    train_and_evaluate(config, tmp_path)  # the lock is gone


def test_a_file_system_that_cannot_lock_gets_a_warning(
    config: Config,
    whole: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    assert_same_run(train_and_evaluate(config, tmp_path), whole)
    assert f"{tmp_path} cannot be locked" in caplog.text


def test_a_run_can_be_in_any_thread(config: Config, whole: Result, tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(train_and_evaluate(config, tmp_path)))
    thread.start()
    thread.join()
    assert_same_run(results[0], whole)


def test_a_run_may_be_killed_at_each_of_its_first_writes(
    config: Config, whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = Path.replace, 0

    def replace_some(self: Path, target: Path) -> Path:
        nonlocal left
        if self.suffix == ".incomplete":
            if not left:
                raise OSError("killed")
            left -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_some)
    for survived in range(3):
        left = survived
        with pytest.raises(RunError, match="cannot be written"):
            train_and_evaluate(config, tmp_path)
        assert len([*tmp_path.glob("*.json"), *tmp_path.glob("*.jsonl")]) == survived
    monkeypatch.undo()
    assert_same_run(train_and_evaluate(config, tmp_path), whole)


def test_what_a_killed_process_left_half_written_is_removed(
    config: Config, whole: Result, tmp_path: Path
) -> None:
    (tmp_path / "config.json.incomplete").write_text("{")
    assert_same_run(train_and_evaluate(config, tmp_path), whole)
