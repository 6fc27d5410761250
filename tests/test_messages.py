"""Bad input of every kind: what it prints, its exit code, and that it damages nothing.

docs/messages.md is the table of these tests. To write it anew after a change:

    MNIST_JAX_WRITE_MESSAGES=1 pytest tests/test_messages.py
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_jax import train
from mnist_jax.command_line import parse_args
from mnist_jax.commands import demo, evaluate, export, predict, seeds
from mnist_jax.commands.options import (
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    SeedsOptions,
    parse_options,
)
from mnist_jax.config import Config, load_config
from mnist_jax.errors import Interrupted
from mnist_jax.runtime import run_program
from mnist_jax.train import train_and_evaluate
from mnist_jax.workdir import lock_folder
from tests.test_datasets import SAMPLE, TEST, TRAIN

TABLE = Path(__file__).parent.parent / "docs" / "messages.md"
HEADER = """\
# What it says when something is wrong

Written by `tests/test_messages.py`, which tries each of these. The flags are those of
`python -m mnist_jax.train`, unless they begin with another command. Exit codes: 0 the run went on
and finished, 1 it failed, 2 wrong usage. Where it is not 0, no file that was there has changed.

| what is wrong | exit code | what is printed |
| --- | --- | --- |
"""
Arrange = Callable[[], Any]


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def flip(path: Path, position: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 0xFF
    path.write_bytes(data)


def official_files(leave_out: str = "", cut: str = "", change: str = "") -> None:
    """The folder `files`: the four names of MNIST, with the contents of the sample."""
    Path("files").mkdir()
    for name in (*TRAIN, *TEST):
        if name != leave_out:
            shutil.copy(SAMPLE / name, Path("files", name))
    if cut:
        os.truncate(Path("files", cut), 1000)


def array_files(step: int) -> list[Path]:
    return [path for path in Path("run/checkpoints", str(step)).rglob("d/*") if path.is_file()]


def damage(*steps: int) -> None:
    for step in steps:
        for path in array_files(step):
            flip(path)


def occupy() -> None:
    os.environ["KEEP"] = str(lock_folder(Path("run"), load_config("run/config.json")))


def mount(size: str, *options: str) -> None:
    """A file system at `disk`, until the test ends."""
    Path("disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs", "disk"]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")


SAMPLE_RUN = "--dataset mnist_sample --data-dir data --num-epochs 1"
# What is wrong: the arguments, what is done before, the exit code, a part of what is printed.
CASES: dict[str, tuple[str, Arrange | None, int, str]] = {
    "no such flag": ("--epochs 5", None, 2, "--epochs"),
    "a flag without its value": ("--batch-size", None, 2, "--batch-size"),
    "a word for a number": ("--batch-size many", None, 2, "many"),
    "a fraction for a whole number": ("--batch-size 12.5", None, 2, "12.5"),
    "batches of nothing": ("--batch-size 0", None, 2, "batch_size is 0; it must be at least 1"),
    "no epochs": ("--num-epochs 0", None, 2, "num_epochs is 0"),
    "a negative seed": ("--seed -1", None, 2, "seed is -1"),
    "a seed that is too large": ("--seed 4294967296", None, 2, "below 4294967296"),
    "a learning rate that is no number": ("--learning-rate nan", None, 2, "learning_rate is nan"),
    "a negative learning rate": ("--learning-rate -0.1", None, 2, "learning_rate is -0.1"),
    "an infinite learning rate": ("--learning-rate inf", None, 2, "finite"),
    "an unknown optimizer": ("--optimizer lion", None, 2, "lion"),
    "an unknown schedule": ("--schedule step", None, 2, "step"),
    "an unknown dataset": ("--dataset cifar", None, 2, "cifar"),
    "a setting that the optimizer ignores": ("--b1 0.5", None, 2, "rmsprop does not use it"),
    "a decay of 1": ("--decay 1", None, 2, "decay is 1.0"),
    "an epsilon of 0": ("--eps 0", None, 2, "eps is 0.0"),
    "a layer without units": ("--hidden-sizes 512 0", None, 2, "hidden_sizes[1] is 0"),
    "chunks of nothing": ("--steps-per-chunk 0", None, 2, "steps_per_chunk is 0"),
    "checkpoints that are not kept": ("--keep 0", None, 2, "keep is 0"),
    "a negative interval": ("--checkpoint-every-steps -1", None, 2, "checkpoint_every_steps is -1"),
    "a platform that is not there": (
        f"{SAMPLE_RUN} --require-platform tpu",
        None,
        1,
        "tpu is required, and jax runs on",
    ),
    "one of the flags of several processes": ("--num-processes 2", None, 2, "go together"),
    "a process that is not one of them": (
        "--coordinator-address localhost:1 --num-processes 2 --process-id 2",
        None,
        2,
        "process_id is 2",
    ),
    "a warm-up longer than the run": (
        f"{SAMPLE_RUN} --warmup-steps 32",
        None,
        2,
        "must be below the run's 32 steps",
    ),
    "nothing left to train on": (f"{SAMPLE_RUN} --validation-size 4000", None, 2, "to train on"),
    "no such config": ("--config none.py", None, 2, "none.py cannot be loaded"),
    "a config that is no Python": (
        "--config my.py",
        lambda: write("my.py", "config = ("),
        2,
        "SyntaxError",
    ),
    "a config without `config`": (
        "--config my.py",
        lambda: write("my.py", "x = 1"),
        2,
        "defines no variable `config`",
    ),
    "a config with a bad value": (
        "--config my.json",
        lambda: write("my.json", '{"seed": "one"}'),
        2,
        "seed is 'one'",
    ),
    "a config with an unknown field": (
        "--config my.json",
        lambda: write("my.json", '{"sede": 1}'),
        2,
        "sede",
    ),
    "a config cut off": (
        "--config my.json",
        lambda: write("my.json", '{"seed": 1'),
        2,
        "my.json cannot be loaded",
    ),
    "mnist cannot be had, and the sample is not wanted": (
        "--data-dir none --require-full-data",
        None,
        1,
        "mnist cannot be had",
    ),
    "fashion_mnist cannot be had": (
        "--data-dir none --dataset fashion_mnist",
        None,
        1,
        "fashion_mnist cannot be had",
    ),
    "no such --manual-dir": ("--data-dir none --manual-dir files", None, 1, "is missing"),
    "an official file is missing": (
        "--data-dir none --manual-dir files",
        lambda: official_files(leave_out=TRAIN[0]),
        1,
        f"{TRAIN[0]} is missing",
    ),
    "an official file is another": (
        "--data-dir none --manual-dir files",
        official_files,
        1,
        "is not the right file",
    ),
    "an official file is cut off": (
        "--data-dir none --manual-dir files",
        lambda: official_files(cut=TRAIN[0]),
        1,
        TRAIN[0],
    ),
    "the decoded cache is cut off": (
        f"{SAMPLE_RUN} --workdir new",
        lambda: os.truncate("data/mnist_jax/mnist_sample.npz", 1000),
        0,
        "is damaged",
    ),
    "the decoded cache has flipped bytes": (
        f"{SAMPLE_RUN} --workdir new",
        lambda: flip(Path("data/mnist_jax/mnist_sample.npz")),
        0,
        "is damaged",
    ),
    "--data-dir is a file": (
        "--dataset mnist_sample --data-dir file",
        lambda: write("file", "text"),
        1,
        "file",
    ),
    "--workdir is a file": (
        f"{SAMPLE_RUN} --workdir file",
        lambda: write("file", ""),
        1,
        "is a file",
    ),
    "--workdir is below a file": (
        f"{SAMPLE_RUN} --workdir file/run",
        lambda: write("file", ""),
        1,
        "file",
    ),
    "--workdir is too long a name": (f"{SAMPLE_RUN} --workdir {'a' * 300}", None, 1, "too long"),
    "--workdir holds something else": (
        f"{SAMPLE_RUN} --workdir letters",
        lambda: write("letters/one.txt", "Dear"),
        1,
        "not empty and holds no run",
    ),
    "--workdir cannot be written": (
        f"{SAMPLE_RUN} --workdir disk/run",
        lambda: mount("1m", "ro"),
        1,
        "Read-only",
    ),
    "a full disk": (f"{SAMPLE_RUN} --workdir disk/run", lambda: mount("1m"), 1, "disk is full"),
    "a disk without room for a file": (
        f"{SAMPLE_RUN} --workdir disk/run",
        lambda: mount("4k"),
        1,
        "No space left",
    ),
    "another process trains in the folder": ("--workdir run", occupy, 1, "another process trains"),
    "another seed than the run's": ("--workdir run --seed 1", None, 2, "seed is 0 there and 1 her"),
    "fewer epochs than the run's": (
        "--workdir run --num-epochs 1",
        None,
        2,
        "num_epochs is 2 there and 1 here",
    ),
    "two settings that differ": (
        "--workdir run --eps 1e-6 --batch-size 64",
        None,
        2,
        "batch_size is 128 there and 64 here",
    ),
    "config.json of the run is cut off": (
        "--workdir run",
        lambda: os.truncate("run/config.json", 20),
        2,
        "config.json cannot be loaded",
    ),
    "config.json of the run was changed": (
        "--workdir run",
        lambda: edit("run/config.json", '"seed": 0', '"seed": 1'),
        1,
        "seed is 0 there and 1 here",
    ),
    "the newest checkpoint has flipped bytes": (
        "--workdir run",
        lambda: damage(40),
        0,
        "40 is damaged and not used",
    ),
    "the newest checkpoint's record is cut off": (
        "--workdir run",
        lambda: os.truncate("run/checkpoints/40/record/metadata", 100),
        0,
        "40 is damaged and not used",
    ),
    "a file of the newest checkpoint is missing": (
        "--workdir run",
        lambda: array_files(40)[0].unlink(),
        0,
        "40 is damaged and not used",
    ),
    "no checkpoint is intact": ("--workdir run", lambda: damage(32, 40), 1, "is intact"),
    "the checkpoints are gone": (
        "--workdir run",
        lambda: shutil.rmtree("run/checkpoints"),
        1,
        "has lost its checkpoints",
    ),
    "metrics.jsonl is cut off": (
        "--workdir run",
        lambda: os.truncate("run/metrics.jsonl", 10),
        0,
        "metrics.jsonl was damaged",
    ),
    "metrics.jsonl has flipped bytes": (
        "--workdir run",
        lambda: flip(Path("run/metrics.jsonl")),
        0,
        "metrics.jsonl was damaged",
    ),
    "the loss is not finite": (
        f"{SAMPLE_RUN} --workdir new --optimizer sgd --learning-rate 1e30",
        None,
        1,
        "the loss is not finite at step 2",
    ),
    "no picture is named": ("predict", None, 2, "name one or more images"),
    "no run has finished": ("predict seven.png", None, 1, "no run has finished under runs/"),
    "a folder without a run": ("evaluate --workdir data", None, 1, "data holds no run"),
    "pictures that cannot be read": (
        "predict --workdir run text.png none.png data",
        lambda: write("text.png", "seven"),
        1,
        "text.png: not an image",
    ),
    "a run on clothes is asked for digits": (
        "predict --workdir run seven.png",
        lambda: edit("run/run.json", '"mnist_sample"', '"fashion_mnist"'),
        1,
        "was trained on fashion_mnist",
    ),
    "the record of the run is gone": (
        "evaluate --workdir run",
        lambda: os.unlink("run/run.json"),
        1,
        "run.json is missing or damaged",
    ),
    "a run without a checkpoint": (
        "export --workdir run --out digits.bin",
        lambda: shutil.rmtree("run/checkpoints"),
        1,
        "has no checkpoint yet",
    ),
    "no file is named": ("export --workdir run", None, 2, "--out"),
    "a file in no folder": (
        "export --workdir run --out none/digits.bin",
        None,
        1,
        "none/digits.bin cannot be written",
    ),
    "a port that there is not": ("demo --port 70000", None, 2, "port is 70000"),
    "a single seed": ("seeds --num-seeds 1", None, 2, "num_seeds is 1"),
    "a setting that seeds cannot use": (
        "seeds --checkpoint-every-steps 9",
        None,
        2,
        "checkpoint_every_steps",
    ),
}
PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "evaluate": lambda words: evaluate.run(parse_options(EvaluateOptions, "evaluate", words)),
    "predict": lambda words: predict.run(parse_options(PredictOptions, "predict", words)),
    "export": lambda words: export.run(parse_options(ExportOptions, "export", words)),
    "demo": lambda words: demo.run(parse_options(DemoOptions, "demo", words)),
    "seeds": lambda words: run_program(
        lambda: seeds.compare_seeds(*parse_args(words, SeedsOptions, "seeds"))
    ),
}


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, str]]:
    """The rows of the table that the tests have found; written, if wanted, after the last."""
    rows: dict[str, str] = {}
    yield rows
    if "MNIST_JAX_WRITE_MESSAGES" in os.environ:
        TABLE.write_text(HEADER + "".join(f"{rows[name]}\n" for name in CASES if name in rows))


@pytest.fixture(scope="module")
def interrupted_run(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs that was interrupted in the second, and its data."""
    folder = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(sample_dir, folder / "data")
    config = Config(
        dataset="mnist_sample", data_dir="data", num_epochs=2, steps_per_chunk=8, batch_size=128
    )
    train_steps, count = train.train_steps, 0

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            os.kill(os.getpid(), 15)
        return train_steps(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train, "train_steps", interrupt)
        with pytest.raises(Interrupted):
            train_and_evaluate(config, "run")
    return folder


