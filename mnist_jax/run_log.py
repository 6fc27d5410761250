"""What a run leaves in its folder, and what a person sees of it."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import tempfile
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
from mnist_jax.metrics import Summary
from mnist_jax.model import count_parameters
from mnist_jax.runtime import console, describe_devices
from mnist_jax.steps import TrainState
from mnist_jax.workdir import (
    check_same_folder,
    has_checkpoint,
    lock_folder,
    naming,
    new_folder,
    write_whole,
)

log = logging.getLogger(__name__)


class RunLog(contextlib.AbstractContextManager["RunLog"]):
    """A run folder and its files; no other process can train in it meanwhile.

    They are config.json (the Config), run.json (what it runs on, and how it stands), metrics.jsonl
    (a line an epoch, written as it happens), result.json and, if wanted, TensorBoard events.
    """

    def __init__(self, workdir: str | Path | None, config: Config) -> None:
        """Takes the folder, if it is there; `take_folder` makes it, once there is data.

        Raises:
            ConfigError: it holds another run; or TensorBoard is wanted and not installed.
            RunError: it holds something else; or another process trains in it.
        """
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
        name = None if self._lock is None else self._recorded().get("dataset")
        if (self.config.dataset, name) != ("mnist", "mnist_sample"):
            return self.config
        if self.config.require_full_data:
            raise RunError(f"the run in {self.workdir} is on {name}, not on the full data")
        return dataclasses.replace(self.config, dataset=name)

    def _recorded(self) -> dict[str, Any]:
        return _read_object(self.workdir / "run.json")

    def check_folder(self) -> None:
        """Notes the first checkpoint, so that its loss would not pass for a new beginning.

        Raises:
            RunError: the folder was moved or removed; Orbax would make another in its place.
        """
        self.take_folder()
        if not self._run["saved"] and has_checkpoint(self.workdir):
            self._run["saved"] = True
            self._write_json("run.json", self._run)

    def start(
        self, dataset: Dataset, model: nn.Module, state: TrainState, history: list[dict[str, Any]]
    ) -> None:
        """Records and says what will run, on what, and after which step and epochs.

        Raises:
            RunError: the checkpoints that there were are lost; or it has more epochs already.
        """
        config, step, devices = self.config, int(state.step), describe_devices()
        begun = (self.workdir / "run.json").exists()
        self._check_history(step, history)
        versions = {"mnist_jax": mnist_jax.__version__, "jax": jax.__version__}
        sizes = {split: len(rows) for split, rows in dataset.splits.items()}
        console.print(
            f"mnist_jax {mnist_jax.__version__}, jax {jax.__version__}, {devices}\n"
            f"{dataset.name}: {', '.join(f'{n:,} {split}' for split, n in sizes.items())} images\n"
            f"{type(model).__name__}: {count_parameters(state.params):,} parameters; "
            f"{config.optimizer}, batches of {config.batch_size}, seed {config.seed}"
        )
        if finished := len(history) == config.num_epochs:
            console.print(f"{self.workdir} is finished; more --num-epochs would continue it")
        elif step:
            console.print(f"Continuing {self.workdir} after step {step:,}")
        elif begun:
            console.print(f"{self.workdir} has no checkpoint: beginning anew")
        # First of all: by this file a folder is known to hold a run.
        write_whole(self.workdir / CONFIG_FILE, format_config(config))
        self._rewrite_metrics(history)
        self.history = history
        state_of_run = {"saved": step > 0, "status": "running"}
        self._run = {
            "dataset": dataset.name,
            **sizes,
            **versions,
            "devices": devices,
            **state_of_run,
        }
        self._write_json("run.json", self._run)
        if not finished:
            (self.workdir / "result.json").unlink(missing_ok=True)
        if config.tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(self.workdir), purge_step=step + 1)

    def _check_history(self, step: int, history: list[dict[str, Any]]) -> None:
        """Raises RunError if the run cannot be that of a checkpoint with `step` and `history`."""
        finished = (self.workdir / "result.json").exists()
        # The line of an epoch is written when the checkpoint before it is: the second proves one.
        lines = self._read_metrics().count("\n")
        if not step and (lines > 1 or finished or self._recorded().get("saved")):
            raise RunError(f"{self.workdir} has lost its checkpoints; name another --workdir")
        epochs = len(history) + (step > (history[-1]["step"] if history else 0))
        if epochs > self.config.num_epochs:
            raise RunError(f"{self.workdir} is in epoch {epochs} already; ask for as many")

    def _read_metrics(self) -> str:
        path = self.workdir / "metrics.jsonl"
        return path.read_text(errors="replace") if path.exists() else ""

    def _rewrite_metrics(self, history: list[dict[str, Any]]) -> None:
        """Writes metrics.jsonl as the checkpoint knows it: the file may be ahead, or damaged."""
        path, found = self.workdir / "metrics.jsonl", self._read_metrics()
        known = "".join(json.dumps(record) + "\n" for record in history)
        if not found.startswith(known):
            log.warning(f"{path} was damaged; it is written anew, nothing is lost.")
        elif found.count("\n") > len(history) + 1:  # the last one may not have been saved yet
            log.warning(f"{self.workdir} has lost its checkpoints after epoch {len(history)}.")
        write_whole(path, known)

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
        record = {"epoch": epoch, "step": step, **_flatten(summaries), "seconds": seconds}
        self.history.append(record)
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
        self._write_json("result.json", _flatten({"train": train, "test": test}))
        gap = 100 * (train.accuracy - test.accuracy)
        console.print(
            f"Test accuracy: {_percent(test)}\n"
            f"Accuracy of the final parameters on the training set: {_percent(train)}\n"
            f"Gap: {gap:.2f} points{' of overfitting' if gap > 0 else ''}\n"
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


class SilentRunLog(RunLog):
    """That of a process which is not the first: in a folder that is soon removed."""

    def __init__(self, workdir: Path, config: Config) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="mnist_jax.")
        self._shared = workdir
        console.quiet = True
        super().__init__(self._scratch.name, config)

    def take_folder(self) -> Path:
        """Returns the folder of the run itself."""
        super().take_folder()
        return self._shared

    def _recorded(self) -> dict[str, Any]:
        return _read_object(self._shared / "run.json")

    def _rewrite_metrics(self, history: list[dict[str, Any]]) -> None:
        """Leaves that to the first process."""


def open_run_log(workdir: str | Path | None, config: Config) -> RunLog:
    """The RunLog of this process: where a run has several, only the first one writes and prints."""
    if jax.process_count() > 1 and workdir is None:
        raise ConfigError("several processes need a folder that they share: --workdir DIR")
    if jax.process_index() > 0:
        return SilentRunLog(Path(os.path.expanduser(str(workdir))), config)
    return RunLog(workdir, config)


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one, if that is damaged or not there."""
    try:
        read = json.loads(path.read_text())
    except (ValueError, FileNotFoundError):
        return {}
    return read if isinstance(read, dict) else {}


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
