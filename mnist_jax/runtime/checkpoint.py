"""Checkpoints with Orbax: a pytree of arrays, and the progress of the run as JSON.

Orbax does not detect corruption, so we store digests.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mnist_jax.runtime.errors import RunError
from mnist_jax.runtime.workdir import FORMAT, RunDirectory, differences

log = logging.getLogger(__name__)
ADVICE = "start a new run in another --workdir"


class Restored(NamedTuple):
    """What `Checkpoints.save` was given."""

    tree: Any
    progress: dict[str, Any]


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of a run: directories named after their steps, the newest `keep` of them.

    Orbax writes each one in the background, under a temporary name until it is complete.
    `last_step` is the step that was saved or restored last.
    """

    def __init__(self, run_dir: RunDirectory, keep: int = 3) -> None:
        """Opens or creates the directory of the checkpoints; RunError if that is impossible."""
        import orbax.checkpoint as ocp  # takes 0.3 s, which `--help` does not need

        _hide_echoes()
        self._ocp = ocp
        self.run_dir = run_dir
        self.last_step = 0
        self._directory = (run_dir.path / "checkpoints").absolute()
        self._damaged: list[int] = []
        read_only = run_dir.is_read_only
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        try:
            if not read_only:
                self._directory.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=self._directory).close()  # fails now, not at a save
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except Exception as error:  # Orbax passes on any error of its storage
            raise RunError(f"{self._directory} cannot be opened: {error}") from error

    def save(self, step: int, tree: Any, progress: dict[str, Any]) -> None:
        """Waits for the previous save, starts this one. Its errors may come at the next call."""
        arrays = jax.tree.map(np.array, tree)  # a copy: training reuses the memory
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays)):
            raise RunError(f"the state is not finite after step {step}, and is not saved")
        saved = {
            "format": FORMAT,
            "step": step,
            "fingerprint": self.run_dir.info["fingerprint"],
            "leaves": _describe_leaves(arrays),
            "digest_of_arrays": _digest_arrays(arrays),
            "progress": progress,
        }
        args = self._ocp.args
        self.wait()
        try:
            while self._damaged:  # their steps can then be saved again
                self._manager.delete(self._damaged.pop())
            record_args = args.JsonSave({"saved": saved, "digest": _digest_json(saved)})
            items = args.Composite(arrays=args.StandardSave(arrays), record=record_args)
            if not self._manager.save(step, args=items):
                raise OSError(f"Orbax refuses to save step {step}")
        except Exception as error:
            raise self._save_error(error) from error
        self.last_step = step
        if not self.run_dir.info["saved"]:
            self.wait()
            # Record that a checkpoint exists, so that a missing one is noticed.
            self.run_dir.update(saved=True)

    def wait(self) -> None:
        """Waits until the previous save, if any, is complete; RunError if it fails."""
        self.run_dir.check_not_moved()  # Orbax would create the directory again
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_error(error) from error

    def _save_error(self, error: Exception) -> RunError:
        reason = str(error).partition("\n")[0]  # Orbax's messages are pages long
        if code := re.search(r"os_error_code='(\d+)'", reason):
            reason = os.strerror(int(code[1]))  # "No space left on device"
        return RunError(f"no checkpoint can be saved in {self._directory}: {reason}")

    def restore(self, template: Any) -> Restored | None:
        """The newest intact checkpoint; None if there is none at all. Changes no file.

        The arrays of `template` tell on which devices to restore; if they are
        `jax.ShapeDtypeStruct`s, the result is NumPy arrays. RunError if the checkpoints are
        missing, damaged, unreadable, or of a different run or model.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for i, step in enumerate(steps):
            try:
                restored = self._read(step, template)
            except (RunError, MemoryError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # on damaged bytes, Orbax raises anything
                self._manager.reload()
                if self._manager.latest_step() != steps[0]:
                    return self.restore(template)  # the run has deleted this one meanwhile
                path = self._directory / str(step)
                if refusal := _find_refusal(error, path):
                    raise RunError(f"{path} cannot be read: {refusal}") from error
                reason = str(error).partition(": ")[0]
                log.warning(f"{path} is damaged and is not used: {reason}")
                continue
            self._damaged, self.last_step = steps[:i], step
            return restored
        if steps:
            raise RunError(f"all checkpoints in {self._directory} are damaged; {ADVICE}")
        if self.run_dir.info["saved"]:
            raise RunError(f"the checkpoints of {self.run_dir.path} are missing; {ADVICE}")
        return None

    def _read(self, step: int, template: Any) -> Restored:
        args, path = self._ocp.args, self._directory / str(step)
        item = self._manager.restore(step, args=args.Composite(record=args.JsonRestore()))["record"]
        saved = item["saved"]
        if _digest_json(saved) != item["digest"]:
            raise ValueError("its record does not match its digest")
        if saved["format"] != FORMAT:
            raise RunError(f"{path} has format {saved['format']}, not {FORMAT}; {ADVICE}")
        if saved["step"] != step:
            raise ValueError(f"it holds step {saved['step']}")
        before = saved["fingerprint"] | saved["leaves"]
        now = self.run_dir.info["fingerprint"] | _describe_leaves(template)
        if different := differences(before, now):
            raise RunError(f"{path} belongs to a different run: {different}")
        shapes = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, template)
        restore_args = args.Composite(arrays=args.StandardRestore(shapes))
        tree = self._manager.restore(step, args=restore_args)["arrays"]
        if _digest_arrays(tree) != saved["digest_of_arrays"]:
            raise ValueError("its arrays do not match their digest")
        return Restored(tree, saved["progress"])

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        """Waits until everything is saved. The run's own error takes precedence."""
        try:
            self._manager.close()
        except Exception as failure:
            if error is None:
                raise self._save_error(failure) from failure


def _find_refusal(error: Exception, path: Path) -> str | None:
    """The system's reason not to read a checkpoint, whose bytes may be intact; or None."""
    for file in (path, *path.rglob("*")):  # Orbax reports an unreadable file as missing
        if not os.access(file, os.R_OK):
            return f"no permission for {file}"
    missing = FileNotFoundError, NotADirectoryError, IsADirectoryError
    is_refused = isinstance(error, OSError) and not isinstance(error, missing)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # of TensorStore
    if code and int(code[1]) not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        is_refused = True
    return str(error) if is_refused or "RESOURCE_EXHAUSTED" in str(error) else None


@functools.cache  # once per process
def _hide_echoes() -> None:
    """Hides tracebacks that repeat a known error: after it, other threads of Orbax fail, too."""
    show = sys.unraisablehook
    echoes = "Event loop is closed", "Encountered error while reading array index"

    def show_others(unraisable: Any) -> None:
        if not str(unraisable.exc_value).startswith(echoes):
            show(unraisable)

    sys.unraisablehook = show_others


def _describe_leaves(tree: Any) -> dict[str, str]:
    """The dtype and shape of each leaf, by its path in the tree."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _digest_arrays(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
