"""What a run leaves in its folder, and what a person sees of it."""

import contextlib
import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import flax.linen as nn
import jax
import rich.progress

import mnist_jax
from mnist_jax.config import CONFIG_FILE, Config, format_config
from mnist_jax.errors import ConfigError, Interrupted, RunError
from mnist_jax.input_pipeline import Dataset
from mnist_jax.metrics import Summary, describe_accuracy, describe_gap, flatten
from mnist_jax.model import count_parameters
from mnist_jax.processes import is_first_process
from mnist_jax.runtime import console, describe_devices
from mnist_jax.steps import TrainState
from mnist_jax.workdir import (
    check_history,
    check_same_folder,
    checkpoint_steps,
    lock_folder,
    naming,
    new_folder,
    read_object,
    rewrite_metrics,
    write_whole,
)

VERSIONS = {"mnist_jax": mnist_jax.__version__, "jax": jax.__version__}


class RunLog(contextlib.AbstractContextManager["RunLog"]):
    """A run folder and its files; no other run can train in it meanwhile.

    They are config.json (the Config), run.json (what it runs on, and how it stands), metrics.jsonl
    (a line an epoch, written as it happens), result.json and, if wanted, TensorBoard events.
    Where a run has several processes, the first one locks and writes.
    """

    def __init__(self, workdir: str | Path | None, config: Config) -> None:
        """Takes the folder, if it is there; `take_folder` makes it, once there is data.

        Raises:
            ConfigError: it holds another run; or TensorBoard is wanted and not installed.
            RunError: it holds something else; or another process trains in it.
        """
        self._writes = is_first_process()
        if jax.process_count() > 1 and workdir is None:
            raise ConfigError("several processes need a folder that they share: --workdir DIR")
        if config.tensorboard and not importlib.util.find_spec("tensorboardX"):
            raise ConfigError('tensorboard needs tensorboardX: pip install -e ".[tensorboard]"')
        self.config = config
        self.history: list[dict[str, Any]] = []
        self._wanted = Path(os.path.expanduser(workdir)) if workdir else None
        self._lock: int | None = None
        self._run: dict[str, Any] = {"saved": False}
        self._events: Any = None
        if self._wanted and self._wanted.exists():
            self.take_folder()

    def take_folder(self) -> Path:
        """Makes the folder, unless it is there, and returns it."""
        if self._lock is not None:
            check_same_folder(self.workdir, self._lock)
        elif self._wanted and not self._writes:
            self.workdir = self._wanted
        else:
            self.workdir = self._wanted or new_folder()
            if self.workdir.is_file():
                raise RunError(f"{self.workdir} is a file; name a folder with --workdir")
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.workdir, self.config)
        return self.workdir

    def with_recorded_dataset(self) -> Config:
        """The config, with the dataset that the run in the folder is really on, if there is one.

        A run that fell back on the sample goes on with it, though mnist can be had by now.
        """
        name = read_object(self._wanted / "run.json").get("dataset") if self._wanted else None
        if (self.config.dataset, name) != ("mnist", "mnist_sample"):
            return self.config
        if self.config.require_full_data:
            raise RunError(f"the run in {self._wanted} is on {name}, not on the full data")
        return dataclasses.replace(self.config, dataset=name)

    def check_folder(self) -> None:
        """Notes the first checkpoint, so that its loss would not pass for a new beginning.

        Raises:
            RunError: the folder was moved or removed; Orbax would make another in its place.
        """
        self.take_folder()
        if self._writes and not self._run["saved"] and checkpoint_steps(self.workdir):
            self._run["saved"] = True
            self._write_json("run.json", self._run)

    def start(
        self, dataset: Dataset, model: nn.Module, state: TrainState, history: list[dict[str, Any]]
    ) -> None:
        """Records and says what will run, on what, and after which step and epochs.

        Raises:
            RunError: the checkpoints that there were are lost; or it has more epochs already.
        """
        config, step = self.config, int(state.step)
        check_history(self.workdir, step, history, config.num_epochs)
        self.history = history
        if not self._writes:
            return
        self._announce(dataset, model, state, len(history))
        # First of all: by this file a folder is known to hold a run.
        write_whole(self.workdir / CONFIG_FILE, format_config(config))
        rewrite_metrics(self.workdir, history)
        self._run = {
            "dataset": dataset.name,
            **_sizes(dataset),
            **VERSIONS,
            "devices": describe_devices(),
            "saved": step > 0,
            "status": "running",
        }
        self._write_json("run.json", self._run)
        if len(history) < config.num_epochs:
            (self.workdir / "result.json").unlink(missing_ok=True)
        if config.tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(self.workdir), purge_step=step + 1)

    def _announce(
        self, dataset: Dataset, model: nn.Module, state: TrainState, num_finished: int
    ) -> None:
        versions = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
        sizes = ", ".join(f"{n:,} {split}" for split, n in _sizes(dataset).items())
        console.print(
            f"{versions}, {describe_devices()}\n"
            f"{dataset.name}: {sizes} images\n"
            f"{type(model).__name__}: {count_parameters(state.params):,} parameters; "
            f"{self.config.optimizer}, batches of {self.config.batch_size}, seed {self.config.seed}"
        )
        if num_finished == self.config.num_epochs:
            console.print(f"{self.workdir} is finished; more --num-epochs would continue it")
        elif state.step > 0:
            console.print(f"Continuing {self.workdir} after step {int(state.step):,}")
        elif (self.workdir / "run.json").exists():
            console.print(f"{self.workdir} has no checkpoint: beginning anew")

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
        self.check_folder()
        record = {"epoch": epoch, "step": step, **flatten(summaries), "seconds": seconds}
        self.history.append(record)
        if not self._writes:
            return
        path = self.workdir / "metrics.jsonl"
        with naming(path), path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._events:
            for name, value in record.items():
                self._events.add_scalar(name, value, step)
        numbers = "   ".join(_describe(*item) for item in summaries.items())
        console.print(f"{self._title(epoch)}   {numbers}   {seconds:.1f} s")

    def finish(self, train: Summary, test: Summary) -> None:
        """Records and says the result: metrics of the final parameters."""
        self.check_folder()
        if not self._writes:
            return
        result = flatten({"train": train, "test": test})
        self._write_json("result.json", result)
        console.print(
            f"Test accuracy: {describe_accuracy(result, 'test')}\n"
            "Accuracy of the final parameters on the training set: "
            f"{describe_accuracy(result, 'train')}\n"
            f"Gap: {describe_gap(result)}\n"
            f"Run folder: {self.workdir}"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Records how the run stands, and leaves the folder to others."""
        try:
            if "status" in self._run:  # it had begun
                self.check_folder()  # what is there by now may be another run's
                self._run["status"] = "finished"
                if isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
                    self._run["status"] = "interrupted"
                elif error:
                    self._run |= {"status": "failed", "error": str(error)}
                self._write_json("run.json", self._run)
            if self._events:
                self._events.close()
        except (OSError, RunError):
            if not error:  # else the disk may be full, as `error` says
                raise
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        write_whole(self.workdir / name, json.dumps(values, indent=2) + "\n")

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch:>{len(str(self.config.num_epochs))}}/{self.config.num_epochs}"


def _sizes(dataset: Dataset) -> dict[str, int]:
    return {split: len(rows) for split, rows in dataset.splits.items()}


def _describe(name: str, summary: Summary) -> str:
    name = name.replace("_", " ")
    return f"{name} loss {summary.loss:.4f} accuracy {100 * summary.accuracy:.2f} %"
