"""The network, in Flax Linen: `init` and `apply` are pure functions of the parameters."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from mnist_jax.config import NUM_CLASSES, Config


class MLP(nn.Module):
    """Dense layers with relu between them; the last layer gives one logit per class."""

    hidden_sizes: tuple[int, ...] = (512,)
    num_classes: int = NUM_CLASSES
    precision: str = "float32"  # of the matrix products, as in jax.lax.Precision

    @nn.compact
    def __call__(self, images: Float[Array, "batch pixels"]) -> Float[Array, "batch classes"]:
        """Returns the logits of images with pixels in [0, 1]."""
        dense = functools.partial(
            nn.Dense,
            kernel_init=glorot_uniform,  # Keras's default; Flax's is lecun_normal
            bias_init=nn.initializers.zeros,
            precision=self.precision,
        )
        x = images
        for size in self.hidden_sizes:
            x = nn.relu(dense(size)(x))
        return dense(self.num_classes, dot_general=narrow_dot_general)(x)


def make_model(config: Config) -> nn.Module:
    """The network that `config` describes."""
    return MLP(config.hidden_sizes, precision=config.matmul_precision)


def predict_logits(
    params: PyTree, images: Float[Array, "batch pixels"], *, model: nn.Module
) -> Float[Array, "batch classes"]:
    """The logits of images with pixels in [0, 1]."""
    return model.apply({"params": params}, images)  # pyright: ignore[reportReturnType]


# The rest makes XLA faster on CPUs, and changes no result.


def glorot_uniform(
    key: PRNGKeyArray, shape: tuple[int, int], dtype: Any = jnp.float32
) -> Float[Array, "fan_in fan_out"]:
    """Uniform numbers up to ±sqrt(6 / (fan_in + fan_out)): Glorot & Bengio (2010), equation 16.

    Bit for bit `nn.initializers.glorot_uniform`, but drawn as a vector, which XLA compiles in a
    quarter of the time.
    """
    limit = math.sqrt(6 / sum(shape))
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


def narrow_dot_general(
    x: Float[Array, "batch n"], kernel: Float[Array, "n narrow"], *args: Any, **kwargs: Any
) -> Float[Array, "batch narrow"]:
    """`jax.lax.dot_general` for a kernel with few columns, with a faster gradient on CPUs.

    XLA's product [n, batch] x [batch, 10] takes nine times as long as its transpose. A barrier
    makes XLA use the transpose. With it, an epoch takes 11 % less time.
    """
    kernel = jax.lax.optimization_barrier(kernel.T).T
    return jax.lax.dot_general(x, kernel, *args, **kwargs)
