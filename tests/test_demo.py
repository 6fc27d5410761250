"""`demo`: what is drawn in a real browser gets its digit, and nothing that is sent ends the page.

    MNIST_JAX_WRITE_PICTURE=1 pytest -m slow tests/test_demo.py  # writes docs/demo.png

The slow tests need gradio and playwright, of the extra `dev`, and Chromium.
"""

import base64
import html
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from PIL import Image

from mnist_jax.commands import demo, web
from mnist_jax.commands.demo import HINT, answer, decode
from mnist_jax.commands.options import DemoOptions, parse_options
from mnist_jax.errors import ImageError, RunError
from mnist_jax.images import read_image
from mnist_jax.train import Result
from mnist_jax.trained import Trained, load_trained, predict
from tests.test_images import HOSTILE, draw_seven, encode

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "mnist_jax", "demo"]


@pytest.fixture(scope="module")
def trained(sample_run: Result) -> Trained:
    return load_trained(sample_run.workdir)


def to_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode(image)).decode()}"


def drawn_on_nothing() -> Image.Image:
    return Image.merge("LA", (Image.new("L", (300, 400)), draw_seven(ink=255, paper=0)))


@pytest.mark.parametrize(
    "image", [draw_seven(), draw_seven().convert("RGBA"), draw_seven(ink=250, paper=3),
              drawn_on_nothing().convert("RGBA")], ids=["grey", "RGBA", "light", "on nothing"]
)  # fmt: skip
def test_a_drawing_gets_what_predict_says(image: Image.Image, trained: Trained) -> None:
    found = answer(trained, decode(to_url(image)))
    pixels = read_image(encode(image))
    (expected,) = predict(trained, pixels[None])
    assert found["probabilities"] == expected.tolist()
    assert (found["digit"], found["hint"]) == (expected.argmax(), "")
    seen = Image.open(io.BytesIO(decode(found["seen"])))
    np.testing.assert_array_equal(np.asarray(seen), pixels)


@pytest.mark.parametrize("drawing", [None, ""])
def test_an_empty_paper_gets_a_hint(drawing: str | None, trained: Trained) -> None:
    found = answer(trained, decode(drawing))
    assert found == {"digit": None, "probabilities": [0.0] * 10, "seen": "", "hint": HINT}


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.parametrize("name", [name for name in HOSTILE if isinstance(HOSTILE[name][0], bytes)])
def test_a_hostile_picture_gets_a_hint(name: str, trained: Trained) -> None:
    content, message = HOSTILE[name]
    found = answer(trained, content)  # pyright: ignore[reportArgumentType]
    assert (found["digit"] is None) == bool(found["hint"])
    assert message in html.unescape(found["hint"])


def test_a_hint_is_no_code(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: bytes) -> None:
        raise ImageError("<script>")

    monkeypatch.setattr(demo, "read_image", fail)
    assert "&lt;script&gt;" in answer(trained, b"file")["hint"]


GARBAGE = [7, [], {}, True, "seven", "data:image/png,7", "data:;base64,@@@", "data:;base64,é"]


@pytest.mark.parametrize("drawing", GARBAGE)
def test_what_no_page_sends_is_refused(drawing: object) -> None:
    with pytest.raises(ValueError, match=r"base64|ASCII"):
        decode(drawing)


def test_the_extra_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # so that it is as before, afterwards
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.run(DemoOptions()) == 2
    assert 'pip install -e ".[demo]"' in capsys.readouterr().err


def test_a_port_that_is_taken_is_named() -> None:
    with web.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(RunError, match=f"--port {port} cannot be had: Address already in use"):
            web.listen("127.0.0.1", port)
    with pytest.raises(RunError, match="cannot be had"):
        web.listen("no.such.host", 0)


