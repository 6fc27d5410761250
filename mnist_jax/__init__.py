"""A reference JAX trainer: MNIST, done exactly, in pure functions."""

import importlib
from typing import Any

__version__ = "0.2.0"
_PUBLIC = {
    "Config": "mnist_jax.config",
    "train_and_evaluate": "mnist_jax.train",
    "load_predictor": "mnist_jax.inference.predictor",
}
__all__ = list(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is used: `import mnist_jax` loads no JAX."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
