"""The server of the page: all that knows Gradio, which is not installed everywhere."""

import ipaddress
import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mnist_jax.errors import ConfigError, RunError
from mnist_jax.runtime import Signals

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
MAX_BODY = 8_000_000  # bytes of a request: a picture of 6 MB, in base64; canvas.js knows it too
MAX_QUEUE = 64  # who comes then is told to come again
AT_ONCE = 2  # a picture may take 300 MB while it is read
MAX_SESSIONS = 10  # Gradio keeps the last picture of each, which nobody reads
# What a page asks for, and a program. The rest of Gradio takes uploads, and has ffmpeg open them.
PATHS = re.compile(
    r"/(config|favicon\.ico|theme\.css|(assets|static)/.*|"
    r"gradio_api/(heartbeat/\w+|startup-events|queue/(join|data)|call/answer(/\w+)?))?"
)
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def import_gradio() -> Any:
    """The module `gradio`, told to send nothing to anyone.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise ConfigError('the page needs gradio: pip install -e ".[demo]"') from error
    return gradio


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there, and so nobody else does.

    Raises:
        RunError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise RunError(f"--host {host} --port {port} cannot be had: {reason}") from error


def url(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def build_app(answer: Callable[[object], Any]) -> Any:
    """The page, as an ASGI application.

    Args:
        answer: from what the paper sends, a data URL, to what answer.html shows; it raises
            ValueError for what no paper sends.
    """
    gradio = import_gradio()
    from fastapi import FastAPI

    # Its own pages, of documentation, would have scripts from elsewhere.
    server = FastAPI(max_body_size=MAX_BODY, docs_url=None, redoc_url=None, openapi_url=None)
    return gradio.mount_gradio_app(
        server,
        build_page(gradio, answer),
        "/",
        theme=gradio.themes.Default(font="system-ui", font_mono="monospace"),
        css=read("style.css"),
        footer_links=[],
        enable_monitoring=False,
        run_history=False,  # it could be sent to Hugging Face
        ssr_mode=False,
    )


def read(name: str) -> str:
    """The text of one of the page's files."""
    return (PAGE / name).read_text("utf-8")


def build_page(gradio: Any, answer: Callable[[object], Any]) -> Any:
    """The paper and, beside it, the answer; `build_app` tells of `answer`."""

    def respond(drawing: object) -> Any:
        try:
            return answer(drawing)
        except ValueError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    async def refuse(path: str) -> None:
        raise gradio.Error("the paper sends no file", print_exception=False)

    def part(name: str, value: Any = None, script: str | None = None) -> Any:
        template = read(name)
        return gradio.HTML(
            value, html_template=template, js_on_load=script, apply_default_css=False
        )

    with gradio.Blocks(title="Draw a digit", analytics_enabled=False) as page:
        with gradio.Row(elem_id="parts"):
            paper = part("canvas.html", script=read("canvas.js"))
            shown = part("answer.html", answer(None))
        # Else Gradio fetches the file or the URL that a client names, before it calls `respond`.
        paper.async_move_resource_to_block_cache = refuse
        paper.change(
            respond,
            paper,
            shown,
            api_name="answer",
            show_progress="hidden",
            trigger_mode="always_last",  # of what is drawn while it answers, only the newest
            concurrency_limit=AT_ONCE,
        )
    page.state_session_capacity = MAX_SESSIONS
    return page.queue(max_size=MAX_QUEUE)


def guard(app: Any, address: str) -> Any:
    """`app`, an ASGI application, with PATHS alone; what a request makes it raise is one line.

    Args:
        address: where it listens. If nobody else can reach that, pages from elsewhere are refused:
            they may send requests to the machine that they are shown on, by a name of their own,
            too.
    """
    from starlette.requests import HTTPConnection
    from starlette.responses import PlainTextResponse

    is_local = ipaddress.ip_address(address).is_loopback
    names = *LOCAL_NAMES, address

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        answer = app
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        if is_local and not is_from(names, HTTPConnection(scope).headers):
            answer = PlainTextResponse("only for pages of this machine", 403)
        elif not PATHS.fullmatch(scope["path"]):
            answer = PlainTextResponse("not found", 404)
        try:
            await answer(scope, receive, send)
        except Exception as error:  # Gradio's, for what no page sends; it has answered with 500
            log.warning(f"a request has failed: {error!r}")

    return guarded


def is_from(names: Sequence[str], headers: Mapping[str, str]) -> bool:
    """Whether a request is to a host in `names`, and from a page of one, or from a program."""
    urls = f"//{headers.get('host', '')}", headers.get("origin", "//localhost")
    try:
        return all(urlsplit(url).hostname in names for url in urls)
    except ValueError:  # no URL
        return False


def serve_until_signal(app: Any, listener: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM, and then waits a second for those who are being answered."""
    import uvicorn

    warnings.filterwarnings("ignore", module="PIL")  # of what clients send
    app = guard(app, listener.getsockname()[0])
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    with Signals() as signals:
        signals.defer()  # for uvicorn, when it has ended, sends itself again what it got
        uvicorn.Server(config).run([listener])
