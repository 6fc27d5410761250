"""Converts any picture of a digit to MNIST's format (yann.lecun.com/exdb/mnist).

The digit fits into 20 x 20 pixels; its centre of mass is in the middle of 28 x 28 pixels.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from mnist_jax.runtime.errors import RunError

SIDE = 28
DIGIT_SIDE = 20
CENTRE = 14  # index of the pixel in which MNIST's centres of mass lie
MAX_FILE_BYTES = 50_000_000
MAX_PIXEL_BYTES = 64_000_000  # of the decoded picture
WORKING_SIDE = 560  # approximate size of the picture in which we look for the digit
MIN_CONTRAST = 16  # of 255 grey levels
MIN_NOISE, MAX_NOISE = 0.1, 0.5  # bounds of the noise threshold, as fractions of the contrast
MIN_PART = 0.05  # smaller parts are dust, as a fraction of the ink of the largest part
TOO_LARGE = "too many pixels; scale it down"
# Pillow runs Ghostscript to read EPS, and cannot read the others at all.
REFUSED_FORMATS = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG"}


class ImageError(RunError):
    """A picture cannot be read, or is blank. The message does not name the file."""


def list_images(folder: Path) -> list[Path]:
    """The files in a folder, but not in its subfolders, that have the suffix of an image."""
    formats = Image.registered_extensions()
    readable = Image.OPEN.keys() - REFUSED_FORMATS  # Pillow only writes some formats, such as PDF
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return [path for path in files if formats.get(path.suffix.lower()) in readable]


def encode_png(pixels: UInt8[np.ndarray, "height width"]) -> bytes:
    """The content of a greyscale PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def read_image(source: Path | bytes) -> UInt8[np.ndarray, "28 28"]:
    """Reads an image file, or its content. Returns the digit as MNIST's: light on dark, 0 to 255.

    Raises ImageError if the picture cannot be read, is too large, or is blank.
    """
    try:
        content = source if isinstance(source, bytes) else _read_file(source)
        grey = _to_grey(_decode(content))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image, or of a format that is not supported") from None
    except Image.DecompressionBombError:
        raise ImageError(TOO_LARGE) from None
    except Exception as error:  # Pillow raises many types on damaged files
        reason = getattr(error, "strerror", None) or f"damaged: {str(error) or repr(error)}"
        raise ImageError(" ".join(reason.split())) from error
    return _scale_and_centre(_remove_dust(_find_ink(np.asarray(grey))))


def _read_file(path: Path) -> bytes:
    """Reads a regular file only: a pipe would block, a device may never end."""
    if path.exists() and not path.is_file():
        raise ImageError("neither a regular file nor a folder with images")
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def _decode(content: bytes) -> Image.Image:
    """Checks the size of file and picture, then decodes it."""
    if not content:
        raise ImageError("empty")
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"over {MAX_FILE_BYTES // 10**6} MB")
    Image.init()
    formats = [name for name in Image.ID if name not in REFUSED_FORMATS]
    image = Image.open(io.BytesIO(content), formats=formats)
    if "progressive" not in image.info:  # Pillow decodes a progressive JPEG in full size
        image.draft("L", (WORKING_SIDE, WORKING_SIDE))  # decodes other JPEGs smaller, and grey
    is_grey = image.mode in ("1", "L", "P") and not image.has_transparency_data
    copies = 2 if image.format in ("JPEG2000", "WEBP") else 1  # their decoders make two
    if image.width * image.height * (1 if is_grey else 4) * copies > MAX_PIXEL_BYTES:
        raise ImageError(TOO_LARGE)
    image.load()
    return image


def _to_grey(image: Image.Image) -> Image.Image:
    """Converts to 8-bit grey, upright, of about WORKING_SIDE pixels."""
    if image.mode[0] in "IF":  # integers or floats of more than 8 bits
        grey = _stretch(_shrink(image.convert("F")))
    elif image.has_transparency_data:
        grey = _add_background(_shrink(image.convert("RGBA")))
    else:
        grey = image.convert("L")
    grey.info = image.info
    grey = _shrink(grey)
    with contextlib.suppress(Exception):  # ignores damaged EXIF data
        ImageOps.exif_transpose(grey, in_place=True)
    return grey


def _shrink(image: Image.Image) -> Image.Image:
    return image.reduce(max(1, max(image.size) // WORKING_SIDE))


def _stretch(image: Image.Image) -> Image.Image:
    """Maps the range of the finite values to 0..255; nan becomes the median."""
    values = np.asarray(image, np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise ImageError("blank")
    values = np.where(np.isnan(values), np.median(finite), values)
    scaled = np.interp(values, (finite.min(), finite.max()), (0, 255))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _add_background(image: Image.Image) -> Image.Image:
    """Puts an RGBA picture on black or white, whichever gives more contrast."""
    grey, alpha = image.convert("L"), image.getchannel("A")
    weights = np.asarray(alpha, np.float32)
    mean = (np.asarray(grey) * weights).sum() / max(weights.sum(), 1)
    background = Image.new("L", grey.size, 255 if mean < 128 else 0)
    return Image.composite(grey, background, alpha)


def _find_ink(grey: UInt8[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """How much each pixel differs from the paper; 0 where that is only noise.

    The paper's grey level is the median of the picture's border.
    """
    width = max(1, min(grey.shape) // SIDE)
    sides = (grey[:width], grey[-width:], grey[:, :width].T, grey[:, -width:].T)
    border = np.concatenate([side.ravel() for side in sides]).astype(np.float32)
    paper = np.median(border)
    ink = grey.astype(np.float32) - paper
    if (ink**3).sum() < 0:  # a dark drawing; the cube gives more weight to strong differences
        ink = -ink
    contrast = ink.max()
    if contrast < MIN_CONTRAST:
        raise ImageError("blank")
    noise = 2 * np.percentile(np.abs(border - paper), 95)
    ink[ink <= np.clip(noise, MIN_NOISE * contrast, MAX_NOISE * contrast)] = 0
    return ink


def _remove_dust(ink: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Removes connected parts that are much smaller than the largest."""
    touching = np.ones((3, 3))  # pixels that share only a corner are connected, too
    parts, _ = ndimage.label(ink, touching)  # pyright: ignore[reportGeneralTypeIssues]
    amounts = np.bincount(parts.ravel(), ink.ravel())
    is_large = amounts >= MIN_PART * amounts.max()
    return ink * is_large[parts]


def _scale_and_centre(ink: Float[np.ndarray, "height width"]) -> UInt8[np.ndarray, "28 28"]:
    """Scales the ink to DIGIT_SIDE pixels, with its centre of mass in the middle of 28 x 28."""
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = [max(1, round(n * DIGIT_SIDE / max(ink.shape))) for n in ink.shape]
    scaled = Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC)
    ink = np.maximum(np.asarray(scaled), 0)  # bicubic interpolation goes below 0
    offset = np.rint(CENTRE - np.array(ndimage.center_of_mass(ink))).astype(int)
    top, left = np.clip(offset, 0, (SIDE - height, SIDE - width))
    digit = np.zeros((SIDE, SIDE), np.uint8)
    digit[top : top + height, left : left + width] = np.rint(ink * (255 / ink.max()))
    return digit
