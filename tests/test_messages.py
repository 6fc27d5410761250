"""Every kind of bad input: its message, its exit code, and that no file is damaged.

These tests write docs/messages.md, the table of messages. After a change of a message, run:

    MNIST_JAX_WRITE_MESSAGES=1 pytest tests/test_messages.py
"""

import contextlib
import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mnist_jax.__main__ import COMMANDS
from mnist_jax.data.tfds_builders import FILE_NAMES
from mnist_jax.runtime.cli import parse
from mnist_jax.runtime.program import run_program
from mnist_jax.runtime.workdir import RunDirectory, read_run_info
from mnist_jax.train import Result
from tests.helpers import flip_byte, read_history, small_disk, snapshot

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "messages.md"
HEADER = """\
# Messages about wrong input

`tests/test_messages.py` tries every row and writes this table. Flags without a command belong to
`python -m mnist_jax train`. Exit code 0: the run continued and finished; 1: the run failed; 2:
wrong usage. If the exit code is not 0, no existing file has changed. The table leaves out the help
that follows some messages.

| what is wrong | exit code | message |
| --- | --- | --- |
"""
SAMPLE_FILES = ROOT / "mnist_jax" / "data" / "mnist_sample"
SAMPLE = "--dataset mnist_sample --data-dir data --num-epochs 1"
NO_DATA = "--data-dir none --manual-dir files"
OPEN = contextlib.ExitStack()  # what a preparation keeps open until the test ends


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def damage(*steps: int) -> None:
    """Inverts a byte in each array file of the checkpoints."""
    for step in steps:
        for path in Path("run/checkpoints", str(step)).rglob("d/*"):
            if path.is_file():
                flip_byte(path)


def occupy() -> None:
    OPEN.enter_context(RunDirectory("run", read_run_info(Path("run"))["fingerprint"]))


def mount(size: str) -> None:
    OPEN.enter_context(small_disk(Path("disk"), size))


