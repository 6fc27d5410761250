"""Every picture of a digit becomes what MNIST would contain, or one line says why it cannot."""

import contextlib
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mnist_jax.config import Config
from mnist_jax.data.sources import load_arrays
from mnist_jax.inference.images import ImageError, list_images, read_image
from tests.helpers import BAD_FILES, draw_seven, encode

RNG = np.random.default_rng(0)


def prepare(image: Image.Image | np.ndarray, form: str = "PNG") -> np.ndarray:
    return read_image(encode(image, form))


SEVEN = prepare(draw_seven())


def difference(image: np.ndarray, expected: np.ndarray = SEVEN) -> float:
    """The mean absolute difference of the pixels, in grey levels."""
    return float(np.abs(image.astype(float) - expected).mean())


def test_a_block_is_scaled_and_centred() -> None:
    """10 x 40 becomes 5 x 20. Its centre, at (9.5, 2), moves to (14, 14), rounded to even."""
    image = np.full((300, 200), 255, np.uint8)
    image[100:140, 150:160] = 0
    expected = np.zeros((28, 28), np.uint8)
    expected[4:24, 12:17] = 255
    np.testing.assert_array_equal(prepare(image), expected)


def test_images_of_mnist_stay_the_same(sample_dir: Path) -> None:
    """Except for the palest pixels, and a maximum of 254 that becomes 255."""
    config = Config(dataset="mnist_sample", data_dir=str(sample_dir))
    for image in load_arrays("mnist_sample", config).test_images[::20]:
        prepared = prepare(image)
        assert difference(prepared, image) < 3
        np.testing.assert_array_equal(prepare(255 - image), prepared)
        assert difference(prepare(prepared), prepared) < 0.5


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA", "CMYK", "F", "I", "PA"])
def test_every_pixel_mode_is_read(mode: str) -> None:
    intermediate = {"CMYK": "RGB", "PA": "P"}.get(mode, "L")
    converted = draw_seven().convert(intermediate).convert(mode)
    assert difference(prepare(converted, "TIFF")) < 1


@pytest.mark.parametrize(
    "content",
    [
        encode(np.asarray(draw_seven(), np.uint16) * 16, "TIFF"),  # 12 bits of a camera
        encode(np.asarray(draw_seven(), np.uint16) * 257),
        encode(np.asarray(draw_seven(), np.int32) - 10**6, "TIFF"),
        encode(np.asarray(draw_seven(), np.float32) / 255, "TIFF"),
        encode(ImageOps.invert(draw_seven())),
        encode(draw_seven(), "JPEG", quality=60),
        encode(draw_seven((3000, 4000)), "JPEG"),
        encode(draw_seven((3000, 4000)).convert("RGB"), "JPEG", progressive=True),
        encode(draw_seven(), "GIF", save_all=True, append_images=[draw_seven(paper=9)] * 300),
        encode(draw_seven(), "WEBP", lossless=True),
        encode(draw_seven(ink=190)),  # low contrast
        encode(draw_seven(), "JPEG2000"),
        encode(draw_seven().convert("YCbCr"), "TIFF", compression="jpeg"),
    ],
    ids=lambda content: f"{content[:12]}",
)
def test_every_format_is_read(content: bytes) -> None:
    assert difference(read_image(content)) < 4


def test_infinite_and_missing_values_are_ignored() -> None:
    values = np.array(draw_seven(), np.float32)
    values[5:9, 5:9], values[0, 0], values[390, 290] = np.nan, np.inf, -np.inf
    assert difference(prepare(values, "TIFF")) < 3


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_picture_that_the_camera_has_turned_is_turned_back(form: str) -> None:
    kind = Image.Transpose
    undo = [
        None, kind.FLIP_LEFT_RIGHT, kind.ROTATE_180, kind.FLIP_TOP_BOTTOM, kind.TRANSPOSE,
        kind.ROTATE_90, kind.TRANSVERSE, kind.ROTATE_270,
    ]  # fmt: skip
    for orientation, transposition in enumerate(undo, start=1):
        image, exif = draw_seven(), Image.Exif()
        exif[0x0112] = orientation
        stored = image if transposition is None else image.transpose(transposition)
        assert difference(read_image(encode(stored, form, exif=exif))) < 3


@pytest.mark.parametrize("ink", [0, 255])
def test_a_drawing_on_a_transparent_background_is_read(ink: int) -> None:
    alpha = draw_seven(ink=255, paper=0)
    image = Image.merge("LA", (Image.new("L", alpha.size, ink), alpha))
    assert difference(prepare(image)) < 1


def test_noise_shadow_and_dust_are_ignored() -> None:
    values = np.asarray(draw_seven(), np.float32) + RNG.normal(0, 5, (400, 300))
    values -= np.linspace(0, 30, 300)  # a shadow
    for y, x in RNG.integers(0, 290, (20, 2)):
        values[y : y + 4, x : x + 4] = 30  # dust
    image = values.clip(0, 255).astype(np.uint8)
    assert difference(read_image(encode(image, "JPEG", quality=70))) < 6


@pytest.mark.parametrize("shape", [(1, 9000), (3, 2000), (1, 2)])
def test_very_long_pictures_are_read(shape: tuple[int, int]) -> None:
    values = np.zeros(shape, np.uint8)
    values.flat[values.size // 2] = 255
    assert prepare(values).max() == 255
    assert prepare(values.T).max() == 255


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.parametrize("name", [*BAD_FILES])
def test_a_bad_file_gets_one_line_in_short_time(name: str, tmp_path: Path) -> None:
    content, expected = BAD_FILES[name]
    path = tmp_path / "image"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    started, message = time.perf_counter(), ""
    try:
        assert read_image(path).shape == (28, 28)
    except ImageError as error:
        message = str(error)
    assert time.perf_counter() - started < 5
    assert message.isprintable()
    assert expected in message


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_an_impossible_file_name_is_an_image_error(name: str) -> None:
    with pytest.raises(ImageError):
        read_image(Path(name))


def test_only_images_in_a_folder_are_listed(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", ".DS_Store", "c.eps", "c.pdf", "d.png/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png"]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000"])
def test_random_damage_gives_a_picture_or_an_image_error(form: str) -> None:
    content, rng = encode(draw_seven((90, 120)), form), np.random.default_rng(0)
    num_read = 0
    for _ in range(50):
        damaged = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(0, min(len(damaged), 400), 3)
        damaged[places] = rng.integers(0, 256, 3)
        with warnings.catch_warnings(), contextlib.suppress(ImageError):
            warnings.simplefilter("ignore")
            num_read += read_image(damaged.tobytes()).shape == (28, 28)
    assert num_read > 0
