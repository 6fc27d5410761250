"""Config, its validation and its files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mnist_jax.config import Config, load_config
from mnist_jax.runtime.errors import UsageError

CONFIGS = Path(__file__).parent.parent / "configs"


def test_the_defaults_are_the_lesson() -> None:
    config = Config()
    lesson = (config.dataset, config.hidden_sizes, config.batch_size, config.num_epochs)
    assert lesson == ("mnist", (512,), 128, 5)
    rule = (config.optimizer, config.learning_rate, config.decay, config.eps, config.eps_in_sqrt)
    assert rule == ("rmsprop", 1e-3, 0.9, 1e-7, False)
    assert (config.schedule, config.warmup_steps, config.momentum) == ("constant", 0, 0.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", True, "batch_size is True; it must be of type int"),
        ("num_epochs", 10**6, "num_epochs is 1000000; it must be at least 1 and below 1000000"),
        ("hidden_sizes", [512], "hidden_sizes is [512]; it must be a tuple"),
        ("learning_rate", float("inf"), "learning_rate is inf; it must be at least 0 and finite"),
        ("decay", 1.0, "decay is 1.0; it must be at least 0 and below 1"),
        ("dataset", "cifar", "dataset is 'cifar'; it must be one of mnist, fashion_mnist"),
        ("manual_dir", 3, "manual_dir is 3; it must be of type str"),
    ],
)
def test_a_bad_value_is_named_with_the_allowed_values(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Config(**{field: value})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("optimizer", "field", "value"),
    [("adam", "weight_decay", 0.1), ("adamw", "eps_in_sqrt", True), ("sgd", "eps", 1e-8)],
)
def test_a_setting_that_the_optimizer_does_not_use_is_refused(
    optimizer: Any, field: str, value: Any
) -> None:
    with pytest.raises(UsageError, match=f"{field} is set, .*{optimizer}"):
        Config(optimizer=optimizer, **{field: value})


def test_a_config_is_equal_after_it_is_written_and_loaded(tmp_path: Path) -> None:
    config = Config(
        hidden_sizes=(300, 100), manual_dir="x y", learning_rate=1 / 3, seed=2**32 - 1,
        optimizer="adamw", weight_decay=0.1, tensorboard=True,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    loaded = load_config(tmp_path / "config.json")
    assert (loaded, hash(loaded)) == (config, hash(config))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.name)
def test_every_preset_loads_and_states_its_command_time_and_result(path: Path) -> None:
    assert (load_config(path) == Config()) == (path.name == "default.py")
    header = path.read_text().split('"""')[1]
    assert f"Command: python -m mnist_jax.train --config configs/{path.name}" in header
    assert "Time:" in header
    assert "Result:" in header


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "config = 1", "a.py must define a variable `config` that is a Config"),
        ("a.py", "1 / 0", "a.py cannot be loaded: ZeroDivisionError"),
        ("a.json", "[]", "a.json"),
        ("a.json", '{"seed": -1}', "seed is -1"),
    ],
)
def test_a_bad_config_file_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        load_config(tmp_path / name)
