"""What several test files share: a small network, made-up images, and a compiled step."""

import contextlib
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

from mnist_jax.config import Config
from mnist_jax.data.pipeline import Examples
from mnist_jax.model import MLP
from mnist_jax.optimizer import make_optimizer
from mnist_jax.runtime.cli import parse
from mnist_jax.runtime.program import run_program
from mnist_jax.steps import TrainState, init_state, train_step
from mnist_jax.train import Result

PIXELS, CLASSES = 12, 4
RNG = np.random.default_rng(0)
IMAGES = RNG.random((50, PIXELS), np.float32)
LABELS = RNG.integers(0, CLASSES, 50).astype(np.int32)
EXAMPLES = Examples(jnp.asarray(IMAGES), jnp.asarray(LABELS))
MODEL = MLP((16,), num_classes=CLASSES)
STATIC: dict[str, Any] = {"model": MODEL, "tx": make_optimizer(Config(), total_steps=100)}
jit_step = jax.jit(train_step, static_argnames=("model", "tx"))


def assert_first_step_alike(
    gradients: tuple[np.ndarray, np.ndarray], params: tuple[np.ndarray, np.ndarray]
) -> None:
    """Gradients agree to 1e-6 of the largest, and parameters after RMSprop's first step to 1e-6.

    Parameters whose gradient nearly vanishes are not compared: the step divides the gradient by its
    own size plus 1e-7, which makes its rounding error ten thousand times larger.
    """
    scale = np.abs(gradients[0]).max()
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-6, atol=1e-6 * scale)
    clear = np.abs(gradients[0]) > 1e-3 * scale
    assert clear.mean() > 0.1
    np.testing.assert_allclose(params[1][clear], params[0][clear], rtol=1e-6, atol=1e-6)


def to_float64(tree: Any) -> Any:
    return jax.tree.map(np.float64, tree)


def new_state(seed: int = 0, **static: Any) -> TrainState:
    return init_state(jax.random.key(seed), PIXELS, **{**STATIC, **static})


def call(command: ModuleType, *words: object) -> int:
    """Runs a command in this process as `python -m mnist_jax` does. Returns the exit code."""
    args = [str(word) for word in words]
    return run_program(lambda: command.main(parse(command.Options, "a test", args)))


def draw_seven(size: tuple[int, int] = (300, 400), ink: int = 20, paper: int = 230) -> Image.Image:
    """A grey picture of the digit 7."""
    image = Image.new("L", size, paper)
    points = [(x * size[0], y * size[1]) for x, y in [(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)]]
    ImageDraw.Draw(image).line(points, ink, width=size[0] // 12, joint="curve")
    return image


def encode(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """The content of an image file."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, form, **options)
    return file.getvalue()


def make_png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG file from chunks, which may contradict its size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + checksum
    return content


def make_large_file(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**10)


SEVEN_PNG, SEVEN_JPEG = encode(draw_seven()), encode(draw_seven(), "JPEG")
ZEROS = (b"IDAT", zlib.compress(b"\0" * 10**7))
TEXT = (b"zTXt", b"name\0\0" + zlib.compress(b" " * 10**8, 9))
NOISE = np.random.default_rng(0).normal(200, 2, (300, 300)).astype(np.uint8)
# Bad files: the content, or a function that makes the file; and a part of the error message, or ""
# if Pillow can read the file.
BAD_FILES: dict[str, tuple[bytes | Callable[[Path], object], str]] = {
    "empty": (b"", "empty"),
    "text": (b"seven\n" * 100, "not an image"),
    "missing": (lambda path: None, "No such file"),
    "folder": (Path.mkdir, "neither a regular file"),
    "pipe": (os.mkfifo, "neither a regular file"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "neither a regular file"),
    "link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
    "10 GB": (make_large_file, "over 50 MB"),
    "half a PNG": (SEVEN_PNG[: len(SEVEN_PNG) // 2], "truncated"),
    "damaged PNG": (SEVEN_PNG[:90] + b"\xff" + SEVEN_PNG[91:], ""),
    "900 million pixels": (make_png(30_000, 30_000, ZEROS), "too many pixels"),
    "81 million pixels": (make_png(9000, 9000, ZEROS), "too many pixels"),
    "JPEG of 4 billion pixels": (
        SEVEN_JPEG.replace(struct.pack(">HH", 400, 300), b"\xff\xdc\xff\xdc", 1),
        "too many pixels",
    ),
    "100 MB of text": (make_png(1, 1, TEXT, (b"IDAT", zlib.compress(b"\0\0"))), ""),
    "white": (encode(Image.new("L", (100, 100), 255)), "blank"),
    "transparent": (encode(Image.new("RGBA", (100, 100), (9, 9, 9, 0))), "blank"),
    "one pixel": (encode(Image.new("L", (1, 1))), "blank"),
    "photograph of paper": (encode(NOISE, "JPEG"), "blank"),
    "only nan": (encode(np.full((30, 30), np.nan, np.float32), "TIFF"), "blank"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "half a WebP": (encode(draw_seven(), "WEBP")[:99], ""),
    "TIFF without an end": (b"II*\0\x08\0\0\0\x01\0" + b"\xff" * 50, ""),
    "damaged EXIF": (encode(draw_seven(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), ""),
}


def read_history(workdir: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, without the seconds, which differ between equal runs."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"]
    return records


def newest_step(workdir: Path) -> int:
    """The step of the newest complete checkpoint; 0 if there is none."""
    return max((int(path.name) for path in workdir.glob("checkpoints/*[0-9]")), default=0)


def read_checkpoint_record(workdir: Path) -> dict[str, Any]:
    """What the newest checkpoint holds beside its arrays, as Orbax wrote it."""
    path = workdir / "checkpoints" / str(newest_step(workdir)) / "record" / "metadata"
    return json.loads(path.read_text())["saved"]


def read_outcome(workdir: Path) -> dict[str, Any]:
    """What two runs that end with the same bits have in common."""
    return {
        "history": read_history(workdir),
        "result": (workdir / "result.json").read_text(),
        "digest of the arrays": read_checkpoint_record(workdir)["digest_of_arrays"],
    }


def snapshot(folder: Path) -> dict[Path, bytes]:
    """The content of every file in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(result: Result, whole: Result) -> None:
    """Two runs end with the same bits, metrics, results and files."""
    chex.assert_trees_all_equal(result.state, whole.state)
    assert (result.train, result.test) == (whole.train, whole.test)
    assert read_history(result.workdir) == read_history(whole.workdir)
    for name in ("run.json", "result.json"):
        assert (result.workdir / name).read_text() == (whole.workdir / name).read_text()
    names = [sorted(path.name for path in run.workdir.iterdir()) for run in (result, whole)]
    assert names[0] == names[1]


def make_idx(shape: tuple[int, ...], data: bytes, magic: bytes = b"\0\0\x08") -> bytes:
    """The content of a gzipped IDX file, the format of the official MNIST files."""
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return gzip.compress(magic + bytes([len(shape)]) + sizes + data)


def flip_byte(path: Path, position: int | None = None) -> None:
    """Inverts one byte of a file, by default the one in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 0xFF
    path.write_bytes(data)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """Mounts a file system of `size`, for example 12m, at `path`."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
