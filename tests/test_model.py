"""The network: its output, its first parameters, and their number."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.config import Config
from mnist_jax.model import MLP, glorot_uniform, make_model, predict_logits
from tests import oracle


def init(model: Any, pixels: int = 784) -> oracle.Tree:
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, pixels)))["params"]
    return jax.tree.map(np.asarray, params)


@pytest.fixture(scope="module")
def default_params() -> oracle.Tree:
    return init(make_model(Config()))


@pytest.mark.parametrize("hidden_sizes", [(), (7, 3)])
def test_logits_match_the_oracle(hidden_sizes: tuple[int, ...]) -> None:
    model, rng = MLP(hidden_sizes, num_classes=4), np.random.default_rng(0)
    params = init(model, pixels=6)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    images = rng.random((9, 6), np.float32)
    logits = predict_logits(params, jnp.asarray(images), model=model)
    np.testing.assert_allclose(logits, oracle.forward(params, images)[0], rtol=1e-5, atol=1e-6)


def test_the_default_network_has_407050_parameters_of_float32(default_params: oracle.Tree) -> None:
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), default_params)
    assert shapes == {
        "Dense_0": {"kernel": ((784, 512), np.float32), "bias": ((512,), np.float32)},
        "Dense_1": {"kernel": ((512, 10), np.float32), "bias": ((10,), np.float32)},
    }
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(default_params))
        == 784 * 512 + 512 + 512 * 10 + 10
        == 407_050
    )


def test_kernels_are_glorot_uniform_and_biases_are_zero(default_params: oracle.Tree) -> None:
    for layer in default_params.values():
        kernel, bound = layer["kernel"], np.sqrt(6 / sum(layer["kernel"].shape))
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        # A normal distribution could have the variance of the uniform one on ±bound, but not also
        # its fourth moment.
        np.testing.assert_allclose(kernel.var(), bound**2 / 3, rtol=0.05)
        np.testing.assert_allclose((kernel**4).mean(), bound**4 / 5, rtol=0.05)
        assert not layer["bias"].any()


def test_kernels_are_those_of_flax_bit_for_bit() -> None:
    key = jax.random.key(7)
    expected = nn.initializers.glorot_uniform()(key, (512, 10))
    np.testing.assert_array_equal(glorot_uniform(key, (512, 10)), expected)


PRECISIONS = [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")]


@pytest.mark.parametrize(("precision", "compiled"), PRECISIONS)
def test_every_product_forward_and_backward_has_the_configured_precision(
    precision: Any, compiled: str
) -> None:
    model = make_model(Config(hidden_sizes=(4,), matmul_precision=precision))

    def loss(params: oracle.Tree, images: jax.Array) -> jax.Array:
        return predict_logits(params, images, model=model).sum()

    program = jax.jit(jax.grad(loss)).lower(init(model, pixels=2), jnp.zeros((1, 2))).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 4  # one forward (the last is not needed), three backward
    assert all(f"precision = [{compiled}, {compiled}]" in line for line in products)
