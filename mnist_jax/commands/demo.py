"""`python -m mnist_jax demo`: a web page on which you draw a digit."""

import base64
import dataclasses
import warnings
from typing import Annotated, Any

import numpy as np

from mnist_jax.commands import server
from mnist_jax.inference.images import ImageError, encode_png, read_image
from mnist_jax.inference.predictor import Predictor, load_predictor
from mnist_jax.runtime.cli import Folder, Range, require_packages
from mnist_jax.runtime.program import console


@dataclasses.dataclass(frozen=True)
class Options:
    """Serve a web page on which you draw a digit, until Ctrl-C."""

    workdir: Folder = None
    """The run to use. By default, the one under runs/ that finished last."""
    host: str = "127.0.0.1"
    """The address to listen on. 0.0.0.0 lets in everyone who can reach this machine."""
    port: Annotated[int, Range(0, 65536)] = 7860
    """The port to listen on; 0 for any free port."""


def main(options: Options) -> None:
    """Serves the page until SIGINT or SIGTERM."""
    require_packages("demo", "starlette", "uvicorn")
    warnings.filterwarnings("ignore", module="PIL")  # about the pictures that are sent
    listener = server.listen(options.host, options.port)
    predictor = load_predictor(options.workdir, only_digits=True)
    line = encode_png(255 * np.eye(28, dtype=np.uint8))
    recognize(predictor, line)  # compiles, so that the first request is fast
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    console.print(f"Draw a digit: http://{host}:{port} (Ctrl-C ends it)")
    server.serve(listener, lambda file: recognize(predictor, file))


def recognize(predictor: Predictor, file: bytes) -> dict[str, Any]:
    """The answer to an image file, as a JSON object.

    It has `digit`, `probabilities` and `seen`, the input of the network as the URL of a PNG; or
    `hint`, why the picture cannot be read.
    """
    try:
        pixels = read_image(file)
    except ImageError as error:
        return {"hint": f"This picture cannot be read: {error}"}
    (row,) = predictor.probabilities(pixels[None])
    seen = f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode()}"
    return {"digit": int(row.argmax()), "probabilities": row.tolist(), "seen": seen}
