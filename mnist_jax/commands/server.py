"""The web server of the page: Starlette on uvicorn, both of the extra `demo`."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mnist_jax.runtime.errors import RunError
from mnist_jax.runtime.program import Signals

PAGE = Path(__file__).parent / "page"
MAX_BYTES = 8_000_000  # of a picture; page.js has the same number
MAX_PICTURES = 2  # at the same time: reading one may take 300 MB
UPLOAD_SECONDS = 60  # for a picture to arrive
MAX_REQUESTS = 64  # further requests are rejected
Answer = Callable[[bytes], dict[str, Any]]


def listen(host: str, port: int) -> socket.socket:
    """A socket that holds the port from now on. Raises RunError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, TypeError, ValueError) as error:  # the last two: not a host name
        reason = getattr(error, "strerror", None) or str(error)
        reason = reason.partition(" (while")[0]  # Python repeats the address
        raise RunError(f"cannot listen on --host {host} --port {port}: {reason}") from error


def serve(listener: socket.socket, answer: Answer) -> None:
    """Serves the page until SIGINT or SIGTERM; `answer` returns the JSON for an image file."""
    import uvicorn

    app = build_app(answer, ipaddress.ip_address(listener.getsockname()[0]).is_loopback)
    config = uvicorn.Config(
        app, log_level="error", limit_concurrency=MAX_REQUESTS, timeout_graceful_shutdown=1
    )
    with Signals():  # uvicorn ends on a signal, and then raises it again
        uvicorn.Server(config).run([listener])


def build_app(answer: Answer, is_local: bool) -> Any:
    """The page as an ASGI application. If `is_local`, Host must name this machine."""
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
            async with asyncio.timeout(UPLOAD_SECONDS):
                async for block in request.stream():
                    picture += block
                    if len(picture) > MAX_BYTES:
                        return PlainTextResponse("This picture is too large.", 413)
            found = await to_thread.run_sync(lambda: answer(bytes(picture)), limiter=limiter)
            return JSONResponse(found)
        except TimeoutError:
            return PlainTextResponse("This picture arrives too slowly.", 408)
        except (ClientDisconnect, asyncio.CancelledError):  # uvicorn cancels requests at its end
            return PlainTextResponse("The server has stopped.", 503)

    app = Starlette(
        routes=[
            Route("/answer", answer_picture, methods=["POST"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]
    )

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not is_allowed(Request(scope).headers, is_local):
            await PlainTextResponse("use the URL that `demo` printed", 403)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guarded


def is_allowed(headers: Mapping[str, str], is_local: bool) -> bool:
    """Whether a request comes from our own page, or from a program that is no browser.

    Browsers name the page that sends a request in Origin. If `is_local`, Host must be this machine:
    another site could let its host name lead to this address (DNS rebinding).
    """
    host = headers.get("host", "")
    try:
        if urlsplit(headers.get("origin", f"//{host}")).netloc != host:
            return False
        name = urlsplit(f"//{host}").hostname or ""
        return not is_local or name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:  # another name, or not a URL
        return False
