"""Refuse requests that Gradio would accept: too large, sent by other sites, or naming what does not exist."""

import asyncio
import logging
from urllib.parse import urlsplit

from gradio.route_utils import API_PREFIX, FnIndexInferError
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.settings import is_loopback

LOG = logging.getLogger(__name__)
UPLOAD = f"{API_PREFIX}/upload"
LOGIN = "/login"
GUESS_SECONDS = 1.0  # between a wrong password and the next one that is looked at, whoever sends it
GUESSES = 10  # logins that may wait; more are refused


class TooLarge(Exception):
    """The body of a request is longer than allowed."""


class Guard:
    """ASGI middleware that refuses requests with a one-sentence answer.

    The status is 413 where the body is longer than `most` bytes (for uploads, than `upload` bytes),
    403 where the request comes from another site or its path contains an address, and 400 where it
    names something that this page does not have.

    Without this, any other page open in the same browser could label or delete drawings. Browsers
    state where a request comes from, and no page can change that: in the header Sec-Fetch-Site for
    servers that they consider secure, and in Origin for all servers. With `local`, the header Host
    must be a name of this machine: otherwise another site could make its own name point to this
    server (DNS rebinding). A path must not contain an address, because Gradio would fetch from that
    address for anybody. Logins are looked at one after the other, and a wrong one holds up the next, so
    that nobody can guess a password by trying many; 429 where too many wait.
    """

    def __init__(self, app: ASGIApp, most: int, upload: int, local: bool) -> None:
        self.app, self.most, self.upload, self.local = app, most, upload, local
        self.login, self.logins = asyncio.Lock(), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"].rstrip("/") == LOGIN and scope["method"] == "POST":
            return await self._one_by_one(scope, receive, send)
        await self._checked(scope, receive, send)

    async def _one_by_one(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        if self.logins >= GUESSES:
            return await PlainTextResponse("too many logins at once: try again in a minute", 429)(scope, receive, send)
        self.logins += 1
        try:
            async with self.login:
                await self._checked(scope, receive, noted)
                if status >= 400:
                    await asyncio.sleep(GUESS_SECONDS)
        finally:
            self.logins -= 1

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                raise TooLarge  # Gradio caught the first one, and is about to call the message malformed
            started = True
            await send(message)

        if "://" in scope["path"] or scope["path"].startswith(f"{API_PREFIX}/proxy"):
            return await answer("this page fetches nothing from elsewhere", 403)
        if self.local and not is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or ""):
            return await answer("open this page under localhost or 127.0.0.1: it answers to no other name", 403)
        if not reads and _is_foreign(headers):
            return await answer("this page accepts no changes from other sites", 403)
        try:
            if int(headers.get("content-length", 0)) > most:
                raise TooLarge
            await self.app(scope, counted, sent)
        except TooLarge:
            await answer("the message is too large", 413)
        except (FnIndexInferError, KeyError, TypeError) as error:  # Gradio does not check the names it looks up
            LOG.warning("%s %r: %r", scope["method"], scope["path"], error)
            await answer("the message names something that this page does not have", 400)


def _is_foreign(headers: Headers) -> bool:
    """Whether a browser has sent the request for a page of another site."""
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] not in ("same-origin", "none")
    return "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host")