def test_a_port_that_there_is_not_gets_a_box(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_options(DemoOptions, "demo", ["--port", "65536"])
    assert exit_.value.code == 2
    assert "it must be 0 to 65535" in " ".join(capsys.readouterr().err.split())


# In a browser. --------------------------------------------------------------------------------


def start(run: Path) -> tuple[subprocess.Popen[str], str]:
    """The server, and its URL."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    command = [*COMMAND, "--port", "0", "--workdir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http" in line, process.communicate()
    return process, line.split()[3]


def stop(process: subprocess.Popen[str], number: int) -> str:
    """Stops it, as it should be stopped; returns its stderr."""
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    return err


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Path:
    """One on all of MNIST, if it is there."""
    full = "MNIST_JAX_MANUAL_DIR" in os.environ
    return request.getfixturevalue("full_run" if full else "sample_run").workdir


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[str]:
    process, url = start(run)
    yield url
    err = stop(process, signal.SIGTERM)
    # Gradio prints one where a client sends no drawing, not even an empty one.
    assert err.count("Traceback") == err.count("didn't receive enough input values")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


class Page:
    """The page in a browser, and all that it asks for and complains of."""

    def __init__(self, browser: Any, url: str, viewport: dict[str, int]) -> None:
        self.tab = browser.new_page(viewport=viewport, has_touch=viewport is PHONE)
        self.hosts, self.complaints = set[str | None](), list[str]()
        self.tab.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("console", self._hear)
        self.tab.goto(url)
        self.tab.locator("canvas").wait_for()

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def draw(self, *strokes: Sequence[tuple[float, float]]) -> None:
        """Draws with the mouse; points in parts of the paper's width and height."""
        box, mouse = self.tab.locator("canvas").bounding_box(), self.tab.mouse
        for stroke in strokes:
            points = [
                (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke
            ]
            mouse.move(*points[0])
            mouse.down()
            for point in points[1:]:
                mouse.move(*point, steps=3)
            mouse.up()

    def wait_for(self, text: str) -> None:
        """Waits until the page says `text`, and looks whether it goes on saying it."""
        said = self.tab.locator(".answer p").filter(has_text=text)
        said.wait_for(timeout=10_000)
        self.tab.wait_for_timeout(600)
        assert said.is_visible()

    def bars(self) -> list[float]:
        """The width of each digit's bar."""
        bars = self.tab.locator(".answer li > div > div").all()
        return [bar.bounding_box()["width"] for bar in bars]


@pytest.fixture
def open_page(browser: Any, server: str) -> Iterator[Any]:
    """Opens the page; at the end, it has asked nobody else for anything, nor complained."""
    pages = []

    def open_page(viewport: dict[str, int] = DESKTOP) -> Page:
        pages.append(Page(browser, server, viewport))
        return pages[-1]

    yield open_page
    for page in pages:
        page.tab.close()
        assert page.hosts <= {"127.0.0.1", None}  # None: data:
        assert page.complaints == []


ANGLES = np.linspace(0, 2 * np.pi, 20)
SVG = b"""<svg xmlns="http://www.w3.org/2000/svg" width="300" height="400">
<path d="M90 80H210L135 320" fill="none" stroke="black" stroke-width="25"/></svg>"""
STROKES = {
    "0": [[(0.5 - 0.2 * np.sin(a), 0.5 - 0.3 * np.cos(a)) for a in ANGLES]],
    "1": [[(0.5, 0.2), (0.5, 0.8)]],
    "7": [[(0.3, 0.22), (0.7, 0.22), (0.45, 0.8)]],
}


@pytest.mark.slow
@pytest.mark.parametrize("digit", STROKES)
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_digit_that_is_drawn_is_on_top(
    digit: str, viewport: dict[str, int], open_page: Any, manual_dir: Path
) -> None:
    page = open_page(viewport)
    paper = page.tab.locator("canvas")
    before = paper.bounding_box()
    page.draw(*STROKES[digit])
    page.wait_for(digit)
    assert paper.bounding_box() == before  # it does not move under the pen
    assert np.argmax(page.bars()) == int(digit)
    assert page.tab.locator(".answer img").is_visible()


@pytest.mark.slow
def test_a_finger_draws_and_does_not_scroll(open_page: Any, manual_dir: Path) -> None:
    page = open_page(PHONE)
    box = page.tab.locator("canvas").bounding_box()
    finger = page.tab.context.new_cdp_session(page.tab)
    for i, part in enumerate(np.linspace(0.2, 0.8, 20)):
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + part * box["height"]}
        kind = "touchMove" if i else "touchStart"
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for("1")
    assert page.tab.evaluate("scrollY") == 0


@pytest.mark.slow
def test_an_empty_paper_and_a_scribble_are_no_error(open_page: Any) -> None:
    page = open_page()
    page.wait_for(HINT)
    assert page.bars() == [0] * 10
    page.draw([*map(tuple, np.random.default_rng(0).uniform(-0.1, 1.1, (30, 2)))])
    page.tab.locator(".answer img").wait_for()
    page.tab.get_by_text("Clear").click()
    page.wait_for(HINT)
    assert page.bars() == [0] * 10
    assert page.tab.locator(".answer img").count() == 0


@pytest.mark.slow
def test_a_click_makes_a_dot(open_page: Any) -> None:
    page = open_page()
    page.tab.locator("canvas").click()
    page.tab.locator(".answer img").wait_for()


@pytest.mark.slow
def test_a_picture_is_chosen(open_page: Any, run: Path, tmp_path: Path) -> None:
    large = draw_seven((2100, 2800)).convert("RGB")  # 18 MB as BMP
    ink = draw_seven(ink=255, paper=0)
    white = Image.merge("LA", (Image.new("L", ink.size, 255), ink))
    pictures = {
        "seven.png": encode(draw_seven()),
        "seven.tif": encode(draw_seven(), "TIFF"),  # which no Chromium shows
        "seven.bmp": encode(large, "BMP"),
        "seven.svg": SVG,  # which no Pillow reads
        "white on nothing.png": encode(white),
        "not.png": b"seven",
        "large.tif": encode(large, "TIFF"),  # that a dialog tells of
    }
    for name, content in pictures.items():
        (tmp_path / name).write_bytes(content)
    said = str(answer(load_trained(run), pictures["seven.png"])["digit"])
    page = open_page()
    for name in pictures:
        page.tab.locator("input[type=file]").set_input_files(tmp_path / name)
        page.wait_for({"not.png": "cannot be read", "large.tif": HINT}.get(name, said))
        page.tab.get_by_text("Clear").click()
        page.wait_for(HINT)


@pytest.mark.slow
def test_it_fits_a_phone(open_page: Any) -> None:
    page = open_page(PHONE)
    page.draw(*STROKES["7"])
    page.tab.locator(".answer img").wait_for()
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 390
    for part in ("canvas", ".answer ol", ".answer img", "button"):
        box = page.tab.locator(part).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    assert page.tab.locator("canvas").bounding_box()["width"] > 300


def ask(server: str, drawing: object) -> Any:
    """What a program gets, by Gradio's protocol: a call, and the events of its answer."""
    url = f"{server}/gradio_api/call/answer"
    event = requests.post(url, json={"data": [drawing]}, timeout=30).json()["event_id"]
    lines = requests.get(f"{url}/{event}", timeout=30).text.splitlines()
    kind, data = lines[-3].removeprefix("event: "), lines[-2].removeprefix("data: ")
    return json.loads(data)[0] if kind == "complete" else f"{kind}: {data}"


@pytest.mark.slow
def test_fifty_at_once_are_all_answered(server: str, run: Path) -> None:
    rng, trained = np.random.default_rng(0), load_trained(run)
    images = [Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)) for _ in range(50)]
    started = time.perf_counter()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda image: ask(server, to_url(image)), images))
    print(f"50 requests: {time.perf_counter() - started:.1f} s")
    assert answers == [answer(trained, decode(to_url(image))) for image in images]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["http://a.server.elsewhere/7.png", "/etc/hostname"])