# What is wrong: the arguments, the exit code, a part of the message.
CASES: dict[str, tuple[str, int, str]] = {
    "an unknown flag": ("--epochs 5", 2, "--epochs"),
    "a flag without its value": ("--batch-size", 2, "--batch-size"),
    "a word instead of a number": ("--batch-size many", 2, "many"),
    "an unknown optimizer": ("--optimizer lion", 2, "lion"),
    "batches of no examples": ("--batch-size 0", 2, "batch_size is 0; it must be at least 1"),
    "a seed that is too large": ("--seed 4294967296", 2, "below 4294967296"),
    "a learning rate that is not a number": ("--learning-rate nan", 2, "learning_rate is nan"),
    "a layer without units": ("--hidden-sizes 512 0", 2, "hidden_sizes[1] is 0"),
    "a setting that the optimizer does not use": ("--b1 0.5", 2, "b1 is set"),
    "warm-up as long as the run": (f"{SAMPLE} --warmup-steps 32", 2, "warmup_steps is 32"),
    "nothing left to train on": (f"{SAMPLE} --validation-size 4000", 2, "validation_size is 4000"),
    "a missing platform": (f"{SAMPLE} --require-platform tpu", 1, "tpu is required"),
    "one flag instead of three": ("--num-processes 2", 2, "go together"),
    "a process number that is too large": (
        "--coordinator-address host:1 --num-processes 2 --process-id 2", 2, "process_id is 2"
    ),
    "no such config file": ("--config none.py", 2, "none.py cannot be loaded"),
    "a config file with an error": ("--config my.py", 2, "SyntaxError"),
    "a config file without `config`": ("--config my.py", 2, "my.py must define"),
    "a config file with a wrong value": ("--config my.json", 2, "seed is 'one'"),
    "a config file with an unknown setting": ("--config my.json", 2, "unknown settings: sede"),
    "an incomplete config file": ("--config my.json", 2, "my.json cannot be loaded"),
    "MNIST cannot be loaded": ("--data-dir none --require-full-data", 1, "mnist cannot be loaded"),
    "another dataset cannot be loaded": ("--data-dir none --dataset fashion_mnist", 1, "fashion_"),
    "an official file is missing": (NO_DATA, 1, f"files/{FILE_NAMES[0]} is missing"),
    "an official file is a different one": (NO_DATA, 1, f"files/{FILE_NAMES[0]} is incomplete"),
    "the cached dataset is damaged": (f"{SAMPLE} --workdir new", 0, "mnist_sample.npz is damaged"),
    "--data-dir is a file": ("--dataset mnist_sample --data-dir file", 1, "in file"),
    "--workdir is a file": (f"{SAMPLE} --workdir file", 1, "file is a file"),
    "--workdir is below a file": (f"{SAMPLE} --workdir file/run", 1, "file/run"),
    "the name of --workdir is too long": (f"{SAMPLE} --workdir {'a' * 300}", 1, "too long"),
    "--workdir holds something else": (f"{SAMPLE} --workdir letters", 1, "letters is not empty"),
    "--workdir cannot be written": (f"{SAMPLE} --workdir disk/run", 1, "disk/run cannot be"),
    "no space for a checkpoint": (f"{SAMPLE} --workdir disk/run", 1, "disk/run/checkpoints"),
    "no space for run.json": (f"{SAMPLE} --workdir disk/run", 1, "No space left"),
    "another process trains in the run directory": ("--workdir run", 1, "another process"),
    "a different seed than the run's": ("--workdir run --seed 1", 2, "seed is 0 in the saved run"),
    "two settings that differ from the run's": (
        "--workdir run --eps 1e-6 --batch-size 64", 2, "batch_size is 128 in the saved run"
    ),
    "fewer epochs than the run's": ("--workdir run --num-epochs 1", 2, "is already at step 64"),
    "config.json of the run is incomplete": ("--workdir run", 2, "run/config.json"),
    "config.json of the run was changed": ("--workdir run", 2, "seed is 0 in the saved run"),
    "run.json of the run is incomplete": ("--workdir run", 1, "run/run.json is missing or damaged"),
    "the newest checkpoint is damaged": ("--workdir run", 0, "64 is damaged"),
    "all checkpoints are damaged": ("--workdir run", 1, "run/checkpoints are damaged"),
    "all checkpoints are missing": ("--workdir run", 1, "the checkpoints of run are missing"),
    "metrics.jsonl is incomplete": ("--workdir run", 0, "metrics.jsonl was missing or damaged"),
    "the loss is not finite": (
        f"{SAMPLE} --workdir new --optimizer sgd --learning-rate 1e30", 1, "not finite at step 2"
    ),
    "no picture is named": ("predict", 2, "name one or more images"),
    "no run has finished": ("predict seven.png", 1, "no run has finished under runs/"),
    "a directory without a run": ("evaluate --workdir data", 1, "data holds no run"),
    "pictures that cannot be read": ("predict --workdir run text.png none.png data", 1, "not an"),
    "a run on fashion": ("predict --workdir run seven.png", 1, "trained on fashion_mnist"),
    "a run before its first checkpoint": ("export --workdir run --out a.bin", 1, "no checkpoint"),
    "no output file is named": ("export --workdir run", 2, "--out"),
    "an output file in a missing directory": ("export --workdir run --out no/a.bin", 1, "no/a.bin"),
    "a port that is too large": ("demo --port 70000", 2, "port is 70000"),
    "only one seed": ("seeds --num-seeds 1", 2, "num_seeds is 1; it must be at least 2"),
    "the tenth seed is too large": ("seeds --seed 4294967290", 2, "seed is 4294967299"),
    "a setting without effect on seeds": ("seeds --keep 1", 2, "keep is set"),
}  # fmt: skip
CACHE = Path("data/mnist_jax/mnist_sample.npz")
# What is done before the command runs.
PREPARATIONS: dict[str, Callable[[], object]] = {
    "a config file with an error": lambda: Path("my.py").write_text("config = ("),
    "a config file without `config`": lambda: Path("my.py").write_text("x = 1"),
    "a config file with a wrong value": lambda: Path("my.json").write_text('{"seed": "one"}'),
    "a config file with an unknown setting": lambda: Path("my.json").write_text('{"sede": 1}'),
    "an incomplete config file": lambda: Path("my.json").write_text('{"seed": 1'),
    "an official file is missing": lambda: Path("files").mkdir(),
    "an official file is a different one": lambda: shutil.copytree(SAMPLE_FILES, "files"),
    "the cached dataset is damaged": lambda: flip_byte(CACHE),
    "--workdir cannot be written": lambda: mount("1m,ro"),
    "no space for a checkpoint": lambda: mount("1m"),
    "no space for run.json": lambda: mount("4k"),
    "another process trains in the run directory": occupy,
    "config.json of the run is incomplete": lambda: os.truncate("run/config.json", 20),
    "config.json of the run was changed": lambda: edit("run/config.json", '"seed": 0', '"seed": 1'),
    "run.json of the run is incomplete": lambda: os.truncate("run/run.json", 20),
    "the newest checkpoint is damaged": lambda: damage(64),
    "all checkpoints are damaged": lambda: damage(32, 64),
    "all checkpoints are missing": lambda: shutil.rmtree("run/checkpoints"),
    "metrics.jsonl is incomplete": lambda: os.truncate("run/metrics.jsonl", 10),
    "a run on fashion": lambda: edit("run/run.json", '"mnist_sample"', '"fashion_mnist"'),
    "a run before its first checkpoint": lambda: [
        shutil.rmtree("run/checkpoints"),
        edit("run/run.json", '"saved": true', '"saved": false'),
    ],
}


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, str]]:
    """The rows that the tests have seen. They are written after the last test, if asked for."""
    rows: dict[str, str] = {}
    yield rows
    if "MNIST_JAX_WRITE_MESSAGES" in os.environ:
        TABLE.write_text(HEADER + "".join(f"{rows[name]}\n" for name in CASES if name in rows))


