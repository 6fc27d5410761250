"""What holds in every test: strict promotion, checked shapes, no network. And shared runs."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jaxtyping
import numpy as np
import pytest

PACKAGE = Path(__file__).parent.parent / "mnist_jax"
# Check types and shapes in all modules, except in config.py, whose own checks have better messages.
FILES = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
MODULES = [".".join(file.parts) for file in FILES if file.stem not in ("config", "__main__")]
jaxtyping.install_import_hook(MODULES, "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compile each program once for all tests.
CACHE = tempfile.TemporaryDirectory(prefix="mnist_jax.programs.")
jax.config.update("jax_compilation_cache_dir", CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@pytest.fixture(autouse=True)
def strict_dtypes() -> Iterator[None]:
    """The project's own functions promote no dtype silently."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def standard_dtypes(strict_dtypes: None) -> Iterator[None]:
    """For optax's Adam, which does not pass strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses every connection except to this machine."""
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
    """For programs that are called in this process: they keep the tests' compilation cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        yield


@pytest.fixture(scope="session")
def manual_dir() -> Path:
    """The directory with the four official MNIST files."""
    if "MNIST_JAX_MANUAL_DIR" not in os.environ:
        pytest.skip("MNIST_JAX_MANUAL_DIR must name a directory with the official MNIST files")
    return Path(os.environ["MNIST_JAX_MANUAL_DIR"])


@pytest.fixture
def few_dir(tmp_path: Path) -> Path:
    """A directory with four small files of random digits, named like the official ones."""
    from tests.helpers import make_idx

    rng, directory = np.random.default_rng(0), tmp_path / "few"
    directory.mkdir()
    for split, num in (("train", 40), ("t10k", 20)):
        images, labels = rng.integers(256, size=num * 784), rng.integers(10, size=num)
        files = {"images-idx3": ((num, 28, 28), images), "labels-idx1": ((num,), labels)}
        for kind, (shape, values) in files.items():
            content = make_idx(shape, values.astype(np.uint8).tobytes())
            (directory / f"{split}-{kind}-ubyte.gz").write_bytes(content)
    return directory


@pytest.fixture
def publish(few_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`publish(url)` makes `url` the address of MNIST, with the checksums of few_dir's files."""
    from tensorflow_datasets.core.download import checksums

    from mnist_jax.data import tfds_builders

    def publish_at(url: str) -> None:
        known = {url + path.name: checksums.compute_url_info(path) for path in few_dir.iterdir()}
        monkeypatch.setattr(tfds_builders.MNIST, "URL", url)
        monkeypatch.setattr(checksums, "get_all_url_infos", known.copy)

    return publish_at


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir where mnist_sample is prepared and cached."""
    from mnist_jax.config import Config
    from mnist_jax.data.pipeline import load_dataset

    directory = tmp_path_factory.mktemp("data")
    load_dataset(Config(dataset="mnist_sample", data_dir=str(directory)))
    return directory


@pytest.fixture(scope="session")
def mnist_dir(manual_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir where all of MNIST is prepared and cached."""
    from mnist_jax.config import Config
    from mnist_jax.data.pipeline import load_dataset

    directory = tmp_path_factory.mktemp("mnist")
    load_dataset(Config(data_dir=str(directory), manual_dir=str(manual_dir)))
    return directory


@pytest.fixture(scope="session")
def sample_run(sample_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The Result of two epochs on the sample. Tests that write to its directory copy it first."""
    from mnist_jax.config import Config
    from mnist_jax.train import train_and_evaluate

    config = Config(dataset="mnist_sample", data_dir=str(sample_dir), num_epochs=2)
    return train_and_evaluate(config, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="session")
def predictor(sample_run: Any) -> Any:
    """The network of `sample_run`."""
    from mnist_jax.inference.predictor import load_predictor

    return load_predictor(sample_run.workdir)


@pytest.fixture
def after_chunk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """`after_chunk(n, act)` calls `act` once: when a run has trained its n-th chunk from now.

    So a test acts at a known step, for example by sending a signal. This is the only place that
    replaces a function of the trainer.
    """
    from mnist_jax import train

    train_steps = train.train_steps

    def arrange(n: int, act: Callable[[], Any]) -> None:
        count = 0

        def train_and_act(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            result = train_steps(*args, **kwargs)
            count += 1
            if count == n:
                act()
            return result

        monkeypatch.setattr(train, "train_steps", train_and_act)

    return arrange


@pytest.fixture(scope="session")
def evaluated_run(sample_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the directory of `sample_run`, with the files of `evaluate`."""
    from mnist_jax.commands import evaluate

    folder = tmp_path_factory.mktemp("evaluated") / "a <run>"
    shutil.copytree(sample_run.workdir, folder)
    evaluate.main(evaluate.Options(folder))
    return folder


@pytest.fixture(scope="session")
def full_run(mnist_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The Result of the default run on all of MNIST."""
    from mnist_jax.config import Config
    from mnist_jax.train import train_and_evaluate

    config = Config(data_dir=str(mnist_dir))
    return train_and_evaluate(config, tmp_path_factory.mktemp("full") / "run")