def test_nothing_is_fetched_that_a_client_names(path: str, server: str) -> None:
    """Gradio would, and tell that the name of the server cannot be resolved."""
    file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    for drawing in (file, [file]):
        assert ask(server, drawing).startswith("error: ")
        assert "the paper sends no file" in ask(server, drawing)


@pytest.mark.slow
def test_garbage_ends_nothing(server: str) -> None:
    for drawing in GARBAGE:
        assert ask(server, drawing).startswith("error: "), drawing
    for content, _ in HOSTILE.values():
        if isinstance(content, bytes):
            found = ask(server, f"data:;base64,{base64.b64encode(content).decode()}")
            assert (found["digit"] is None) == bool(found["hint"])
    unknown = b'{"data": [], "fn_index": 99, "session_hash": "a"}'
    bodies = [b"", b"{", b"\xff" * 1000, b"[" * 100_000, b"null", b'{"data": 1}', b'{"data": []}']
    for path in ("call/answer", "queue/join", "queue/data"):
        for body in (*bodies, unknown):
            headers = {"Content-Type": "application/json"}
            url = f"{server}/gradio_api/{path}"
            code = requests.post(url, body, headers=headers, timeout=30).status_code
            assert code < 500 or body == unknown
    large = b'{"data": ["' + b"7" * 20_000_000 + b'"]}'
    for body in (large, iter([large])):  # with its length said before, and not
        assert (
            requests.post(f"{server}/gradio_api/call/answer", body, timeout=30).status_code == 413
        )
    assert ask(server, to_url(draw_seven()))["hint"] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    ["upload", "process_recording", "run/answer", "call/v2/answer", "info", "file=/etc/hostname"],
)
def test_what_else_gradio_has_is_not_there(path: str, server: str) -> None:
    """It would keep uploads, and have ffmpeg open them."""
    url = f"{server}/gradio_api/{path}"
    assert requests.get(url, timeout=30).status_code == 404
    files = {"files": ("a.mp4", b"7"), "video": ("a.mp4", b"7")}
    assert requests.post(url, files=files, timeout=30).status_code == 404


