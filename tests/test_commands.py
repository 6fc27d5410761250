"""`python -m mnist_jax`, and its commands seeds and check. The others have their own files."""

import importlib
import json
import operator
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from mnist_jax.__main__ import COMMANDS
from mnist_jax.commands import check, seeds
from mnist_jax.config import Config
from mnist_jax.data.pipeline import Dataset, Examples, load_dataset
from mnist_jax.runtime.devices import make_mesh
from mnist_jax.runtime.errors import RunError
from mnist_jax.runtime.program import console
from mnist_jax.steps import TrainState
from mnist_jax.train import Setup, init_train_state, set_up, train_and_evaluate, train_epoch
from tests.helpers import assert_first_step_alike, call

pytestmark = pytest.mark.usefixtures("tests_cache")
PROGRAM = [sys.executable, "-m", "mnist_jax"]


@pytest.fixture
def config(sample_dir: Path) -> Config:
    return Config(dataset="mnist_sample", data_dir=str(sample_dir))


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--help"], 0), (["sing"], 2)])
def test_the_commands_are_listed(words: list[str], code: int) -> None:
    process = subprocess.run([*PROGRAM, *words], capture_output=True, text=True)
    assert process.returncode == code
    for name in ("train", "evaluate", "predict", "export", "demo", "seeds", "check"):
        assert f"  {name} " in process.stdout
    assert process.stderr == ("\nunknown command: sing\n" if code else "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself_and_its_flags(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = importlib.import_module(COMMANDS[name][0])
    assert call(command, "--help") == 0
    text = capsys.readouterr().out
    assert command.Options.__doc__.splitlines()[0] in text
    for field in fields(command.Options):
        if field.name not in ("config", "preset", "images"):  # not flags of this name
            assert f"--{field.name.replace('_', '-')}" in text


@pytest.mark.parametrize("words", [["mnist_jax", "check"], ["mnist_jax.train"]])
def test_ctrl_c_during_start_up_is_silent(words: list[str]) -> None:
    """The list of imports on stderr tells when numpy is loaded, and jax is about to be."""
    command = [sys.executable, "-X", "importtime", "-m", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if re.search(r"\| +numpy$", line):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in rest


@pytest.mark.parametrize("words", [["--help"], ["check", "--help"]])
def test_a_reader_that_closes_the_pipe_gets_no_traceback(words: list[str]) -> None:
    """As `| head -1` does."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run([*PROGRAM, *words], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert process.returncode in (-signal.SIGPIPE, 128 + signal.SIGPIPE)
    assert process.stderr == b""


def test_seeds_start_like_single_runs(config: Config) -> None:
    """Under vmap, XLA adds numbers in another order: after one step, rounding gives 1e-6."""
    examples = load_dataset(config).examples
    first = Examples(*(array[:128] for array in examples))
    dataset = Dataset("first", first, {"train": range(128), "test": range(128)})
    config = replace(config, num_epochs=1, hidden_sizes=(64,))
    states = seeds.train_seeds(set_up(config, dataset, make_mesh()), [3, 4])
    for i, seed in enumerate((3, 4)):
        setup = set_up(replace(config, seed=seed), dataset, make_mesh())
        ((single, _),) = train_epoch(setup, init_train_state(setup), 1)
        stacked = jax.tree.map(operator.itemgetter(i), states)
        assert single.step == stacked.step == 1
        # After one step, RMSprop's running square is 0.1 g^2.
        squares = jax.tree.leaves(single.opt_state[0].nu), jax.tree.leaves(stacked.opt_state[0].nu)
        params = jax.tree.leaves(single.params), jax.tree.leaves(stacked.params)
        for v, other_v, w, other_w in zip(*squares, *params, strict=True):
            gradients = np.sqrt(10 * v), np.sqrt(10 * other_v)
            assert_first_step_alike(gradients, (np.asarray(w), np.asarray(other_w)))


def read_strict_json(path: Path) -> dict[str, Any]:
    """A JSON file, in which NaN is an error."""
    return json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_seeds_end_like_single_runs(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, seed=5, num_epochs=2)
    seeds.main(seeds.Options(config, num_seeds=2, out=tmp_path / "seeds.json"))
    results, table = read_strict_json(tmp_path / "seeds.json"), capsys.readouterr().out
    assert [row["seed"] for row in results["seeds"]] == [5, 6]
    for row in results["seeds"]:
        seed = row["seed"]
        single = train_and_evaluate(replace(config, seed=seed), tmp_path / str(seed))
        assert row["test"]["count"] == 1000
        # Rounding changes the class of some of the 1,000 images.
        assert abs(row["test"]["accuracy"] - single.test.accuracy) <= 0.01
        assert abs(row["train"]["accuracy"] - single.train.accuracy) <= 0.01
        assert f"{100 * row['test']['accuracy']:.2f}" in table


def test_a_seed_whose_loss_is_not_finite_is_named_and_left_out(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(setup: Setup, numbers: Sequence[int]) -> TrainState:
        """Two initial states; the second one has parameters that are not numbers."""
        state = init_train_state(setup)
        params = jax.tree.map(lambda array: np.stack([array, np.nan * array]), state.params)
        return state._replace(params=params)

    monkeypatch.setattr(seeds, "train_seeds", spoil)
    config = replace(config, num_epochs=1, validation_size=500, hidden_sizes=(16,))
    out = tmp_path / "seeds.json"
    with pytest.raises(RunError, match="the loss of 1 of 2 seeds is not finite: 1"):
        seeds.main(seeds.Options(config, num_seeds=2, out=out))
    results = read_strict_json(out)
    assert results["diverged"] == [1]
    # Where there is a validation split, seeds are compared on it, and not on the test set.
    (row,) = results["seeds"]
    assert row.keys() == {"seed", "train", "validation"}
    assert (row["seed"], row["validation"]["count"]) == (0, 500)
    assert results["validation_accuracy"] is None  # one number has no spread


def test_an_output_that_cannot_be_written_is_named_before_training(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path / "no data"), require_full_data=True)
    with pytest.raises(RunError, match=f"{tmp_path} is not a regular file"):
        seeds.main(seeds.Options(config, out=tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_statistics_are_those_of_the_textbook() -> None:
    """Student's t for 3 degrees of freedom is 3.182."""
    statistics = seeds.compute_statistics([0.97, 0.98, 0.98, 0.99])
    deviation = np.sqrt(2e-4 / 3)
    assert statistics["mean"] == pytest.approx(0.98)
    assert statistics["standard_deviation"] == pytest.approx(deviation)
    half = 3.182 * deviation / 2
    assert statistics["interval_95"] == pytest.approx([0.98 - half, 0.98 + half], abs=1e-5)
    assert (statistics["best"], statistics["worst"]) == (0.99, 0.97)
    assert seeds.compute_statistics([0.98]) is None


@pytest.fixture
def call_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `check` with flags. Returns the exit code and the object on stdout."""
    monkeypatch.setattr(console, "stderr", False)  # check sets it to True

    def run(*flags: object) -> tuple[int, dict[str, Any]]:
        return call(check, *flags), json.loads(capsys.readouterr().out)

    return run


def test_check_confirms_the_known_numbers(sample_dir: Path, call_check: Any) -> None:
    code, report = call_check("--dataset", "mnist_sample", "--data-dir", sample_dir)
    assert (code, report["ok"], report["reasons"]) == (0, True, [])
    assert report["dataset"] == "mnist_sample"
    # The first loss is about that of a guess.
    assert report["losses"][0] == pytest.approx(np.log(10), rel=0.1)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--learning-rate", "0.01"], "the loss of step 2 is"),
        (["--batch-size", "4000"], "only 1 steps were run; 10 are compared"),
        (["--require-platform", "tpu"], "tpu is required, but JAX runs on"),
        (["--dataset", "fashion_mnist"], "no numbers are known for fashion_mnist"),
        (["--dataset", "mnist"], "mnist cannot be loaded"),  # does not fall back on the sample
    ],
    ids=str,
)
def test_check_says_what_is_wrong(
    flags: list[str], reason: str, sample_dir: Path, call_check: Any
) -> None:
    sample = ["--dataset", "mnist_sample", "--data-dir", sample_dir, "--num-epochs", "1"]
    code, report = call_check(*sample, *flags)
    assert (code, report["ok"]) == (1, False)
    assert report["reasons"][0].startswith(reason)


def test_check_reports_any_error_of_a_new_version_of_jax(
    call_check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", Mock(side_effect=AttributeError("it has gone")))
    code, report = call_check()
    assert (code, report["ok"]) == (1, False)
    assert "it has gone" in report["reasons"][0]


@pytest.mark.slow
def test_check_and_seeds_on_full_mnist(mnist_dir: Path, tmp_path: Path, call_check: Any) -> None:
    code, single = call_check("--data-dir", mnist_dir)
    assert code == 0
    code, report = call_check("--data-dir", mnist_dir, "--learning-rate", "0.01")
    assert code == 1
    assert any("test accuracy" in reason for reason in report["reasons"])
    out = tmp_path / "seeds.json"
    seeds.main(seeds.Options(Config(data_dir=str(mnist_dir)), num_seeds=5, out=out))
    results = read_strict_json(out)
    assert results["test_accuracy"]["mean"] == pytest.approx(0.980, abs=0.001)
    assert results["test_accuracy"]["standard_deviation"] < 0.002
    first = results["seeds"][0]["test"]["accuracy"]
    assert first == pytest.approx(single["test_accuracy"], abs=3e-3)
