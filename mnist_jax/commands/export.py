"""`python -m mnist_jax export`: a trained network as one file, for jax without this package."""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro
from jax import export
from jaxtyping import Array, Float, UInt8

from mnist_jax.inference.predictor import Predictor, load_predictor
from mnist_jax.model import predict_logits
from mnist_jax.runtime.cli import Folder
from mnist_jax.runtime.program import console
from mnist_jax.runtime.workdir import check_writable, write_whole

PLATFORMS = "cpu", "cuda", "tpu"


@dataclasses.dataclass(frozen=True)
class Options:
    """Save a trained network as one file that runs with jax and flatbuffers, without mnist_jax."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The file to write."""
    workdir: Folder = None
    """The run to export. By default, the one under runs/ that finished last."""


def main(options: Options) -> None:
    """Writes the file."""
    out = check_writable(options.out)
    data = bytes(export_predictor(load_predictor(options.workdir)).serialize())
    write_whole(out, data)
    console.print(
        f"{options.out}: {len(data) / 1e6:.1f} MB; in: uint8 [batch, 28, 28], light on dark; "
        f"out: float32 [batch, 10], probabilities; for {', '.join(PLATFORMS)}"
    )


def export_predictor(predictor: Predictor) -> export.Exported:
    """The network with its parameters as StableHLO, for any batch size.

    The program also divides by 255. XLA may compute this as a product, unlike `normalize`, so
    probabilities agree with those of `Predictor` only to about 1e-5.
    """

    def predict(images: UInt8[Array, "batch 28 28"]) -> Float[Array, "batch classes"]:
        rows = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255
        return jax.nn.softmax(predict_logits(predictor.params, rows, model=predictor.model))

    images = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 28, 28"), jnp.uint8)
    return export.export(jax.jit(predict), platforms=PLATFORMS)(images)
