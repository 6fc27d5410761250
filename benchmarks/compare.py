"""This project beside what people would use instead, and beside the machine's limit, in one run.

    pip install -e ".[bench]"
    python benchmarks/compare.py          # under ten minutes; --quick: under two

Each contestant has a process of its own. They take turns, round by round, so that whatever else the
machine does hits all alike. Prints a table of medians, and writes compare.json and compare.png.
"""

import importlib.util
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from mnist_jax.config import Config

HERE = Path(__file__).parent
OURS, LIMIT = "mnist_jax", "limit"
NUM_EPOCHS = 5  # of a whole process
LABELS = {
    OURS: "mnist_jax",
    "flax_nnx": "Flax NNX, a plain loop",
    "keras_jax": "Keras 3 on JAX",
    "keras_jax_50": "Keras 3, steps_per_execution=50",
    "torch_eager": "PyTorch",
    "torch_compile": "PyTorch, torch.compile",
    LIMIT: "the limit",
}
PARTS = {  # of the limit: of each the faster one counts
    "products": ("products_numpy", "products_torch"),
    "update": ("update_numpy", "update_torch"),
}
CONTESTANTS = (*(name for name in LABELS if name != LIMIT), *sum(PARTS.values(), ()))
SLOW = ("keras_jax_50", "torch_compile")  # to compile
Row = dict[str, Any]


class Process(NamedTuple):
    """A whole process, from its start to its end."""

    seconds: float
    peak_mib: float
    test_accuracy: float


def main(
    data_dir: str = Config.data_dir,
    manual_dir: str | None = None,
    out: Path = HERE,
    quick: bool = False,
    only: tuple[str, ...] = CONTESTANTS,
) -> None:
    """Runs the comparison.

    Args:
        data_dir: as of `python -m mnist_jax.train`
        manual_dir: likewise
        out: the folder for compare.json and compare.png
        quick: 3 rounds of epochs instead of 11, 1 whole process of this project and of Keras
            instead of 3 of each, and neither torch.compile nor steps_per_execution
        only: these contestants
    """
    for package in ("keras", "torch"):
        if any(package in name for name in only) and not importlib.util.find_spec(package):
            sys.exit(f'{package} is missing: pip install -e ".[bench]"')
    names = [name for name in only if not (quick and name in SLOW)]
    # Not in this process: on Linux the peak memory of a parent is the least that a child can show.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(prepare, data_dir, manual_dir).result()
    data = Path(os.path.expanduser(data_dir), "mnist_jax", "mnist.npz")
    epochs = time_epochs(names, data, rounds=3 if quick else 11)
    whole = [name for name in names if name in ((OURS, "keras_jax") if quick else LABELS)]
    processes = time_processes(whole, data, rounds=1 if quick else 3)
    rows = summarize(epochs, processes)
    show(rows)
    report = {**describe_machine(), "contestants": rows}
    (out / "compare.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(rows, out / "compare.png")


def prepare(data_dir: str, manual_dir: str | None) -> None:
    """Sees to it that MNIST is in the decoded cache."""
    from mnist_jax.input_pipeline import load_dataset

    load_dataset(Config(data_dir=data_dir, manual_dir=manual_dir, require_full_data=True))


def time_epochs(names: Sequence[str], data: Path, rounds: int) -> dict[str, list[float]]:
    """The seconds of warm epochs: for each contestant, one a round."""
    with ExitStack() as stack:
        workers = {}
        for name in names:
            tell(f"compiling {name}")
            workers[name] = stack.enter_context(worker(name, data))
            for _ in range(2):
                workers[name]()
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for i in range(rounds):
            tell(f"round {i + 1} of {rounds}")
            for name, train_epoch in workers.items():
                time.sleep(0.3)  # until the threads of the one before sleep
                seconds[name].append(train_epoch())
    return seconds


@contextmanager
def worker(name: str, data: Path) -> Iterator[Callable[[], float]]:
    """Starts a contestant; yields what has it train an epoch and returns the seconds."""
    command = [sys.executable, HERE / "contestants.py", name, data]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin
        assert stdout

        def train_epoch() -> float:
            print(file=stdin, flush=True)
            answer = stdout.readline()
            return float(answer) if answer else sys.exit(f"{name} has failed")

        yield train_epoch


def time_processes(names: Sequence[str], data: Path, rounds: int) -> dict[str, list[Process]]:
    """Whole processes: start, five epochs, test, end. Nothing compiled is left from before."""
    processes: dict[str, list[Process]] = {name: [] for name in names}
    for i in range(rounds):
        for name, seen in processes.items():
            tell(f"whole processes, round {i + 1} of {rounds}: {name}")
            with tempfile.TemporaryDirectory() as scratch:
                seen.append(time_process(name, data, Path(scratch)))
    return processes


def time_process(name: str, data: Path, scratch: Path) -> Process:
    """Runs a contestant as a program of its own, with empty caches of compiled programs."""
    command = [HERE / "contestants.py", name, data, "--num-epochs", NUM_EPOCHS]
    result = scratch / "run" / "result.json"
    if name == OURS:  # the program itself: it also logs, tests each epoch and saves
        flags = ["--data-dir", data.parent.parent, "--workdir", result.parent]
        command = ["-m", "mnist_jax.train", *flags, "--num-epochs", NUM_EPOCHS]
    caches = dict.fromkeys(("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"), str(scratch))
    environment = {**os.environ, **caches}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with (scratch / "output").open("w+") as output:
        words = [sys.executable, *map(str, command)]
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=output, env=environment)
        _, process.returncode, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if process.returncode:
            sys.exit(f"{' '.join(words)} failed")
        output.seek(0)
        lines = output.readlines()
    accuracy = json.loads(result.read_text())["test_accuracy"] if name == OURS else lines[-1]
    return Process(seconds, usage.ru_maxrss / 1024, float(accuracy))


