"""Any picture of a digit becomes what MNIST would have of it, or one line says why not."""

import contextlib
import gzip
import io
import os
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from mnist_jax.config import Config
from mnist_jax.errors import ImageError
from mnist_jax.images import list_images, read_image
from mnist_jax.input_pipeline import load_arrays

RNG = np.random.default_rng(0)


def draw_seven(size: tuple[int, int] = (300, 400), ink: int = 20, paper: int = 230) -> Image.Image:
    image = Image.new("L", size, paper)
    width, height = size
    corners = [(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)]
    points = [(x * width, y * height) for x, y in corners]
    ImageDraw.Draw(image).line(points, ink, width=width // 12, joint="curve")
    return image


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def from_array(values: np.ndarray, form: str = "TIFF") -> bytes:
    return encode(Image.fromarray(values), form)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8) -> bytes:
    """One of grey levels, chunk by chunk."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Of the mean pixel, in levels of 255."""
    return float(np.abs(one.astype(float) - other).mean())


def prepare(image: Image.Image, form: str = "PNG") -> np.ndarray:
    return read_image(encode(image, form))


SEVEN = prepare(draw_seven())


def test_a_block_is_placed_by_hand() -> None:
    """10 x 40 becomes 5 x 20; its middle, at (9.5, 2), goes to (14, 14), rounded to even."""
    image = np.full((300, 200), 255, np.uint8)
    image[100:140, 150:160] = 0
    expected = np.zeros((28, 28), np.uint8)
    expected[4:24, 12:17] = 255
    np.testing.assert_array_equal(prepare(Image.fromarray(image)), expected)


def test_mnists_own_images_stay_as_they_are(sample_dir: Path) -> None:
    """But for the palest pixels, and a maximum of 254 that becomes 255."""
    config = Config(dataset="mnist_sample", data_dir=str(sample_dir))
    for image in load_arrays("mnist_sample", config).test_images[::20]:
        prepared = prepare(Image.fromarray(image))
        assert difference(prepared, image) < 3
        np.testing.assert_array_equal(prepare(Image.fromarray(255 - image)), prepared)
        assert difference(prepare(Image.fromarray(prepared)), prepared) < 0.5


