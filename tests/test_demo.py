"""`demo`: a digit drawn in Chromium is recognized, and no request breaks the server."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from PIL import Image

from mnist_jax.commands import demo, server
from mnist_jax.inference.images import read_image
from mnist_jax.inference.predictor import Predictor
from mnist_jax.runtime.errors import RunError
from mnist_jax.train import Result
from tests.helpers import BAD_FILES, SEVEN_PNG, call, draw_seven, encode


def test_a_picture_gets_the_answer_of_the_predictor(predictor: Predictor) -> None:
    found, pixels = demo.recognize(predictor, SEVEN_PNG), read_image(SEVEN_PNG)
    (expected,) = predictor.probabilities(pixels[None])
    assert (found["digit"], found["probabilities"]) == (expected.argmax(), expected.tolist())
    with urllib.request.urlopen(found["seen"]) as file:
        np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels)


@pytest.mark.usefixtures("tests_cache")
def test_missing_libraries_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert call(demo) == 2
    assert 'pip install -e ".[demo]"' in capsys.readouterr().err


def test_a_busy_port_is_named() -> None:
    with server.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(RunError, match=rf"--port {port}: Address already in use$"):
            server.listen("127.0.0.1", port)


def test_only_the_page_itself_may_send_requests() -> None:
    own = [
        {"host": "127.0.1.1:7860"},  # Debian's address for the machine's own name
        {"host": "localhost:7860", "origin": "http://localhost:7860"},
        {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
    ]
    elsewhere = [{"host": "a.page.elsewhere:7860"}, {"host": "127.0.0.1.a.page.elsewhere:7860"}]
    foreign = [
        {"host": "localhost:7860", "origin": "http://localhost:8000"},  # another server's page
        {"host": "localhost:7860", "origin": "http://192.168.0.2"},
        {"host": "localhost:7860", "origin": "null"},
        {"host": "["},
    ]
    requests = own + elsewhere + foreign
    assert [headers for headers in requests if server.is_allowed(headers, True)] == own
    assert [headers for headers in requests if server.is_allowed(headers, False)] == own + elsewhere


def test_a_slow_upload_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("starlette", reason="the extra `demo` is not installed")
    monkeypatch.setattr(server, "UPLOAD_SECONDS", 0.01)
    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/answer", "headers": headers}
    sent: list[dict[str, Any]] = []

    async def receive() -> None:
        await asyncio.sleep(60)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(server.build_app(lambda picture: {}, is_local=True)(scope, receive, send))
    assert sent[0]["status"] == 408


@contextlib.contextmanager
def start(run: Path, host: str = "127.0.0.1", stop: int = signal.SIGTERM) -> Iterator[Any]:
    """A server in a process, and its URL. At the end, a signal stops it without a traceback."""
    pytest.importorskip("uvicorn", reason="the extra `demo` is not installed")
    command = [sys.executable, "-m", "mnist_jax", "demo", "--port", "0", "--host", host]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--workdir", run], **pipes) as process:
        try:
            yield process, next(process.stdout).split()[3].replace("0.0.0.0", "127.0.0.1")
            process.send_signal(stop)
            err = process.communicate(timeout=20)[1]
            assert (process.returncode, "Traceback" in err) == (0, False)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url(sample_run: Result) -> Iterator[str]:
    with start(sample_run.workdir) as (_, url):
        yield url


def post(url: str, content: Any, **headers: str) -> requests.Response:
    return requests.post(f"{url}/answer", content, headers=headers, timeout=60)


def upload_in_part(url: str) -> socket.socket:
    client = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port))
    client.sendall(b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nseven")
    return client


def test_fifty_requests_at_once_are_answered(url: str, predictor: Predictor) -> None:
    upload_in_part(url).close()  # a client that goes away does no harm
    files = [encode(draw_seven((30 + i, 40))) for i in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda file: post(url, file).json(), files))
    assert answers == [demo.recognize(predictor, file) for file in files]


def test_bad_files_get_a_hint_and_large_ones_are_refused(url: str) -> None:
    for name, (content, message) in BAD_FILES.items():
        if isinstance(content, bytes):
            found = post(url, content).json()
            assert ("hint" in found) != ("digit" in found), name
            assert message in found.get("hint", ""), name
    large = b"7" * (server.MAX_BYTES + 1)
    for content in (large, iter([large])):  # with a header that gives its length, and without
        assert post(url, content).status_code == 413


def test_only_the_page_and_its_answer_are_served(url: str) -> None:
    for path in ("", "index.html", "page.js", "style.css"):
        assert requests.get(f"{url}/{path}", timeout=30).status_code == 200
    for path in ("answer", "server.py", "%2e%2e/server.py", "..%2fserver.py", "docs", "%00"):
        assert requests.get(f"{url}/{path}", timeout=30).status_code == 404
    assert post(url, SEVEN_PNG, Origin=url).status_code == 200
    assert post(url, SEVEN_PNG, Origin="http://a.page.elsewhere").status_code == 403


@pytest.mark.slow
def test_large_pictures_from_everyone_take_little_memory(sample_run: Result) -> None:
    """Ctrl-C then ends the server, also while a picture arrives."""
    large = encode(draw_seven((6000, 8000)))
    with start(sample_run.workdir, "0.0.0.0", signal.SIGINT) as (process, url):
        with ThreadPoolExecutor(20) as pool:
            futures = [pool.submit(post, url, large, Host="elsewhere") for _ in range(20)]
        assert all("digit" in future.result().json() for future in futures)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 1_000_000  # kB
        client = upload_in_part(url)
    client.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("no Chromium")
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Any, url: str) -> Iterator[Any]:
    """The page. At the end of the test, checks which hosts it asked, and its complaints."""
    width, height = getattr(request, "param", (1280, 800))
    page = browser.new_page(viewport={"width": width, "height": height}, has_touch=width < 400)
    hosts, complaints = set(), []
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(url)
    yield page
    page.close()
    assert (hosts - {"127.0.0.1", None}, complaints) == (set(), [])  # None: data URLs


def draw(page: Any, points: list[tuple[float, float]]) -> None:
    """Draws with a finger or the mouse. Points are fractions of the canvas's width and height."""
    box = page.locator("canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    if page.viewport_size["width"] < 400:
        finger = page.context.new_cdp_session(page)
        for i, (x, y) in enumerate(places):
            touch = {"type": "touchMove" if i else "touchStart", "touchPoints": [{"x": x, "y": y}]}
            finger.send("Input.dispatchTouchEvent", touch)
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places:
            page.mouse.move(*place, steps=3)
        page.mouse.up()


def wait_for(page: Any, text: str) -> None:
    """Waits until the answer is `text`, and checks that it stays."""
    answer = page.locator(".answer p").filter(has_text=text)
    answer.wait_for(timeout=20_000)
    page.wait_for_timeout(600)
    assert answer.is_visible()


def clear(page: Any) -> None:
    page.get_by_text("Clear").click()
    wait_for(page, "Draw a digit")
    assert page.locator(".answer img, .likeliest").count() == 0


STROKES = {
    "0": [(0.5 - 0.2 * np.sin(a), 0.5 - 0.3 * np.cos(a)) for a in np.linspace(0, 6.3, 20)],
    "1": [(0.5, 0.2), (0.5, 0.8)],
    "7": [(0.3, 0.22), (0.7, 0.22), (0.45, 0.8)],
}


@pytest.mark.slow
@pytest.mark.parametrize("page", [(1280, 800), (390, 844)], ids=["desktop", "phone"], indirect=True)
def test_drawn_digits_are_recognized(page: Any) -> None:
    """Nothing scrolls or moves under the pen, and everything fits the width."""
    before = page.locator("canvas").bounding_box()
    page.locator("canvas").click()  # a dot gets an answer, too
    page.locator(".answer img").wait_for()
    for digit, points in STROKES.items():
        clear(page)
        draw(page, points)
        wait_for(page, digit)
        assert page.locator(".likeliest span").first.inner_text() == digit
        assert (page.locator("canvas").bounding_box(), page.evaluate("scrollY")) == (before, 0)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_a_hint_is_shown_as_text(page: Any) -> None:
    hint = "<img src=x onerror=alert(1)>"
    page.route("**/answer", lambda route: route.fulfill(json={"hint": hint}))
    draw(page, STROKES["7"])
    wait_for(page, hint)


SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="300" height="400">
<path d="M90 80H210L135 320" fill="none" stroke="black" stroke-width="25"/>{}</svg>"""
HTML = (
    '<foreignObject width="9" height="9"><p xmlns="http://www.w3.org/1999/xhtml"/></foreignObject>'
)


@pytest.mark.slow
def test_a_chosen_picture_is_recognized(page: Any, predictor: Predictor, tmp_path: Path) -> None:
    digit, large = str(demo.recognize(predictor, SEVEN_PNG)["digit"]), draw_seven((2100, 2800))
    pictures = {
        "seven.png": (SEVEN_PNG, digit),
        "seven.tif": (encode(draw_seven(), "TIFF"), digit),  # Chromium cannot show TIFF
        "seven.bmp": (encode(large.convert("RGB"), "BMP"), digit),  # 18 MB: the page scales it
        "seven.svg": (SVG.format("").encode(), digit),  # Pillow cannot read SVG
        "html.svg": (SVG.format(HTML).encode(), "cannot be read"),  # Chromium does not convert it
        "large.tif": (encode(large.convert("RGB"), "TIFF"), "too large"),
    }
    for name, (content, answer) in pictures.items():
        (tmp_path / name).write_bytes(content)
        page.locator("input[type=file]").set_input_files(tmp_path / name)
        wait_for(page, answer)
        clear(page)


@pytest.mark.slow
@pytest.mark.skipif("MNIST_JAX_WRITE_PICTURE" not in os.environ, reason="writes docs/demo.png")
def test_the_picture_of_the_readme_is_written(browser: Any, full_run: Result) -> None:
    size, path = {"width": 924, "height": 300}, Path(__file__).parents[1] / "docs" / "demo.png"
    with start(full_run.workdir) as (_, url), browser.new_page(viewport=size) as page:
        page.goto(url)
        draw(page, STROKES["7"])
        wait_for(page, "7")
        page.screenshot(path=path, full_page=True)
