"""The web server of the page: Starlette on uvicorn, both of the extra `demo`."""

import asyncio
import importlib.util
import ipaddress
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mnist_jax.runtime.errors import RunError, UsageError
from mnist_jax.runtime.program import Signals

PAGE = Path(__file__).parent / "page"
MAX_BYTES = 8_000_000  # of a picture; page.js has the same number
MAX_PICTURES = 2  # at the same time: reading one may take 300 MB
MAX_REQUESTS = 64  # further requests are rejected
Answer = Callable[[bytes], dict[str, Any]]


def check_installed() -> None:
    """Raises UsageError if the libraries of the server are not installed."""
    if not (importlib.util.find_spec("starlette") and importlib.util.find_spec("uvicorn")):
        raise UsageError('the page needs starlette and uvicorn: pip install -e ".[demo]"')


def listen(host: str, port: int) -> socket.socket:
    """A socket that holds the port from now on. Raises RunError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, TypeError, ValueError) as error:  # the last two: not a host name
        reason = getattr(error, "strerror", None) or str(error)
        reason = reason.partition(" (while")[0]  # Python repeats the address
        raise RunError(f"cannot listen on --host {host} --port {port}: {reason}") from error


def url_of(listener: socket.socket) -> str:
    """The URL for a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(listener: socket.socket, answer: Answer) -> None:
    """Serves the page until SIGINT or SIGTERM; `answer` returns the JSON for an image file."""
    import uvicorn

    is_local = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    app = build_app(answer, is_local)
    config = uvicorn.Config(
        app, log_level="error", limit_concurrency=MAX_REQUESTS, timeout_graceful_shutdown=1
    )
    with Signals():  # uvicorn ends on a signal, and then raises it again
        uvicorn.Server(config).run([listener])


def build_app(answer: Answer, is_local: bool) -> Any:
    """The page as an ASGI application; if `is_local`, only this machine's pages may use it."""
    from anyio import CapacityLimiter, to_thread
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    limiter = CapacityLimiter(MAX_PICTURES)

    async def answer_picture(request: Request) -> Response:
        picture = bytearray()
        try:
            async for block in request.stream():
                picture += block
                if len(picture) > MAX_BYTES:
                    return PlainTextResponse("This picture is too large.", 413)
            found = await to_thread.run_sync(lambda: answer(bytes(picture)), limiter=limiter)
            return JSONResponse(found)
        except (ClientDisconnect, asyncio.CancelledError):  # uvicorn cancels requests at its end
            return PlainTextResponse("The server has stopped.", 503)

    app = Starlette(
        routes=[
            Route("/answer", answer_picture, methods=["POST"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]
    )

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and is_local and not is_from_here(Request(scope).headers):
            await PlainTextResponse("only for pages of this machine", 403)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guarded


def is_from_here(headers: Mapping[str, str]) -> bool:
    """Whether a request names this machine as its host, and comes from its page or a program.

    Any other web page that the user has open could send requests to this machine, also under a
    host name of its own that leads here.
    """
    urls = f"//{headers.get('host', '')}", headers.get("origin", "//localhost")
    try:
        hosts = [urlsplit(url).hostname or "" for url in urls]
        return all(host == "localhost" or ipaddress.ip_address(host).is_loopback for host in hosts)
    except ValueError:  # another name, or not a URL
        return False