def summarize(
    epochs: dict[str, list[float]], processes: dict[str, list[Process]]
) -> dict[str, Row]:
    """Medians, and their ratios to ours and to the limit, by contestant."""
    parts = {
        part: min(statistics.median(epochs[name]) for name in names if name in epochs)
        for part, names in PARTS.items()
        if any(name in epochs for name in names)
    }
    rows: dict[str, Row] = {
        name: {"epoch_seconds": statistics.median(seconds), "epochs": seconds}
        for name, seconds in epochs.items()
        if name in LABELS
    }
    if len(parts) == len(PARTS):
        rows[LIMIT] = {"epoch_seconds": sum(parts.values()), **parts}
    for name, seen in processes.items():
        for field, values in zip(Process._fields, zip(*seen, strict=True), strict=True):
            rows[name][f"process_{field}"] = statistics.median(values)
    for row in rows.values():
        for key in ("epoch_seconds", "process_seconds", "process_peak_mib"):
            if key in row and OURS in rows:
                row[f"{key}_to_ours"] = row[key] / rows[OURS][key]
        if LIMIT in rows:
            row["epoch_seconds_to_limit"] = row["epoch_seconds"] / rows[LIMIT]["epoch_seconds"]
    return rows


def describe_machine() -> Row:
    """The processor, and the versions of what was compared."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search("model name\\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    packages = ("jax", "flax", "optax", "keras", "torch", "numpy")
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "versions": {p: version(p) for p in packages if importlib.util.find_spec(p)},
    }


def show(rows: dict[str, Row]) -> None:
    """Prints the table."""
    columns = [
        ("epoch, s", "epoch_seconds", "{:.2f}"),
        ("to ours", "epoch_seconds_to_ours", "{:.2f}"),
        ("to the limit", "epoch_seconds_to_limit", "{:.2f}"),
        ("process, s", "process_seconds", "{:.1f}"),
        ("to ours", "process_seconds_to_ours", "{:.2f}"),
        ("peak, MiB", "process_peak_mib", "{:.0f}"),
        ("test", "process_test_accuracy", "{:.2%}"),
    ]
    table = Table("", *(title for title, _, _ in columns))
    for name, row in rows.items():
        cells = (form.format(row[key]) if key in row else "" for _, key, form in columns)
        table.add_row(LABELS[name], *cells)
    Console(width=120).print(table)


def draw(rows: dict[str, Row], path: Path) -> None:
    """Two bar charts: an epoch, and a whole process."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
    colors = ["tab:blue" if n == OURS else "0.85" if n == LIMIT else "0.65" for n in rows]
    titles = {
        "epoch_seconds": ("an epoch, warm: seconds", ".2f"),
        "process_seconds": (f"start, {NUM_EPOCHS} epochs, test: seconds", ".1f"),
    }
    for axis, (key, (title, form)) in zip(axes, titles.items(), strict=True):
        values = [row.get(key, 0) for row in rows.values()]
        bars = axis.barh([LABELS[name] for name in rows], values, color=colors)
        axis.bar_label(bars, [f"{value:{form}}" if value else "" for value in values], padding=3)
        axis.set_title(title, loc="left", fontsize="medium")
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.set_xticks([])
        axis.margins(x=0.12)
    axes[0].invert_yaxis()
    fig.savefig(path, dpi=150)


def tell(text: str) -> None:
    """Says what is going on, beside the results."""
    print(f"{text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    tyro.cli(main)
