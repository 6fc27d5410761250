"""A reference JAX trainer: MNIST, done exactly, in pure functions."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_jax.config import Config as Config
    from mnist_jax.inference.predictor import load_predictor as load_predictor
    from mnist_jax.train import train_and_evaluate as train_and_evaluate

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