@pytest.fixture
def place(interrupted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of a test: a copy of `interrupted_run`, without a network."""
    shutil.copytree(interrupted_run, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # as the tests have it
    monkeypatch.setenv("KEEP", "")
    monkeypatch.setenv("COLUMNS", "1000")  # no word is cut at the border of a box
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens
    yield tmp_path / "place"
    if os.environ["KEEP"]:
        os.close(int(os.environ["KEEP"]))
    if Path("disk").is_mount():
        subprocess.run(["umount", "--lazy", "disk"], check=True)


def snapshot() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def call(arguments: str) -> int | str | None:
    """`python -m mnist_jax.train`, or the command that is named, in this process: its exit code."""
    words = arguments.split()
    try:
        if words[0] in PROGRAMS:
            return PROGRAMS[words[0]](words[1:])
        return train.run(*parse_args(words))
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gets_a_message(
    name: str,
    place: Path,
    table: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments, arrange, expected_code, part = CASES[name]
    if arrange:
        arrange()
    before = snapshot()
    capsys.readouterr()
    caplog.clear()
    code = call(arguments)
    output = capsys.readouterr()
    logged = [
        f"{r.levelname}: {r.getMessage()}"
        for r in caplog.records
        if r.name.startswith("mnist_jax") and r.levelname == "WARNING"
    ]
    printed = as_line("\n".join([*logged, output.err]), place)
    assert code == expected_code
    assert part in printed
    assert "Traceback" not in output.out + output.err
    if code:
        after = snapshot()
        assert {path: after.get(path) for path in before} == before
        assert {path.parts[0] for path in after if path not in before} <= {"new", "disk", "none"}
    else:
        assert json.loads(next(Path().glob("*/result.json")).read_text())["test_count"] == 1000
    start = f"| {name}: `{arguments}` | {code} |"
    table[name] = f"{start} {printed} |"
    if "MNIST_JAX_WRITE_MESSAGES" not in os.environ:
        (row,) = [row for row in TABLE.read_text().splitlines() if row.startswith(start)]
        assert part in row


def as_line(text: str, place: Path) -> str:
    """The message without the box around it and its hints, as a cell of a table in Markdown."""
    text = re.sub(r"╭[^╮]*╮|[╰╯│─]+|-{4,}", " ", text).replace(f"{place}/", "")
    hints = r"Perhaps you meant|(Argument|For full) helptext|Remedies:"
    text = re.sub(rf"({hints}).*", "", text, flags=re.DOTALL)
    return " ".join(text.split()).replace("|", "\\|")