def test_the_preparation_is_that_of_mnist() -> None:
    rows, columns = np.flatnonzero(SEVEN.any(1)), np.flatnonzero(SEVEN.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    for axis in (0, 1):
        sums = SEVEN.sum(axis, dtype=float)
        assert abs(sums @ np.arange(28) / sums.sum() - 14) <= 0.5
    assert SEVEN.max() == 255


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA", "CMYK", "F", "I", "PA", "RGBX"])
def test_every_mode_gives_the_same(mode: str) -> None:
    image = draw_seven()
    if mode == "PA":
        converted = image.convert("P").convert("PA")
    else:
        source = image.convert("RGB") if mode == "CMYK" else image
        converted = source.convert(mode)
    assert difference(prepare(converted, "TIFF"), SEVEN) < 1


@pytest.mark.parametrize(
    "content",
    [
        from_array(np.asarray(draw_seven(), np.uint16) * 16),  # 12 bits of a camera
        from_array(np.asarray(draw_seven(), np.uint16) * 257, "PNG"),
        from_array(np.asarray(draw_seven(), np.int32) - 10**6),
        from_array(np.asarray(draw_seven(), np.float32) / 255),
        encode(ImageOps.invert(draw_seven())),
        encode(draw_seven(), "JPEG", quality=60),
        encode(draw_seven().convert("CMYK"), "JPEG", quality=95),
        encode(draw_seven((3000, 4000)), "JPEG"),
        encode(draw_seven((3000, 4000)).convert("RGB"), "JPEG", progressive=True),
        encode(draw_seven(), "GIF", save_all=True, append_images=[draw_seven(paper=9)] * 300),
        encode(draw_seven(), "WEBP", lossless=True),
        encode(draw_seven(ink=190)),  # pale
        encode(draw_seven(), "BMP"),
        encode(draw_seven(), "JPEG2000"),
        encode(draw_seven().convert("YCbCr"), "TIFF", compression="jpeg"),
    ],
    ids=lambda content: f"{content[:12]}",
)
def test_every_form_gives_the_same(content: bytes) -> None:
    assert difference(read_image(content), SEVEN) < 4


def test_a_lab_tiff_and_what_is_not_finite() -> None:
    grey = draw_seven()
    middle = Image.new("L", grey.size, 128)
    lab = Image.merge("LAB", (grey, middle, middle))
    assert difference(read_image(encode(lab, "TIFF")), SEVEN) < 1
    values = np.array(grey, np.float32)
    values[5:9, 5:9], values[0, 0], values[390, 290] = np.nan, np.inf, -np.inf
    assert difference(read_image(from_array(values)), SEVEN) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_a_camera_has_turned_is_turned_back(orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the camera's tag says: show it turned by 270
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image, exif = draw_seven(), Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(undo[orientation]) if orientation in undo else image
    for form in ("JPEG", "PNG"):
        assert difference(read_image(encode(stored, form, exif=exif)), SEVEN) < 3


@pytest.mark.parametrize("ink", [0, 255])
def test_what_is_drawn_on_nothing_is_seen(ink: int) -> None:
    alpha = draw_seven(ink=255, paper=0)
    image = Image.merge("LA", (Image.new("L", alpha.size, ink), alpha))
    assert difference(read_image(encode(image)), SEVEN) < 1


def test_noise_shadow_and_specks_are_no_ink() -> None:
    values = np.asarray(draw_seven(), np.float32) + RNG.normal(0, 5, (400, 300))
    values -= np.linspace(0, 30, 300)  # a shadow
    for y, x in RNG.integers(0, 290, (20, 2)):
        values[y : y + 4, x : x + 4] = 30  # dust
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    assert difference(read_image(encode(image, "JPEG", quality=70)), SEVEN) < 6


@pytest.mark.parametrize("shape", [(1, 9000), (9000, 1), (3, 2000), (1, 2)])
def test_the_most_elongated_picture_has_a_form(shape: tuple[int, int]) -> None:
    values = np.zeros(shape, np.uint8)
    values.flat[values.size // 2] = 255
    assert read_image(from_array(values, "PNG")).max() == 255


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**10)


def text_bomb(kind: bytes) -> bytes:
    packed = zlib.compress(b" " * 10**8, 9)
    return png(1, 1, (kind, b"name\0\0" + packed), (b"IDAT", zlib.compress(b"\0\0")))


SEVEN_PNG, SEVEN_JPEG = encode(draw_seven()), encode(draw_seven(), "JPEG")
# What is wrong: what is in the file, or what makes it, and a part of what is said; "" where it
# is answered all the same.
HOSTILE: dict[str, tuple[bytes | Callable[[Path], object], str]] = {
    "empty": (b"", "empty"),
    "text": (b"seven\n" * 100, "not an image"),
    "nothing there": (lambda path: None, "No such file"),
    "a folder": (Path.mkdir, "not a regular file"),
    "a fifo": (os.mkfifo, "not a regular file"),
    "a device without end": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
    "10 GB of zeros": (sparse, "over 50 MB"),
    "half a PNG": (SEVEN_PNG[: len(SEVEN_PNG) // 2], "truncated"),
    "half a JPEG": (SEVEN_JPEG[: len(SEVEN_JPEG) // 2], "truncated"),
    "the head of a PNG": (SEVEN_PNG[:33], "not an image"),
    "a PNG with a flipped byte": (SEVEN_PNG[:90] + b"\xff" + SEVEN_PNG[91:], ""),
    "a bomb": (png(30_000, 30_000, (b"IDAT", zlib.compress(b"\0" * 10**7))), "too many pixels"),
    "a smaller bomb": (png(9000, 9000, (b"IDAT", zlib.compress(b"\0" * 10**7))), "too many pixels"),
    "a JPEG of 4 billion pixels": (
        SEVEN_JPEG.replace(struct.pack(">HH", 400, 300), b"\xff\xdc\xff\xdc", 1),
        "too many pixels",
    ),
    "a bomb of text": (text_bomb(b"zTXt"), ""),
    "a bomb of a colour profile": (text_bomb(b"iCCP"), ""),
    "a GIF of 4 billion pixels": (b"GIF89a\xff\xff\xff\xff\x80\0\0" + b"\0" * 20, ""),
    "white": (encode(Image.new("L", (100, 100), 255)), "blank"),
    "black": (encode(Image.new("RGB", (100, 100))), "blank"),
    "transparent": (encode(Image.new("RGBA", (100, 100), (9, 9, 9, 0))), "blank"),
    "a pixel": (encode(Image.new("L", (1, 1))), "blank"),
    "an empty page, photographed": (
        encode(Image.fromarray(RNG.normal(200, 2, (300, 300)).astype(np.uint8)), "JPEG"),
        "blank",
    ),
    "nothing but NaN": (from_array(np.full((30, 30), np.nan, np.float32)), "blank"),
    "a program in PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an im"),
    "a picture of vectors": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "a PDF": (b"%PDF-1.7\n%%EOF", "not an image"),
    "a zipped PNG": (gzip.compress(SEVEN_PNG), "not an image"),
    "a WebP cut off": (encode(draw_seven(), "WEBP")[:99], ""),
    "a TIFF without an end": (b"II*\0\x08\0\0\0\x01\0" + b"\xff" * 50, ""),
    "a BMP of negative size": (
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, -5, -5, 1, 24, *[0] * 6),
        "",
    ),
    "damaged EXIF": (encode(draw_seven(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), ""),
    "a JPEG 2000 cut off": (encode(draw_seven(), "JPEG2000")[:200], ""),
    "a TIFF of which a library complains": (
        encode(draw_seven(), "TIFF", compression="tiff_lzw").replace(b"\xff", b"\0"),
        "",
    ),
    "an icon of nothing": (b"\0\0\1\0\1\0" + b"\0" * 16, ""),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_gets_one_line(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "image"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    started, said = time.perf_counter(), ""
    try:
        assert read_image(path).shape == (28, 28)
    except ImageError as error:
        said = str(error)
    assert time.perf_counter() - started < 5
    assert said.isprintable()
    assert message in said


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_a_name_that_no_file_has_gets_one_line(name: str) -> None:
    with pytest.raises(ImageError):
        read_image(Path(name))


def test_only_what_is_named_as_an_image_is_taken_from_a_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", ".DS_Store", "c.eps", "c.pdf", "d.png/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png"]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM"])
def test_flipped_bytes_give_a_picture_or_a_line(form: str) -> None:
    content, rng = encode(draw_seven((90, 120)), form), np.random.default_rng(0)
    answered = 0
    for _ in range(100):
        damaged = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(0, min(len(damaged), 400), 3)
        damaged[places] = rng.integers(0, 256, 3)
        with warnings.catch_warnings(), contextlib.suppress(ImageError):
            warnings.simplefilter("ignore")
            answered += read_image(damaged.tobytes()).shape == (28, 28)
    assert answered > 0
