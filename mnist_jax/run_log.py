"""What a run leaves in its folder, and what a person sees of it."""

import contextlib
import dataclasses
import datetime
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
        now = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
        self.workdir = Path(workdir or f"runs/{now}").expanduser()
        if (self.workdir / "config.json").exists():
            raise RunError(f"{self.workdir} holds a run; name another folder with --workdir.")
        self.config = config
        self.history: list[dict[str, Any]] = []
        self._events = _open_tensorboard(self.workdir) if config.tensorboard else None
        self.workdir.mkdir(parents=True, exist_ok=True)
        save_config(config, self.workdir / "config.json")

    def start(self, dataset: Dataset, state: TrainState) -> None:
        """Records and says what will run, and on what."""
        config, device = self.config, jax.devices()[0]
        devices = f"{jax.device_count()} x {device.device_kind} ({device.platform})"
        versions = {"mnist_jax": mnist_jax.__version__, "jax": jax.__version__}
        sizes = {split: len(rows) for split, rows in dataset.splits.items()}
        self._write_json(
            "run.json", {"dataset": dataset.name, **sizes, **versions, "devices": devices}
        )
        layers = [dataset.examples.images.shape[1], *config.hidden_sizes, 10]
        console.print(
            f"mnist_jax {mnist_jax.__version__}, jax {jax.__version__}, {devices}\n"
            f"{dataset.name}: {', '.join(f'{n:,} {split}' for split, n in sizes.items())} images\n"
            f"MLP {'-'.join(map(str, layers))}: {count_parameters(state.params):,} parameters; "
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
                numbers = f"{step}/{num_steps}   {_describe('train', so_far)}"
                progress.update(task, completed=step, numbers=numbers)

            yield update

    def finish_epoch(
        self, epoch: int, step: int, summaries: dict[str, Summary], seconds: float
    ) -> None:
        """Records and says an epoch's metrics by split; those of `train` are the running ones."""
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


def _flatten(summaries: dict[str, Summary]) -> dict[str, float]:
    return {
        f"{split}_{name}": value
        for split, summary in summaries.items()
        for name, value in dataclasses.asdict(summary).items()
    }


def _describe(split: str, summary: Summary) -> str:
    return f"{split} loss {summary.loss:.4f} accuracy {100 * summary.accuracy:.2f} %"


def _percent(summary: Summary) -> str:
    return f"{100 * summary.accuracy:.2f} % ({summary.correct:,} of {summary.count:,})"


def _open_tensorboard(workdir: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        hint = 'pip install -e ".[tensorboard]"'
        raise ConfigError(f"tensorboard is set, but tensorboardX is missing: {hint}") from None
    return SummaryWriter(str(workdir))


def show_log_messages() -> None:
    """For a program: prints the package's log messages, and silences those of its libraries."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("mnist_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS recommends OpenCV, Orbax narrates