@pytest.mark.slow
def test_a_page_from_elsewhere_is_refused(server: str) -> None:
    url, body = f"{server}/gradio_api/call/answer", {"data": [""]}
    port = server.rpartition(":")[2]
    for headers, code in [
        ({}, 200),
        ({"Origin": server}, 200),
        ({"Origin": f"http://localhost:{port}", "Host": f"localhost:{port}"}, 200),
        ({"Host": f"[::1]:{port}"}, 200),
        ({"Host": f"127.0.0.1.a.page.elsewhere:{port}"}, 403),
        ({"Origin": "http://a.page.elsewhere"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": f"a.page.elsewhere:{port}"}, 403),
        ({"Host": "["}, 403),
    ]:
        assert requests.post(url, json=body, headers=headers, timeout=30).status_code == code


def test_every_address_of_this_machine_is_one() -> None:
    """Debian calls a machine 127.0.1.1 by its own name."""
    pytest.importorskip("starlette", reason="gradio is not installed")
    from starlette.responses import PlainTextResponse
    from starlette.testclient import TestClient

    def get(address: str, host: str) -> int:
        client = TestClient(web.guard(PlainTextResponse("page"), address))
        return client.get("/", headers={"Host": host}).status_code

    assert get("127.0.1.1", "127.0.1.1:7860") == 200
    assert get("127.0.1.1", "192.168.0.2") == 403
    assert get("0.0.0.0", "192.168.0.2") == 200


@pytest.mark.slow
def test_a_taken_port_ends_the_second_one(server: str, run: Path) -> None:
    words = [*COMMAND, "--port", server.rpartition(":")[2], "--workdir", str(run)]
    second = subprocess.run(words, capture_output=True, text=True)
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert "cannot be had: Address already in use" in line


@pytest.mark.slow
def test_an_interrupt_ends_it_though_a_page_is_open(browser: Any, run: Path) -> None:
    """As SIGTERM does at the end of the other tests."""
    process, url = start(run)
    page = Page(browser, url, DESKTOP)
    page.draw(*STROKES["7"])
    assert len(stop(process, signal.SIGINT).splitlines()) == 1  # which run it used
    page.tab.close()


@pytest.mark.slow
@pytest.mark.skipif("MNIST_JAX_WRITE_PICTURE" not in os.environ, reason="draws docs/demo.png")
def test_the_picture_of_the_readme(open_page: Any, manual_dir: Path) -> None:
    page = open_page()
    page.draw(*STROKES["7"])
    page.wait_for("7")
    page.tab.locator("#parts").screenshot(path=ROOT / "docs" / "demo.png")
