"""`python -m mnist_jax` and its commands: seeds, check."""

import dataclasses
import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.command_line import parse_args
from mnist_jax.commands import check, seeds
from mnist_jax.commands.options import CheckOptions, SeedsOptions
from mnist_jax.config import Config
from mnist_jax.errors import ConfigError, RunError
from mnist_jax.input_pipeline import Dataset, load_dataset
from mnist_jax.metrics import Summary
from mnist_jax.runtime import console, describe_devices
from mnist_jax.sharding import make_mesh
from mnist_jax.steps import Examples, TrainState, init_state
from mnist_jax.task import Task, make_task, new_metrics, set_up
from mnist_jax.train import train_and_evaluate, train_epoch
from tests.small import assert_first_step_alike


@pytest.fixture
def config(sample_dir: Path) -> Config:
    return Config(dataset="mnist_sample", data_dir=str(sample_dir))


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--help"], 0), (["sing"], 2)])
def test_the_commands_are_listed(words: list[str], code: int) -> None:
    command = [sys.executable, "-m", "mnist_jax", *words]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == code
    for name in ("train", "evaluate", "predict", "export", "demo", "seeds", "check"):
        assert f"  {name} " in process.stdout
    assert ("sing is no command" in process.stderr) == (code == 2)


@pytest.mark.parametrize("command", ["seeds", "check"])
def test_a_command_explains_its_flags(command: str) -> None:
    words = [sys.executable, "-m", "mnist_jax", command, "--help"]
    process = subprocess.run(words, capture_output=True, text=True)
    assert process.returncode == 0
    assert "Fail rather than run on another platform" in " ".join(process.stdout.split())


