"""The network: Flax Linen, so that `init` and `apply` are pure functions of the parameters."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from mnist_jax.config import Config


class MLP(nn.Module):
    """Dense layers with relu between them; the last one gives one logit a class.

    Attributes:
        hidden_sizes: units of each hidden layer.
        num_classes: units of the last layer.
        precision: of the matrix products, as `jax.lax.Precision` spells it.
    """

    hidden_sizes: tuple[int, ...] = (512,)
    num_classes: int = 10
    precision: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "batch pixels"]) -> Float[Array, "batch classes"]:
        """The logits of `images`, whose pixels are in [0, 1]."""
        x = images
        for size in self.hidden_sizes:
            x = nn.relu(self._dense(size)(x))
        return self._dense(self.num_classes, dot_general=narrow_dot_general)(x)

    def _dense(self, size: int, dot_general: Any = None) -> nn.Dense:
        # Keras's defaults. Flax's own kernels are lecun_normal.
        return nn.Dense(
            size,
            kernel_init=glorot_uniform,
            bias_init=nn.initializers.zeros,
            precision=self.precision,
            dot_general=dot_general,
        )


def glorot_uniform(
    key: PRNGKeyArray, shape: tuple[int, int], dtype: Any = jnp.float32
) -> Float[Array, "fan_in fan_out"]:
    """Uniform numbers up to ±sqrt(6 / (fan_in + fan_out)): Glorot & Bengio (2010), equation 16.

    To the bit those of `nn.initializers`, but drawn in a row: XLA takes a second to compile the
    draw of [512, 10] for a CPU, and a fifth of it for that of [5120].
    """
    limit = math.sqrt(6 / sum(shape))
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


def narrow_dot_general(
    x: Float[Array, "batch n"], kernel: Float[Array, "n narrow"], *args: Any, **kwargs: Any
) -> Float[Array, "batch narrow"]:
    """`jax.lax.dot_general`, for a kernel whose gradient XLA would compute slowly on a CPU.

    It takes nine times as long for [n, batch] x [batch, narrow] as for the transposed product, and
    rewrites the latter into the former unless a barrier stands between it and the transposition.
    """
    kernel = jax.lax.optimization_barrier(kernel.T).T
    return jax.lax.dot_general(x, kernel, *args, **kwargs)


def make_model(config: Config) -> nn.Module:
    """The network that `config` describes."""
    return MLP(config.hidden_sizes, precision=config.matmul_precision)


def predict_logits(
    params: PyTree, images: Float[Array, "batch pixels"], *, model: nn.Module
) -> Float[Array, "batch classes"]:
    """The network's output for `images`, whose pixels are in [0, 1]."""
    return model.apply({"params": params}, images)  # pyright: ignore[reportReturnType]


def predict_probabilities(
    params: PyTree, images: Float[Array, "batch pixels"], *, model: nn.Module
) -> Float[Array, "batch classes"]:
    """The softmax of the logits: for each image, probabilities that sum to 1."""
    return jax.nn.softmax(predict_logits(params, images, model=model))


def count_parameters(params: PyTree) -> int:
    """How many numbers `params` holds: 407,050 for the default network."""
    return sum(x.size for x in jax.tree.leaves(params))
