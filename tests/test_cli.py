"""The flags of a program, and the files that give their defaults."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mnist_jax import train
from mnist_jax.config import Config
from mnist_jax.runtime.cli import LaunchOptions, parse
from mnist_jax.runtime.errors import UsageError


def parse_words(*words: object) -> train.Options:
    return parse(train.Options, "python -m mnist_jax.train", [str(word) for word in words])


def test_flags_override_the_preset(tmp_path: Path) -> None:
    preset = tmp_path / "a.py"
    preset.write_text("from mnist_jax.config import Config\nconfig = Config(seed=1, num_epochs=2)")
    words = ["--config", preset, "--num-epochs", 3, "--hidden-sizes", 8, 4, "--workdir", "here"]
    config = Config(seed=1, num_epochs=3, hidden_sizes=(8, 4))
    assert parse_words(*words) == train.Options(config=config, preset=preset, workdir=Path("here"))


def test_a_run_directory_gives_its_settings_unless_a_preset_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"seed": 7}')
    (tmp_path / "other.json").write_text('{"seed": 8}')
    assert parse_words("--workdir", tmp_path).config == Config(seed=7)
    assert parse_words(f"--workdir={tmp_path}", "--keep", 1).config == Config(seed=7, keep=1)
    both = parse_words("--workdir", tmp_path, "--config", tmp_path / "other.json")
    assert both.config == Config(seed=8)
    assert parse_words("--workdir", tmp_path / "new").config == Config()


def test_every_field_is_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_words("--help")
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    for field in dataclasses.fields(Config) + dataclasses.fields(LaunchOptions):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "Passes over the training set." in text


def test_the_flags_of_one_of_several_processes_must_fit() -> None:
    flags: dict[str, Any] = {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1}
    LaunchOptions(**flags)
    LaunchOptions(distributed=True)
    for change, message in (
        ({"coordinator_address": None}, "give all three"),
        ({"distributed": True}, "or only --distributed"),
        ({"num_processes": 1}, "process_id is 1; it must be below num_processes"),
    ):
        with pytest.raises(UsageError, match=message):
            LaunchOptions(**flags | change)
