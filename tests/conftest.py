"""What every test runs under: strict promotion, checked shapes, no network."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxtyping
import pytest

PACKAGE = Path(__file__).parent.parent / "mnist_jax"
# Before their first import. config.py checks its own types, and says so better.
FILES = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
MODULES = [".".join(path.parts) for path in FILES if path.stem not in ("config", "__main__")]
jaxtyping.install_import_hook(MODULES, "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Each run builds its optimizer anew, and so its programs: most are the same ones.
CACHE = tempfile.TemporaryDirectory(prefix="mnist_jax.programs.")
jax.config.update("jax_compilation_cache_dir", CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@pytest.fixture(autouse=True)
def strict_dtypes() -> Iterator[None]:
    """No silent promotion in the project's own functions."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def standard_dtypes(strict_dtypes: None) -> Iterator[None]:
    """For the tests of what does not pass strict promotion: optax's Adam."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses every connection but those to this machine, at once and by name."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise OSError(f"a test connects to {address}")
        connect(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in LOOPBACK:
            raise socket.gaierror(f"a test asks for the address of {host}")
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)


@pytest.fixture(scope="module")
def tests_cache() -> Iterator[None]:
    """For a program that is called in this process: it leaves the cache as the tests have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        yield


@pytest.fixture(scope="session")
def manual_dir() -> Path:
    """The directory with the four official MNIST files."""
    if "MNIST_JAX_MANUAL_DIR" not in os.environ:
        pytest.skip("MNIST_JAX_MANUAL_DIR names no directory with the official MNIST files")
    return Path(os.environ["MNIST_JAX_MANUAL_DIR"])


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir in which mnist_sample is prepared and cached."""
    from mnist_jax.config import Config
    from mnist_jax.input_pipeline import load_dataset

    directory = tmp_path_factory.mktemp("data")
    load_dataset(Config(dataset="mnist_sample", data_dir=str(directory)))
    return directory


@pytest.fixture(scope="session")
def mnist_dir(manual_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir in which all of MNIST is prepared and cached."""
    from mnist_jax.config import Config
    from mnist_jax.input_pipeline import load_dataset

    directory = tmp_path_factory.mktemp("mnist")
    load_dataset(Config(data_dir=str(directory), manual_dir=str(manual_dir)))
    return directory


@pytest.fixture(scope="session")
def sample_run(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The Result of two epochs on the sample. Tests that write into its folder take a copy."""
    from mnist_jax.config import Config
    from mnist_jax.train import train_and_evaluate

    config = Config(dataset="mnist_sample", data_dir=str(sample_dir), num_epochs=2)
    return train_and_evaluate(config, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="session")
def full_run(mnist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The Result of the default run on all of MNIST."""
    from mnist_jax.config import Config
    from mnist_jax.train import train_and_evaluate

    config = Config(data_dir=str(mnist_dir))
    return train_and_evaluate(config, tmp_path_factory.mktemp("full") / "run")
