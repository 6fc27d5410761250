"""`python -m mnist_jax demo`: a page to draw a digit on."""

from mnist_jax.commands.options import DemoOptions, parse_options

if __name__ == "__main__":  # before jax is imported
    OPTIONS = parse_options(DemoOptions, "demo")

import base64
import html
from typing import TypedDict

import numpy as np

from mnist_jax.commands import web
from mnist_jax.errors import ImageError
from mnist_jax.images import read_image, to_png
from mnist_jax.runtime import console, exit_at_once, run_program
from mnist_jax.trained import Trained, load_reader, predict

HINT = "Draw a digit, or choose a picture of one."


class Answer(TypedDict):
    """What the page shows, and a program gets."""

    digit: int | None
    probabilities: list[float]
    seen: str
    """What the network saw, as the URL of a PNG; "" if nothing."""
    hint: str
    """Why there is no digit, as HTML; else ""."""


def run(options: DemoOptions) -> int:
    """Serves the page, with errors as messages. Returns the exit code."""
    return run_program(lambda: serve(options))


def serve(options: DemoOptions) -> None:
    """Serves the page until SIGINT or SIGTERM.

    Raises:
        ConfigError: gradio is not installed.
        RunError: the port cannot be had, or there is no trained network.
    """
    web.import_gradio()
    listener = web.listen(options.host, options.port)
    trained = load_reader(options.workdir)
    predict(trained, np.zeros((1, 28, 28), np.uint8))  # compiles it, before anyone waits for it
    app = web.build_app(lambda drawing: answer(trained, decode(drawing)))
    console.print(f"Draw a digit: {web.url(listener)} (Ctrl-C ends it)")
    web.serve_until_signal(app, listener)


def decode(drawing: object) -> bytes | None:
    """The image file in a data URL; None where nothing is drawn.

    Raises:
        ValueError: it is no such URL: it does not come from the page.
    """
    if drawing in (None, ""):
        return None
    head, _, body = drawing.partition(",") if isinstance(drawing, str) else ("", "", "")
    if not (head.startswith("data:") and head.endswith(";base64")):
        raise ValueError("not a data URL in base64")
    return base64.b64decode(body, validate=True)


def answer(trained: Trained, file: bytes | None) -> Answer:
    """What the network says of the picture in an image file, or why it says nothing."""
    if file is None:
        return no_answer(HINT)
    try:
        pixels = read_image(file)
    except ImageError as error:
        return no_answer(f"This picture cannot be read: {error}")
    (row,) = predict(trained, pixels[None])
    seen = f"data:image/png;base64,{base64.b64encode(to_png(pixels)).decode()}"
    return Answer(digit=int(row.argmax()), probabilities=row.tolist(), seen=seen, hint="")


def no_answer(reason: str) -> Answer:
    """No digit, and why."""
    return Answer(digit=None, probabilities=[0.0] * 10, seen="", hint=html.escape(reason))


if __name__ == "__main__":
    exit_at_once(run(OPTIONS))  # pyright: ignore[reportPossiblyUnboundVariable]
