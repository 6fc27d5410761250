"""Config, its validation, its files and its command line."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mnist_jax.command_line import Launch, parse_args
from mnist_jax.config import Config, format_config, load_config
from mnist_jax.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"


def test_defaults_are_the_lesson() -> None:
    config = Config()
    lesson = (config.dataset, config.hidden_sizes, config.batch_size, config.num_epochs)
    assert lesson == ("mnist", (512,), 128, 5)
    rule = (config.optimizer, config.learning_rate, config.decay, config.eps, config.eps_in_sqrt)
    assert rule == ("rmsprop", 1e-3, 0.9, 1e-7, False)
    assert (config.schedule, config.warmup_steps, config.momentum) == ("constant", 0, 0.0)


def test_is_a_value() -> None:
    assert {Config(seed=1): "one"}[Config(seed=1)] == "one"
    assert Config(seed=1) != Config(seed=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "batch_size is 0; it must be at least 1 and finite"),
        ("batch_size", 12.5, "batch_size is 12.5; it must be of type int"),
        ("batch_size", True, "batch_size is True; it must be of type int"),
        ("batch_size", "128", "batch_size is '128'; it must be of type int"),
        ("num_epochs", 0, "num_epochs is 0; it must be at least 1 and below 1000000"),
        ("steps_per_chunk", 0, "steps_per_chunk is 0; it must be at least 1"),
        ("seed", -1, "seed is -1; it must be at least 0 and below 4294967296"),
        ("seed", 2**32, "seed is 4294967296; it must be at least 0 and below 4294967296"),
        ("validation_size", -1, "validation_size is -1; it must be at least 0"),
        ("warmup_steps", -1, "warmup_steps is -1; it must be at least 0"),
        ("hidden_sizes", (512, 0), "hidden_sizes[1] is 0; it must be at least 1"),
        ("hidden_sizes", [512], "hidden_sizes is [512]; it must be a tuple"),
        ("learning_rate", -1e-3, "learning_rate is -0.001; it must be at least 0"),
        ("learning_rate", float("nan"), "learning_rate is nan; it must be at least 0"),
        ("learning_rate", float("inf"), "learning_rate is inf; it must be at least 0 and finite"),
        ("decay", 1.0, "decay is 1.0; it must be at least 0 and below 1"),
        ("momentum", 1.0, "momentum is 1.0; it must be at least 0 and below 1"),
        ("eps", 0.0, "eps is 0.0; it must be at least 1e-30"),
        ("b1", 1, "b1 is 1; it must be at least 0 and below 1"),
        ("b2", -0.1, "b2 is -0.1; it must be at least 0 and below 1"),
        ("weight_decay", -1.0, "weight_decay is -1.0; it must be at least 0"),
        ("dataset", "cifar", "dataset is 'cifar'; it must be one of mnist, fashion_mnist"),
        ("optimizer", "lion", "optimizer is 'lion'; it must be one of rmsprop, adam"),
        ("schedule", "step", "schedule is 'step'; it must be one of constant, linear"),
        ("manual_dir", 3, "manual_dir is 3; it must be of type str or None"),
        ("tensorboard", 1, "tensorboard is 1; it must be of type bool"),
    ],
)
def test_bad_value_is_named_with_its_range(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config(**{field: value})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("optimizer", "field", "value"),
    [
        ("rmsprop", "b1", 0.5),
        ("rmsprop", "weight_decay", 0.1),
        ("adam", "weight_decay", 0.1),
        ("adam", "momentum", 0.9),
        ("adamw", "eps_in_sqrt", True),
        ("sgd", "eps", 1e-8),
        ("sgd", "decay", 0.99),
    ],
)
def test_setting_that_the_optimizer_would_ignore_is_refused(
    optimizer: Any, field: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=f"{field} is set, but {optimizer} does not use it"):
        Config(optimizer=optimizer, **{field: value})


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(hidden_sizes=(), manual_dir="x y", learning_rate=1 / 3, seed=2**32 - 1),
        Config(hidden_sizes=(300, 100), optimizer="adamw", weight_decay=0.1, tensorboard=True),
    ],
)
def test_json_gives_an_equal_config(config: Config, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(format_config(config))
    assert load_config(tmp_path / "config.json") == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.name)
def test_every_preset_loads_and_states_command_time_and_result(path: Path) -> None:
    assert parse_args(["--config", str(path)]) == (load_config(path), Launch())
    header = path.read_text().split('"""')[1]
    assert f"Command: python -m mnist_jax.train --config configs/{path.name}" in header
    assert "Time:" in header
    assert "Result:" in header


def test_default_preset_is_the_default() -> None:
    assert load_config(CONFIGS / "default.py") == Config()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "x = 1", "a.py defines no variable `config` that is a Config"),
        ("a.py", "config = 1", "a.py defines no variable `config` that is a Config"),
        ("a.py", "config = (", "a.py cannot be loaded: SyntaxError"),
        ("a.py", "1 / 0", "a.py cannot be loaded: ZeroDivisionError"),
        ("a.py", "{}[0]", "a.py cannot be loaded: KeyError"),
        ("a.json", "{", "a.json cannot be loaded: JSONDecodeError"),
        ("a.json", "[]", "a.json cannot be loaded"),
        ("a.json", '{"sedd": 1}', "a.json cannot be loaded: .*sedd"),
        ("a.json", '{"seed": -1}', "seed is -1"),
    ],
)
def test_bad_config_file_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / name)


def test_flags_override_the_preset(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "from mnist_jax.config import Config\nconfig = Config(seed=1, num_epochs=2)"
    )
    args = ["--config", str(tmp_path / "a.py"), "--num-epochs", "3", "--hidden-sizes", "8", "4"]
    config, launch = parse_args([*args, "--workdir", "here"])
    assert config == Config(seed=1, num_epochs=3, hidden_sizes=(8, 4))
    assert launch == Launch(workdir=Path("here"))


def test_every_field_is_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_args(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "Passes over the training set." in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--learnig-rate", "1"], "learnig-rate"),
        (["--batch-size", "x"], "--batch-size"),
        (["--batch-size", "0"], "batch_size is 0; it must be at least 1 and finite"),
        (["--dataset", "cifar"], "cifar"),
        (["--optimizer", "adam", "--momentum", "0.9"], "momentum is set, but adam"),
        (["--config"], "--config"),
        (["--config", "nowhere.py"], "nowhere.py cannot be loaded: FileNotFoundError"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_args(args)
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert message in " ".join(printed.err.replace("│", " ").split())
    assert "Traceback" not in printed.err
    assert not printed.out


def test_help_is_printed_without_importing_jax() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "mnist_jax.train", "--help"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in process.stderr.splitlines()}
    assert "--batch-size" in process.stdout
    assert "mnist_jax.config" in imported
    assert not imported & {"jax", "flax", "tensorflow_datasets"}
