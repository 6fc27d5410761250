"""Where a dataset comes from: decoded cache, prepared TFDS files, official files, a download."""

import io
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mnist_jax.config import Config
from mnist_jax.runtime.errors import DataError, DownloadError, RunError
from mnist_jax.runtime.workdir import RUN_FILE, name_errors, read_run_info, write_whole

log = logging.getLogger(__name__)
UINT8 = np.dtype(np.uint8)

REMEDIES = """Remedies:
  1. connect to the network (behind a proxy, set HTTPS_PROXY) and run again;
  2. or get the four *-ubyte.gz files elsewhere, and name their directory: --manual-dir DIR
  3. or name a directory where TFDS has prepared the dataset as array_record: --data-dir DIR"""


class Arrays(NamedTuple):
    """A dataset as TFDS has it: grey pixels 0..255, and the class of each image."""

    train_images: UInt8[np.ndarray, "train 28 28"]
    train_labels: UInt8[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test 28 28"]
    test_labels: UInt8[np.ndarray, " test"]


def find_arrays(config: Config, workdir: str | Path | None = None) -> tuple[str, Arrays]:
    """The name and the arrays of the dataset: that of `config`, or the embedded sample.

    A run in `workdir` that uses the sample continues with it, even if mnist can be loaded now.
    """
    run = Path(os.path.expanduser(workdir)) if workdir else None
    info = read_run_info(run) if run and (run / RUN_FILE).exists() else {}
    if config.dataset == "mnist" and info and info["fingerprint"]["dataset"] == "mnist_sample":
        if config.require_full_data:
            raise DataError(f"{run} uses mnist_sample, not the full data; use another --workdir")
        return "mnist_sample", load_arrays("mnist_sample", config)
    try:
        return config.dataset, load_arrays(config.dataset, config)
    except DownloadError as error:
        message = f"{config.dataset} cannot be loaded: {error}\n{REMEDIES}"
        if config.dataset != "mnist" or config.require_full_data:
            raise DataError(message) from error
        log.warning(f"Using mnist_sample instead (5,000 digits, about 90 % accuracy): {message}")
    return "mnist_sample", load_arrays("mnist_sample", config)


def load_arrays(name: str, config: Config) -> Arrays:
    """The arrays of the dataset `name`: from the decoded cache, or from TFDS, then cached."""
    data_dir = Path(os.path.expanduser(config.data_dir))
    cache = data_dir / "mnist_jax" / f"{name}.npz"
    try:
        return _read_cache(cache, name)
    except (FileNotFoundError, NotADirectoryError):
        log.info(f"Preparing {name} in {data_dir}. This happens once.")
    except Exception as error:  # on damaged bytes, NumPy and zipfile raise anything
        log.warning(f"{cache} is damaged ({error}) and is rebuilt")
    from mnist_jax.data import tfds_builders  # loads TFDS, which a cached dataset does not need

    manual_dir = Path(os.path.expanduser(config.manual_dir)) if config.manual_dir else None
    arrays = Arrays(*tfds_builders.read_splits(name, data_dir, manual_dir))
    try:
        _write_cache(cache, name, arrays)
    except RunError as error:
        log.warning(f"{error}; the next start decodes again")
    return arrays


def _read_cache(path: Path, name: str) -> Arrays:
    with path.open("rb") as opened, np.load(opened) as file:  # checks the CRC of every array
        arrays = Arrays(*(file[field] for field in Arrays._fields))
        if str(file["name"]) != name:
            raise ValueError(f"it holds {file['name']}")
    for images, labels in (arrays[:2], arrays[2:]):
        if images.shape != (*labels.shape, 28, 28) or {images.dtype, labels.dtype} != {UINT8}:
            raise ValueError(f"it holds {images.dtype}{images.shape} and {labels.dtype} labels")
    return arrays


def _write_cache(path: Path, name: str, arrays: Arrays) -> None:
    with name_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, name=np.array(name), **arrays._asdict())
    write_whole(path, content.getbuffer())
