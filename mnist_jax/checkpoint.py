"""Checkpoints with Orbax: the only module that knows it."""

import contextlib
import ctypes
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnist_jax.config import differences
from mnist_jax.errors import RunError
from mnist_jax.metrics import Metrics
from mnist_jax.processes import LOST, is_loss
from mnist_jax.steps import TrainState

log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """All that a run needs to go on as if it had never stopped."""

    state: TrainState
    metrics: Metrics
    """Of the epoch in flight, with zeros for the steps to come."""
    history: list[dict[str, Any]]
    """The records of the epochs before it, as metrics.jsonl has them."""


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of a run: folders named after their steps, the newest `keep` of them.

    Orbax writes each in the background, under another name until it is whole. What was written it
    restores without a look, flipped bytes too: hence the digests.
    """

    def __init__(
        self, directory: Path, keep: int, origin: dict[str, Any], *, read_only: bool = False
    ) -> None:
        """Opens or makes `directory`; `origin` is what decides the run, and must never differ.

        With `read_only` nothing there changes, a run may go on in it, and `origin` may be a part.
        """
        import orbax.checkpoint as ocp  # takes a while, which `--help` need not wait for

        self._ocp = ocp
        self.directory = directory.absolute()
        _ignore_closed_loops()
        self._keep = keep
        self._damaged: list[int] = []
        self._old: list[int] = []
        self._origin = _as_json(origin)
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        try:
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self.directory).close()  # else only the first save fails
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except Exception as error:  # Orbax passes on what its storage raises, which is no OSError
            raise RunError(f"{directory} cannot be opened: {error}") from error

    def save(self, progress: Progress) -> None:
        """Starts to save; waits only for the save before it, and for a copy of the arrays.

        Raises:
            RunError: this, or the save before it, cannot be written.
            FloatingPointError: the state is not finite, so that no run could go on from here.
        """
        step = int(progress.state.step)
        # Copies: training reuses the memory of the originals.
        arrays = jax.tree.map(np.array, progress[:2])
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays)):
            raise FloatingPointError(f"the state is not finite after step {step}")
        record = _as_json(
            {
                "origin": self._origin,
                "history": progress.history,
                "leaves": _describe(arrays),
                "arrays": _digest_arrays(arrays),
            }
        )
        args = self._ocp.args.Composite(
            arrays=self._ocp.args.StandardSave(arrays),
            record=self._ocp.args.JsonSave({"record": record, "digest": _digest_record(record)}),
        )
        self.wait()
        _give_memory_back()
        try:
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + 2**20
            if shutil.disk_usage(self.directory).free < needed:  # Orbax says so in a hundred lines
                raise OSError(f"the disk is full; {needed / 2**20:.0f} MiB are needed")
            if not self._manager.save(step, args=args):
                raise OSError(f"Orbax refuses step {step}")
        except Exception as error:
            raise self._cannot_save(error) from error

    def wait(self) -> None:
        """Waits until the save before, if any, is on the disk."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_save(error) from error

    def _cannot_save(self, error: Exception) -> RunError:
        if is_loss(error):
            return RunError(LOST)
        reason = str(error).partition("\n")[0]  # Orbax's go on for pages
        return RunError(f"no checkpoint can be saved in {self.directory}: {reason}")

    def restore(self, template: Progress) -> Progress:
        """The newest intact checkpoint, on the devices of `template`; that itself if there is none.

        A template of `jax.ShapeDtypeStruct`s, without devices, gives NumPy arrays. Damaged ones,
        which are newer, are named. Nothing is changed: that is for `tidy`.

        Raises:
            RunError: none is intact, or one cannot be read; or the run's data, settings or model
                are not these.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for i, step in enumerate(steps):
            try:
                progress = self._read(step, template)
            except (RunError, MemoryError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # on damaged bytes, Orbax raises what it likes
                if self._read_only and self._has_grown(steps[0]):  # and may have lost its oldest
                    return self.restore(template)
                path = self.directory / str(step)
                if refusal := _refusal(error, path):
                    raise RunError(f"{path} cannot be read: {refusal}") from error
                log.warning(f"{path} is damaged and not used: {str(error).partition(': ')[0]}")
                continue
            self._damaged, self._old = steps[:i], steps[i + self._keep :]
            return progress
        if steps:
            raise RunError(f"no checkpoint in {self.directory} is intact; begin anew elsewhere")
        return template

    def _has_grown(self, newest: int) -> bool:
        """Whether the run has saved again."""
        self._manager.reload()
        return max(self._manager.all_steps(), default=newest) > newest

    def tidy(self) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again; deletes old ones."""
        for step in self._damaged if jax.process_index() == 0 else ():
            aside = self.directory / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self.directory / str(step)).rename(aside)
        multihost_utils.sync_global_devices("tidy")
        self._manager.reload()
        for step in self._old:  # a process was killed before it did
            self._manager.delete(step)

    def _read(self, step: int, template: Progress) -> Progress:
        args = self._ocp.args
        saved = self._manager.restore(step, args=args.Composite(record=args.JsonRestore()))[
            "record"
        ]
        record = saved["record"]
        if _digest_record(record) != saved["digest"]:
            raise ValueError("its record does not match its digest")
        arrays, origin = template[:2], record["origin"]
        if self._read_only:
            origin = {name: origin.get(name) for name in self._origin}
        for here, there in ((self._origin, origin), (_describe(arrays), record["leaves"])):
            if different := differences(there, here):
                raise RunError(f"{self.directory / str(step)} is of another run: {different}")
        shapes = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, arrays)
        restored = self._manager.restore(
            step, args=args.Composite(arrays=args.StandardRestore(shapes))
        )["arrays"]
        if _digest_arrays(restored) != record["arrays"]:
            raise ValueError("its arrays do not match their digest")
        state, metrics = restored
        if int(state.step) != step:
            raise ValueError(f"it is that of step {int(state.step)}")
        return Progress(state, metrics, record["history"])

    def newest(self) -> Path | None:
        """The newest checkpoint on the disk, if there is one."""
        with contextlib.suppress(RunError):  # then it is the one before
            self.wait()
        step = self._manager.latest_step()
        return None if step is None else self.directory / str(step)

    def close(self) -> None:
        """Waits until all is on the disk."""
        try:
            self._manager.close()
        except Exception as error:
            raise self._cannot_save(error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes. An error that ended the run is told before what it did to the last save."""
        try:
            self.close()
        except RunError:
            if error is None:
                raise


def _refusal(error: Exception, path: Path) -> str | None:
    """Why the system refused to read the checkpoint, if it did: that says nothing of its bytes."""
    for file in (path, *path.rglob("*")):  # Orbax takes for missing what it may not read
        if not os.access(file, os.R_OK):
            return f"no permission for {file}"
    missing = FileNotFoundError, NotADirectoryError, IsADirectoryError
    refused = isinstance(error, OSError) and not isinstance(error, missing)
    return str(error) if refused or "RESOURCE_EXHAUSTED" in str(error) else None


def _give_memory_back() -> None:
    """Each of Orbax's threads frees what it used, but glibc would keep it for that thread."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache  # once a process
def _ignore_closed_loops() -> None:
    """Where one of Orbax's reads or writes fails, the others complain to its closed event loop."""
    hook = sys.unraisablehook

    def ignore_closed_loops(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = ignore_closed_loops


def _as_json(value: Any) -> Any:
    """`value` as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def _describe(arrays: Any) -> dict[str, str]:
    """The dtype and shape of each leaf, by its path in the tree."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(arrays)
    }


def _digest_arrays(arrays: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _digest_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