def test_a_command_has_its_flags() -> None:
    command = [sys.executable, "-m", "mnist_jax", "seeds", "--num-seeds", "1"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 2
    assert "num_seeds is 1; it must be at least 2" in " ".join(process.stderr.split())


def test_seeds_begin_as_single_runs_do(config: Config) -> None:
    """One step: the devices' and the compiler's other order of adding up leaves 1e-6."""
    examples = load_dataset(config).examples
    first = Examples(*(x[:128] for x in examples))
    dataset = Dataset("first", first, {"train": range(128), "test": range(128)})
    config = dataclasses.replace(config, num_epochs=1)
    states = seeds.train_seeds(make_task(config, dataset, make_mesh()), [3, 4])
    for i, seed in enumerate((3, 4)):
        task, state = set_up(dataclasses.replace(config, seed=seed), dataset, make_mesh())
        ((state, _, _),) = train_epoch(task, state, new_metrics(task), epoch=1)
        stacked = jax.tree.map(operator.itemgetter(i), states)
        assert state.step == stacked.step == 1
        # After one step RMSprop's running square is 0.1 g^2.
        gradients = (
            jax.tree.map(lambda v: np.sqrt(10 * v), s.opt_state[0].nu) for s in (state, stacked)
        )
        trees = (*gradients, state.params, stacked.params)
        for g, other_g, w, other_w in zip(*map(jax.tree.leaves, trees), strict=True):
            assert_first_step_alike((g, other_g), (np.asarray(w), np.asarray(other_w)))


@pytest.mark.slow
def test_seeds_end_as_single_runs_do(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(config, seed=5, num_epochs=2)
    options = SeedsOptions(num_seeds=2, out=tmp_path / "seeds.json")
    seeds.compare_seeds(config, options)
    table = capsys.readouterr().out
    report = json.loads(options.out.read_text())
    assert [row["seed"] for row in report["seeds"]] == [5, 6]
    for row in report["seeds"]:
        single = train_and_evaluate(
            dataclasses.replace(config, seed=row["seed"]), tmp_path / str(row["seed"])
        )
        assert row["test"]["count"] == 1000
        # Rounding moves some of 1,000 images over the border.
        assert abs(row["test"]["accuracy"] - single.test.accuracy) <= 0.01
        assert abs(row["train"]["accuracy"] - single.train.accuracy) <= 0.01
        assert f"{100 * row['test']['accuracy']:.2f}" in table


@pytest.mark.slow
def test_a_seed_that_diverges_is_named_and_left_out(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(task: Task, numbers: range) -> TrainState:
        """The first states, one of them with parameters that are not numbers."""
        keys = jnp.stack([jax.random.key(number) for number in numbers])
        init = jax.vmap(lambda key: init_state(key, 784, model=task.model, tx=task.tx))
        return jax.tree.map(
            lambda x: x.at[1].set(np.nan) if x.dtype == jnp.float32 else x, init(keys)
        )

    monkeypatch.setattr(seeds, "train_seeds", spoil)
    options = SeedsOptions(num_seeds=3, out=tmp_path / "seeds.json")
    with pytest.raises(RunError, match="1 of 3 seeds end with a loss that is not finite: 1"):
        seeds.compare_seeds(dataclasses.replace(config, num_epochs=1), options)
    report = json.loads(options.out.read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert ([row["seed"] for row in report["seeds"]], report["diverged"]) == ([0, 2], [1])
    accuracies = [row["test"]["accuracy"] for row in report["seeds"]]
    assert report["test_accuracy"]["mean"] == pytest.approx(np.mean(accuracies))


@pytest.mark.parametrize(
    ("out", "message"), [("", "is no file; name one"), ("none/out.json", "No such file")]
)
def test_seeds_that_could_not_be_written_are_not_trained(
    out: str, message: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds, "load_dataset", pytest.fail)
    with pytest.raises(RunError, match=message):
        seeds.compare_seeds(config, SeedsOptions(out=tmp_path / out))


def test_a_seed_that_is_left_alone_is_told_all_the_same(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [seeds.Outcome(0, Summary(0.1, 0.9, 9, 10), Summary(0.2, 0.8, 8, 10))]
    monkeypatch.setattr(seeds, "train_seeds", Mock())
    monkeypatch.setattr(seeds, "evaluate_seeds", lambda *_: one)
    options = SeedsOptions(num_seeds=2, out=tmp_path / "seeds.json")
    with pytest.raises(RunError, match="1 of 2 seeds"):
        seeds.compare_seeds(config, options)
    report = json.loads(options.out.read_text())
    assert [row["test"]["accuracy"] for row in report["seeds"]] == [0.8]
    assert report["test_accuracy"] is None


@pytest.mark.slow
def test_seeds_are_compared_on_the_validation_split_where_there_is_one(
    config: Config, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, validation_size=500, num_epochs=1)
    seeds.compare_seeds(config, SeedsOptions(num_seeds=2, out=tmp_path / "seeds.json"))
    report = json.loads((tmp_path / "seeds.json").read_text())
    assert {row["validation"]["count"] for row in report["seeds"]} == {500}
    assert "validation_accuracy" in report
    assert "test" not in report["seeds"][0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 2**32 - 1}, "the last seed would be 4294967296"),
        ({"keep": 1}, "keep is set, but has no effect on many seeds"),
    ],
)
def test_seeds_that_are_not_and_settings_without_effect_are_refused(
    settings: dict[str, Any], message: str, config: Config
) -> None:
    with pytest.raises(ConfigError, match=message):
        seeds.compare_seeds(dataclasses.replace(config, **settings), SeedsOptions(num_seeds=2))


def test_the_spread_is_that_of_the_textbook() -> None:
    """Student's t for 3 degrees of freedom: 3.182."""
    described = seeds.describe([0.97, 0.98, 0.98, 0.99])
    deviation = np.sqrt(2e-4 / 3)
    assert described["mean"] == pytest.approx(0.98)
    assert described["standard_deviation"] == pytest.approx(deviation)
    half = 3.182 * deviation / 2
    assert described["interval_95"] == pytest.approx([0.98 - half, 0.98 + half], abs=1e-5)
    assert (described["best"], described["worst"]) == (0.99, 0.97)


@pytest.fixture
def call_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(console, "stderr", False)

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")

    def call(*flags: str) -> tuple[int, dict[str, Any]]:
        config, options = parse_args(flags, CheckOptions, "check")
        code = check.check(config, options.require_platform)
        return code, json.loads(capsys.readouterr().out)

    return call


def test_check_knows_the_numbers(sample_dir: Path, call_check: Any) -> None:
    code, report = call_check("--dataset", "mnist_sample", "--data-dir", str(sample_dir))
    assert (code, report["ok"], report["reasons"]) == (0, True, [])
    assert report["dataset"] == "mnist_sample"
    # Before the first step the loss is near that of guessing.
    assert report["losses"][0] == pytest.approx(np.log(10), rel=0.1)


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--learning-rate", "0.01", "the loss of step 2 is"),
        ("--batch-size", "4000", "steps taken: 1; compared are the first 10"),
        ("--require-platform", "gpu", "gpu is required, and jax runs on"),
    ],
)
def test_check_says_what_is_wrong(
    flag: str, value: str, reason: str, sample_dir: Path, call_check: Any
) -> None:
    sample = ["--dataset", "mnist_sample", "--data-dir", str(sample_dir), "--num-epochs", "1"]
    code, report = call_check(*sample, flag, value)
    assert (code, report["ok"]) == (1, False)
    assert report["reasons"][0].startswith(reason)


