"""The network: its output, its first parameters, their count."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.config import Config
from mnist_jax.model import (
    MLP,
    count_parameters,
    glorot_uniform,
    make_model,
    predict_logits,
    predict_probabilities,
)
from tests import oracle


def init(model: MLP, pixels: int = 784, seed: int = 0) -> oracle.Tree:
    params = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, pixels)))["params"]
    return jax.tree.map(np.asarray, params)


@pytest.mark.parametrize("hidden_sizes", [(), (5,), (7, 3)])
def test_logits_are_the_oracles(hidden_sizes: tuple[int, ...]) -> None:
    model = MLP(hidden_sizes, num_classes=4)
    params = init(model, pixels=6)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    images = rng.random((9, 6), np.float32)
    logits = predict_logits(params, jnp.asarray(images), model=model)
    np.testing.assert_allclose(logits, oracle.forward(params, images)[0], rtol=1e-5, atol=1e-6)
    probabilities = predict_probabilities(params, jnp.asarray(images), model=model)
    np.testing.assert_allclose(probabilities, oracle.softmax(np.asarray(logits)), rtol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_probabilities_of_huge_logits_are_finite() -> None:
    model = MLP((), num_classes=3)
    params = {"Dense_0": {"kernel": jnp.zeros((1, 3)), "bias": jnp.array([1e4, 1e4, -1e4])}}
    probabilities = predict_probabilities(params, jnp.zeros((1, 1)), model=model)
    np.testing.assert_allclose(probabilities, [[0.5, 0.5, 0.0]])


def test_default_network_has_407050_parameters_of_float32() -> None:
    params = init(make_model(Config()))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert shapes == {
        "Dense_0": {"kernel": ((784, 512), np.float32), "bias": ((512,), np.float32)},
        "Dense_1": {"kernel": ((512, 10), np.float32), "bias": ((10,), np.float32)},
    }
    assert count_parameters(params) == 784 * 512 + 512 + 512 * 10 + 10 == 407_050


@pytest.mark.parametrize("layer", ["Dense_0", "Dense_1"])
def test_kernels_are_glorot_uniform_and_biases_zero(layer: str) -> None:
    kernel, bias = (init(make_model(Config()))[layer][name] for name in ("kernel", "bias"))
    bound = np.sqrt(6 / sum(kernel.shape))
    assert np.abs(kernel).max() <= bound
    assert np.abs(kernel).max() > 0.99 * bound
    # The variance of a uniform distribution on +-bound, which a normal one of that variance
    # would share: hence also its fourth moment.
    np.testing.assert_allclose(kernel.var(), bound**2 / 3, rtol=0.05)
    np.testing.assert_allclose((kernel**4).mean(), bound**4 / 5, rtol=0.05)
    assert not bias.any()


def test_kernels_are_those_of_flax() -> None:
    key = jax.random.key(7)
    expected = nn.initializers.glorot_uniform()(key, (512, 10))
    np.testing.assert_array_equal(glorot_uniform(key, (512, 10)), expected)


@pytest.mark.parametrize(
    ("precision", "compiled"),
    [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")],
)
def test_precision_reaches_every_product_forward_and_backward(
    precision: Any, compiled: str
) -> None:
    model = make_model(Config(hidden_sizes=(4,), matmul_precision=precision))

    def loss(params: oracle.Tree, images: jax.Array) -> jax.Array:
        return predict_logits(params, images, model=model).sum()

    program = jax.jit(jax.grad(loss)).lower(init(model, pixels=2), jnp.zeros((1, 2))).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 4  # one forward (the last is not needed), three backward
    assert all(f"precision = [{compiled}, {compiled}]" in line for line in products)