@pytest.fixture
def place(
    sample_run: Result,
    sample_dir: Path,
    tests_cache: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """The working directory of a test: a finished run of two epochs, and data; no network."""
    shutil.copytree(sample_run.workdir, tmp_path / "run")
    shutil.copytree(sample_dir, tmp_path / "data")
    (tmp_path / "letters").mkdir()
    for name in ("file", "letters/one.txt", "text.png"):
        (tmp_path / name).write_text("Dear")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")  # tyro breaks no line
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens
    with OPEN:
        yield tmp_path


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_gets_a_message(
    name: str,
    place: Path,
    sample_run: Result,
    table: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments, expected_code, part = CASES[name]
    PREPARATIONS.get(name, lambda: None)()
    before = snapshot(Path())
    capsys.readouterr()
    caplog.clear()
    code = call(arguments)
    output = capsys.readouterr()
    warnings = [
        f"{record.levelname}: {record.getMessage()}"
        for record in caplog.records
        if record.name.startswith("mnist_jax") and record.levelname == "WARNING"
    ]
    message = as_line("\n".join([*warnings, output.err]), place)
    assert code == expected_code, message
    assert part in message
    assert "Traceback" not in output.out + output.err
    after = snapshot(Path())
    if code:
        assert {path: after.get(path) for path in before} == before
        assert {path.parts[0] for path in after.keys() - before} <= {"new", "disk"}
    else:  # the run gives the numbers of a run with intact files
        folder = Path("new") if Path("new").exists() else Path("run")
        history = read_history(folder)
        assert history == read_history(sample_run.workdir)[: len(history)]
    start = f"| {name}: `{arguments}` | {code} |"
    table[name] = f"{start} {message} |"
    if "MNIST_JAX_WRITE_MESSAGES" not in os.environ:
        (row,) = [row for row in TABLE.read_text().splitlines() if row.startswith(start)]
        assert part in row


def call(arguments: str) -> int:
    """Runs a command in this process; without a command, `train`. Returns the exit code."""
    name, *words = arguments.split()
    if name not in COMMANDS:
        name, words = "train", [name, *words]
    command = importlib.import_module(COMMANDS[name][0])
    prog = f"python -m mnist_jax {name}"
    return run_program(lambda: command.main(parse(command.Options, prog, words)))


def as_line(text: str, place: Path) -> str:
    """The message as a cell of a Markdown table: without tyro's title, and without help."""
    text = text.replace(f"{place}/", "")
    parts = re.split("-{9,}", text)  # tyro prints a title, the message and the help
    text = parts[1] if len(parts) > 1 else text.partition("Remedies:")[0]
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    return " <br> ".join(lines).replace("|", "\\|")
