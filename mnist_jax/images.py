"""From any picture of a digit to what the network was trained on: the one preparation.

It is that of MNIST (LeCun, Cortes, Burges: yann.lecun.com/exdb/mnist): the digit is scaled to fit
20 x 20 pixels, keeping its shape, and put into 28 x 28 with its centre of mass in the middle.
"""

import contextlib
import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from mnist_jax.errors import ImageError

SIDE, BOX, CENTRE = 28, 20, 14  # MNIST's centres of mass are at index 14, give or take a half
MAX_BYTES = 50_000_000  # of a file
MAX_DECODED = 64_000_000  # bytes of pixels
WORKING_SIDE = 560  # pixels, about, of the picture in which the digit is looked for
MIN_CONTRAST = 16  # of 255 levels of grey
MIN_NOISE, MAX_NOISE = 0.1, 0.5  # of the contrast; JPEG's ripples are below, strokes above
MIN_PART = 0.05  # of the ink of the largest part; another with less is a speck
TOO_LARGE = "too many pixels; scale it down"
# EPS is a program, which Pillow has Ghostscript run; of the others it knows only the names.
REFUSED = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG"}


def list_images(folder: Path) -> list[Path]:
    """The files in `folder`, not in those within, that are named as images are."""
    formats = Image.registered_extensions()
    # Some Pillow only writes: a PDF among the pictures is none.
    suffixes = {suffix for suffix, name in formats.items() if name in Image.OPEN.keys() - REFUSED}
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.is_file())


def read_image(file: Path | bytes) -> UInt8[np.ndarray, "28 28"]:
    """The digit in a file, or in the bytes of one, in MNIST's form: light on dark, 0..255.

    Raises:
        ImageError: it cannot be read, is too large, or shows nothing.
    """
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else _open_regular(file) as opened:
            grey = _to_grey(_decode(opened))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image, or of a format that Pillow does not know") from None
    except Image.DecompressionBombError:
        raise ImageError(TOO_LARGE) from None
    except OSError as error:
        raise ImageError(error.strerror or _one_line(error)) from error
    except Exception as error:  # on damaged bytes, Pillow raises what it likes
        raise ImageError(f"damaged: {_one_line(error)}") from error
    return _frame(_crop(_find_ink(np.asarray(grey))))


def to_png(pixels: UInt8[np.ndarray, "height width"]) -> bytes:
    """A grey PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _open_regular(path: Path) -> io.BufferedReader:
    """Opens a file that ends: to open a fifo would wait for its writer."""
    if path.exists() and not path.is_file():
        raise ImageError("not a regular file")
    return path.open("rb")


def _decode(file: io.BytesIO | io.BufferedReader) -> Image.Image:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not size:
        raise ImageError("empty")
    if size > MAX_BYTES:
        raise ImageError(f"over {MAX_BYTES // 10**6} MB")
    Image.init()
    image = Image.open(file, formats=[name for name in Image.ID if name not in REFUSED])
    if "progressive" not in image.info:  # such a JPEG is in memory whole, before it is scaled
        image.draft("L", (WORKING_SIDE, WORKING_SIDE))  # decodes a JPEG smaller, and grey
    if image.width * image.height * _bytes_per_pixel(image) > MAX_DECODED:
        raise ImageError(TOO_LARGE)
    image.load()
    return image


def _bytes_per_pixel(image: Image.Image) -> int:
    """As Pillow keeps them; twice that for decoders that make some copies more."""
    grey = image.mode in ("1", "L", "P") and not image.has_transparency_data
    return (1 if grey else 4) * (2 if image.format in ("JPEG2000", "WEBP") else 1)


def _to_grey(image: Image.Image) -> Image.Image:
    """Grey levels, upright, and not much more of them than needed."""
    if image.mode[0] in "IF":  # more than 8 bits
        grey = _stretch(_shrink(image.convert("F")))
    elif image.has_transparency_data:
        grey = _flatten(image.convert("RGBA"))
    else:
        grey = (image.getchannel("L") if image.mode == "LAB" else image).convert("L")
    grey.info = image.info
    grey = _shrink(grey)
    with contextlib.suppress(Exception):  # damaged EXIF turns nothing
        ImageOps.exif_transpose(grey, in_place=True)
    return grey


def _shrink(image: Image.Image) -> Image.Image:
    """By a whole number, to the size in which the digit is looked for."""
    return image.reduce(max(1, max(image.size) // WORKING_SIDE))


def _stretch(image: Image.Image) -> Image.Image:
    """The range of the finite values, whatever their unit, as 0..255."""
    values = np.asarray(image, np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ImageError("blank")
    low, high = finite.min(), finite.max()
    values = np.nan_to_num(values, nan=np.median(finite), posinf=high, neginf=low)
    return Image.fromarray(np.rint((values - low) * 255 / max(high - low, 1e-300)).astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    """Puts RGBA on black or on white, from which its drawing differs more."""
    image = _shrink(image)
    grey, alpha = image.convert("L"), image.getchannel("A")
    weights = np.asarray(alpha, np.float32)
    mean = (np.asarray(grey) * weights).sum() / max(weights.sum(), 1)
    return Image.composite(grey, Image.new("L", grey.size, 255 if mean < 128 else 0), alpha)


def _find_ink(grey: UInt8[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """How far each pixel is from the paper, on the drawing's side; 0 for noise and specks.

    The paper is what most of the border shows; the drawing is what differs most from it.
    """
    width = max(1, min(grey.shape) // SIDE)
    sides = (grey[:width], grey[-width:], grey[:, :width].T, grey[:, -width:].T)
    border = np.concatenate([side.ravel() for side in sides]).astype(np.float32)
    paper = np.median(border)
    ink = grey.astype(np.float32) - paper
    if (ink**3).sum() < 0:
        ink = -ink
    contrast = ink.max()
    if contrast < MIN_CONTRAST:
        raise ImageError("blank")
    noise = 2 * np.percentile(np.abs(border - paper), 95)
    ink[ink <= np.clip(noise, MIN_NOISE * contrast, MAX_NOISE * contrast)] = 0
    parts, _ = ndimage.label(ink, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    amounts = np.bincount(parts.ravel(), ink.ravel())
    return ink * (amounts >= MIN_PART * amounts.max())[parts]


def _crop(ink: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "h w"]:
    """The smallest rectangle with all ink, scaled so that its longer side is BOX."""
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, round(n * BOX / max(ink.shape))) for n in ink.shape)
    # Not to the bit itself, where nothing is to be scaled; and it swings below 0.
    scaled = Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC)
    return np.maximum(np.asarray(scaled), 0)


def _frame(ink: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "28 28"]:
    """`ink`, as light as can be, with its centre of mass in the middle, moved by whole pixels."""
    top, left = (
        int(np.clip(np.rint(CENTRE - centre), 0, SIDE - n))
        for n, centre in zip(ink.shape, ndimage.center_of_mass(ink), strict=True)
    )
    framed = np.zeros((SIDE, SIDE), np.uint8)
    area = framed[top : top + ink.shape[0], left : left + ink.shape[1]]
    area[:] = np.rint(ink * (255 / ink.max()))
    return framed
