"""Where the metrics of a run go: metrics.jsonl, the console, TensorBoard."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress

from mnist_jax.runtime.devices import is_first_process
from mnist_jax.runtime.program import console
from mnist_jax.runtime.workdir import name_errors, write_whole

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over the examples of many batches, in float64."""

    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0

    def add(self, loss_sums: Any, correct: Any, counts: Any) -> "Totals":
        """Adds numbers of batches, in order: the size of the chunks does not change the sum."""
        losses = np.append(self.loss_sum, np.asarray(loss_sums, np.float64))
        loss_sum = float(np.add.accumulate(losses)[-1])
        correct, count = self.correct + int(np.sum(correct)), self.count + int(np.sum(counts))
        return Totals(loss_sum, correct, count)

    @property
    def loss(self) -> float:
        """The mean loss of an example."""
        return self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        """The fraction of the examples that are correct."""
        return self.correct / self.count

    def as_record(self, split: str) -> dict[str, float]:
        """Named numbers for a JSON object: `test_loss`, `test_accuracy`, and so on."""
        names = "loss", "accuracy", "correct", "count"
        return {f"{split}_{name}": getattr(self, name) for name in names}

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.2f} % ({self.correct:,} of {self.count:,})"


class MetricWriter(contextlib.AbstractContextManager["MetricWriter"]):
    """Writes one record of numbers per epoch. In a run of several processes, the first one writes.

    `history` holds the records of all epochs, also of those before a resume.
    """

    def __init__(
        self, workdir: Path, history: list[dict[str, Any]], num_epochs: int, tensorboard: bool
    ) -> None:
        """Opens metrics.jsonl in `workdir`, and makes it equal to `history`."""
        self.history = history
        self._path = workdir / "metrics.jsonl"
        self._num_epochs = num_epochs
        self._events: Any = None
        if not is_first_process():
            return
        self._rewrite()
        if tensorboard:
            from tensorboardX import SummaryWriter

            # TensorBoard ignores what a killed run wrote from `purge_step` on.
            first_step = history[-1]["step"] + 1 if history else 0
            self._events = SummaryWriter(str(workdir), purge_step=first_step)

    def _rewrite(self) -> None:
        """Writes `history` to the file, which may be damaged, or ahead of the checkpoint."""
        found = self._path.read_text(errors="replace") if self._path.exists() else ""
        known = "".join(json.dumps(record) + "\n" for record in self.history)
        if not found.startswith(known):
            log.warning(f"{self._path} was missing or damaged and is rewritten; no epoch is lost")
        elif found.count("\n") > len(self.history) + 1:  # the last epoch may not have been saved
            last = len(self.history)
            log.warning(f"checkpoints after epoch {last} are missing; later epochs are repeated")
        write_whole(self._path, known)

    def write(self, record: dict[str, Any]) -> None:
        """Writes the numbers of an epoch; the record has at least `epoch`, `step` and `seconds`."""
        self.history.append(record)
        if not is_first_process():
            return
        with name_errors(self._path), self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._events:
            for name, value in record.items():
                self._events.add_scalar(name, value, record["step"])
        title, metrics = self._title(record["epoch"]), format_metrics(record)
        console.print(f"{title}{metrics}   {record['seconds']:.1f} s")

    @contextlib.contextmanager
    def progress_bar(self, epoch: int, num_steps: int) -> Iterator[Callable[..., None]]:
        """Shows a progress bar on a terminal. Yields `update(step, metrics)`."""
        columns = ("{task.description}", rich.progress.BarColumn(30), "{task.fields[numbers]}")
        with rich.progress.Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            bar = progress.add_task(self._title(epoch), total=num_steps, numbers="")

            def update(step: int, metrics: dict[str, Any]) -> None:
                numbers = f"{step}/{num_steps}{format_metrics(metrics)}"
                progress.update(bar, completed=step, numbers=numbers)

            yield update

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch:>{len(str(self._num_epochs))}}/{self._num_epochs}"

    def __exit__(self, *_: object) -> None:
        if self._events:
            self._events.close()


def format_metrics(record: dict[str, Any]) -> str:
    """Losses and accuracies as text: "   test loss 0.0657 accuracy 98.03 %"."""
    text = ""
    for name, value in record.items():
        split, _, quantity = name.rpartition("_")
        if quantity == "loss":
            text += f"   {split.replace('_', ' ')} loss {value:.4f}"
        elif quantity == "accuracy":
            text += f" accuracy {100 * value:.2f} %"
    return text