def test_check_tells_of_what_ends_it(call_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, reason in [
        (
            FloatingPointError("the loss is not finite at step 3"),
            "the loss is not finite at step 3",
        ),
        (AttributeError("jax has no attribute x"), "AttributeError: jax has no attribute x"),
    ]:
        monkeypatch.setattr(check, "measure", Mock(side_effect=error))
        code, report = call_check()
        assert (code, report["ok"], report["reasons"]) == (1, False, [reason])


def test_check_wants_the_data_that_it_was_asked_for(tmp_path: Path, call_check: Any) -> None:
    code, report = call_check("--data-dir", str(tmp_path))
    assert (code, report["ok"]) == (1, False)
    assert report["reasons"][0].startswith("mnist cannot be had")
    code, report = call_check("--dataset", "fashion_mnist")
    assert (code, report["reasons"]) == (
        1,
        ["nothing is known of fashion_mnist: take mnist or mnist_sample"],
    )


@pytest.mark.parametrize(("chosen", "said"), [(None, True), ("", True), ("cpu", False)])
def test_an_accelerator_that_jax_leaves_unused_is_told(
    chosen: str | None, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the CPU was asked for."""
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/nvidia0"] * ("nvidia" in pattern))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("JAX_PLATFORMS", chosen)
    told = "fallen back to the CPU, /dev/nvidia0 is not used" in describe_devices()
    assert told == (said and jax.default_backend() == "cpu")


@pytest.mark.slow
def test_check_and_seeds_on_full_mnist(mnist_dir: Path, tmp_path: Path, call_check: Any) -> None:
    flags = ["--data-dir", str(mnist_dir)]
    code, single_run = call_check(*flags)
    assert code == 0
    code, report = call_check(*flags, "--learning-rate", "0.01")
    assert code == 1
    assert any("test accuracy" in reason for reason in report["reasons"])
    words = [*flags, "--num-seeds", "5", "--out", str(tmp_path / "seeds.json")]
    seeds.compare_seeds(*parse_args(words, SeedsOptions))
    found = json.loads((tmp_path / "seeds.json").read_text())
    assert found["test_accuracy"]["mean"] == pytest.approx(0.980, abs=0.001)
    assert found["test_accuracy"]["standard_deviation"] < 0.002
    of_seed_0 = found["seeds"][0]["test"]["accuracy"]
    assert of_seed_0 == pytest.approx(single_run["test_accuracy"], abs=3e-3)
