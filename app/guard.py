"""What Gradio does not refuse by itself: messages of any size, those of other sites, and what names nothing here."""

import logging
from urllib.parse import urlsplit

from gradio.route_utils import API_PREFIX, FnIndexInferError
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.settings import is_loopback

LOG = logging.getLogger(__name__)
UPLOAD = f"{API_PREFIX}/upload"


class TooLarge(Exception):
    """A message is longer than was allowed."""


class Guard:
    """ASGI middleware: 413 for bodies of more than `most` bytes, or `upload` for files; 403 for what others may not do.

    Any page that is open in the same browser could else label or delete drawings. Browsers say
    where a request comes from, which no page can change: in Sec-Fetch-Site to servers that they
    hold for safe, in Origin to all. A server that is `local` answers to this machine's names alone,
    or another site could take its address for its own (DNS rebinding). Addresses in a path are
    refused because Gradio would fetch for everybody what they name.
    """

    def __init__(self, app: ASGIApp, most: int, upload: int, local: bool) -> None:
        self.app, self.most, self.upload, self.local = app, most, upload, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, reads = Headers(scope=scope), scope["method"] in ("GET", "HEAD", "OPTIONS")
        most = self.upload if scope["path"].rstrip("/") == UPLOAD else self.most
        started, length = False, 0

        async def answer(text: str, status: int) -> None:
            if not started:
                await PlainTextResponse(text, status)(scope, receive, send)

        async def counted() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > most:
                raise TooLarge
            return message

        async def sent(message: Message) -> None:
            nonlocal started
            if length > most:
                raise TooLarge  # Gradio has taken the first one for a mistake in the message
            started = True
            await send(message)

        if "://" in scope["path"] or scope["path"].startswith(f"{API_PREFIX}/proxy"):
            return await answer("this page fetches nothing from elsewhere", 403)
        if self.local and not is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or ""):
            return await answer("this page goes by the names of this machine alone", 403)
        if not reads and _is_foreign(headers):
            return await answer("this page answers to itself alone", 403)
        try:
            if int(headers.get("content-length", 0)) > most:
                raise TooLarge
            await self.app(scope, counted, sent)
        except TooLarge:
            await answer("the message is too large", 413)
        except (FnIndexInferError, KeyError, TypeError) as error:  # Gradio looks up whatever a message names
            LOG.warning("%s %r: %r", scope["method"], scope["path"], error)
            await answer("the message names nothing on this page", 400)


def _is_foreign(headers: Headers) -> bool:
    """Whether a browser has sent it for a page of another site."""
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] not in ("same-origin", "none")
    return "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host")
