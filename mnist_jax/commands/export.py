"""`python -m mnist_jax export`: a trained network as one file that only jax is needed to run."""

from mnist_jax.commands.options import ExportOptions, parse_options

if __name__ == "__main__":  # before jax is imported
    OPTIONS = parse_options(ExportOptions, "export")

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, UInt8

from mnist_jax.input_pipeline import normalize
from mnist_jax.model import predict_probabilities
from mnist_jax.runtime import console, exit_at_once, run_program
from mnist_jax.trained import Trained, find_run, load_trained
from mnist_jax.workdir import check_writable, write_whole

PLATFORMS = ("cpu", "cuda", "tpu")


def run(options: ExportOptions) -> int:
    """Exports, with errors as messages. Returns the exit code."""
    return run_program(lambda: export_file(options))


def export_file(options: ExportOptions) -> None:
    """Writes the file.

    Raises:
        ConfigError, RunError: there is no trained network; or the file cannot be written.
    """
    out = check_writable(options.out)
    trained = load_trained(find_run(options.workdir))
    data = bytes(export_predictor(trained).serialize())
    write_whole(out, data)
    console.print(
        f"{options.out}: {len(data) / 1e6:.1f} MB; uint8 [batch, 28, 28], light on dark, to "
        f"float32 [batch, 10], probabilities; for {', '.join(PLATFORMS)}"
    )


def export_predictor(trained: Trained) -> export.Exported:
    """The predictor as StableHLO: images of uint8 in, probabilities out, of any batch size.

    It holds the parameters. Its pixels are normalised to the very bits that the network was
    trained on, and its products have the precision of the run's config.
    """
    # A table: XLA would make a product of the division, which differs in the last bit.
    of_each_level = np.repeat(np.arange(256, dtype=np.uint8), 28 * 28).reshape(256, 28, 28)
    levels = normalize(of_each_level)[:, 0]

    def predict(images: UInt8[Array, "batch 28 28"]) -> Float[Array, "batch classes"]:
        rows = jnp.asarray(levels)[images.reshape(images.shape[0], -1)]
        # Else XLA would mix table and parameters into its products, and round otherwise.
        params, rows = jax.lax.optimization_barrier((trained.params, rows))
        return predict_probabilities(params, rows, model=trained.model)

    shape = export.symbolic_shape("batch, 28, 28")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return export.export(jax.jit(predict), platforms=PLATFORMS)(images)


if __name__ == "__main__":
    exit_at_once(run(OPTIONS))  # pyright: ignore[reportPossiblyUnboundVariable]
