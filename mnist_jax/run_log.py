"""What a run leaves in its folder, and what a person sees of it."""

import contextlib
import dataclasses
import datetime
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import rich.progress
from rich.console import Console

import mnist_jax
from mnist_jax.config import Config, save_config
from mnist_jax.errors import ConfigError, RunError
from mnist_jax.input_pipeline import Dataset
from mnist_jax.metrics import Summary
from mnist_jax.model import count_parameters
from mnist_jax.steps import TrainState

# Lines in a log file are as long as they are, and nothing is guessed to be a colour.
console = Console(soft_wrap=True, highlight=False, markup=False)


class RunLog:
    """A new run folder and its files.

    They are config.json (the Config), run.json (what it runs on), metrics.jsonl (a line an epoch,
    written as it happens), result.json and, if wanted, TensorBoard events.
    """

    def __init__(self, workdir: str | Path | None, config: Config) -> None:
        """Looks whether the folder can be had; `start` makes it, once there is data to train on."""
        now = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
        self.workdir = Path(os.path.expanduser(workdir or f"runs/{now}"))
        self._has_default_name = not workdir
        if workdir and self.workdir.exists() and any(self.workdir.iterdir()):
            raise RunError(f"{self.workdir} is not empty; name another folder with --workdir.")
        if config.tensorboard and not importlib.util.find_spec("tensorboardX"):
            raise ConfigError('tensorboard needs tensorboardX: pip install -e ".[tensorboard]"')
        self.config = config
        self.history: list[dict[str, Any]] = []
        self._events: Any = None

    def start(self, dataset: Dataset, state: TrainState, model: nn.Module) -> None:
        """Makes the folder; records and says what will run, and on what."""
        config, device = self.config, jax.devices()[0]
        if self._has_default_name:
            self.workdir = _make_new_folder(self.workdir)
        else:
            self.workdir.mkdir(parents=True, exist_ok=True)
        save_config(config, self.workdir / "config.json")
        if config.tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(self.workdir))
        devices = f"{device.platform} device 1 of {jax.device_count()} ({device.device_kind})"
        versions = {"mnist_jax": mnist_jax.__version__, "jax": jax.__version__}
        sizes = {split: len(rows) for split, rows in dataset.splits.items()}
        self._write_json(
            "run.json", {"dataset": dataset.name, **sizes, **versions, "devices": devices}
        )
        console.print(
            f"mnist_jax {mnist_jax.__version__}, jax {jax.__version__}, {devices}\n"
            f"{dataset.name}: {', '.join(f'{n:,} {split}' for split, n in sizes.items())} images\n"
            f"{type(model).__name__}: {count_parameters(state.params):,} parameters; "
            f"{config.optimizer}, batches of {config.batch_size}, seed {config.seed}"
        )

    @contextlib.contextmanager
    def bar(self, epoch: int, num_steps: int) -> Iterator[Callable[[int, Summary], None]]:
        """A bar for an epoch, on a terminal; yields what moves it: `update(step, so_far)`."""
        columns = ("{task.description}", rich.progress.BarColumn(30), "{task.fields[numbers]}")
        with rich.progress.Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            task = progress.add_task(self._title(epoch), total=num_steps, numbers="")

            def update(step: int, so_far: Summary) -> None:
                numbers = f"{step}/{num_steps}   {_describe('running_train', so_far)}"
                progress.update(task, completed=step, numbers=numbers)

            yield update

    def finish_epoch(
        self, epoch: int, step: int, summaries: dict[str, Summary], seconds: float
    ) -> None:
        """Records and says an epoch's metrics: `summaries` by their names."""
        record = {"epoch": epoch, "step": step, **_flatten(summaries), "seconds": seconds}
        self.history.append(record)
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._events:
            for name, value in record.items():
                self._events.add_scalar(name, value, step)
        numbers = "   ".join(_describe(*item) for item in summaries.items())
        console.print(f"{self._title(epoch)}   {numbers}   {seconds:.1f} s")

    def finish(self, train: Summary, test: Summary) -> None:
        """Records and says the result: metrics of the final parameters."""
        self._write_json("result.json", _flatten({"train": train, "test": test}))
        gap = 100 * (train.accuracy - test.accuracy)
        console.print(
            f"Test accuracy: {_percent(test)}\n"
            f"Accuracy of the final parameters on the training set: {_percent(train)}\n"
            f"Gap: {gap:.2f} points{' of overfitting' if gap > 0 else ''}\n"
            f"Run folder: {self.workdir}"
        )

    def close(self) -> None:
        """Writes what TensorBoard's writer still holds in its queue."""
        if self._events:
            self._events.close()

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        (self.workdir / name).write_text(json.dumps(values, indent=2) + "\n")

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch:>{len(str(self.config.num_epochs))}}/{self.config.num_epochs}"


def _make_new_folder(path: Path) -> Path:
    """Makes the folder `path` or, where there is one, one with a name a little longer."""
    try:
        path.mkdir(parents=True)
        return path
    except FileExistsError:
        return _make_new_folder(path.with_name(f"{path.name}_"))


def _flatten(summaries: dict[str, Summary]) -> dict[str, float]:
    return {
        f"{split}_{name}": value
        for split, summary in summaries.items()
        for name, value in dataclasses.asdict(summary).items()
    }


def _describe(name: str, summary: Summary) -> str:
    name = name.replace("_", " ")
    return f"{name} loss {summary.loss:.4f} accuracy {100 * summary.accuracy:.2f} %"


def _percent(summary: Summary) -> str:
    return f"{100 * summary.accuracy:.2f} % ({summary.correct:,} of {summary.count:,})"


def show_log_messages() -> None:
    """For a program: prints the package's log messages, and silences those of its libraries."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("mnist_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(
        logging.CRITICAL
    )  # TFDS advertises OpenCV; Orbax logs what it raises
