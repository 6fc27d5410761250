"""The network: Flax Linen, so that `init` and `apply` are pure functions of the parameters."""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PyTree

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
        # Glorot & Bengio (2010) and zeros: Keras's defaults. Flax's own kernels are lecun_normal.
        return nn.Dense(
            size,
            kernel_init=nn.initializers.glorot_uniform(),
            bias_init=nn.initializers.zeros,
            precision=self.precision,
            dot_general=dot_general,
        )


def narrow_dot_general(
    x: Float[Array, "batch n"], kernel: Float[Array, "n narrow"], *args: Any, **kwargs: Any
) -> Float[Array, "batch narrow"]:
    """`jax.lax.dot_general`, for a kernel whose gradient XLA would compute slowly on a CPU.

    It takes nine times as long for [n, batch] x [batch, narrow] as for the transposed product, and
    rewrites the latter into the former unless a barrier stands between it and the transposition.
    """
    kernel = jax.lax.optimization_barrier(kernel.T).T
    return jax.lax.dot_general(x, kernel, *args, **kwargs)


def make_model(config: Config) -> MLP:
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
