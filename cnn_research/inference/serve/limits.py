"""Limits of requests in size, time and number, and the responses beyond them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Mapping

import h11
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

RETRY = {"Retry-After": "1"}
LINGER = 1.0
"""Seconds that a client that is still sending has to read an error response: if a connection is
closed before all was received, it is reset and the response is lost."""
PATIENCE = 1.5
"""Connections are closed after this many times a request's time limit."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Upper limits of requests."""

    megabytes: float
    """Size of a request's body."""
    requests: int
    """Number of concurrent requests."""
    seconds: float
    """Time from a request's first line to the end of the response."""


def refusal(status: int, why: str, headers: Mapping[str, str] | None = None) -> Response:
    """Make the response `{"error": why}`, one line."""
    return Response(_line(why), status, headers, "application/json")


class Guard:
    """Enforces the limits on an ASGI application's requests; `/health` is always served."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self._app, self._limits = app, limits
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        app: ASGIApp = self._app
        if exchange.too_long:
            app = refusal(413, exchange.too_long)
        elif scope["path"] != "/health" and self._running >= self._limits.requests:
            app = refusal(503, "too many requests at once: try again in a second", RETRY)
        self._running += app is self._app
        try:
            async with asyncio.timeout(self._limits.seconds) as clock:
                await app(scope, exchange.receive, exchange.send)
        except TimeoutError:
            if not clock.expired():
                raise
            if exchange.answering:  # the client does not read: the connection will be closed
                return
            late = f"within {self._limits.seconds:g} s"
            if exchange.received:
                answer = refusal(503, f"no result {late}: try again later", RETRY)
            else:
                answer = refusal(408, f"incomplete {late}: send a smaller image, or send it faster")
            await answer(scope, exchange.receive, exchange.send)
        finally:
            self._running -= app is self._app
        await exchange.finish()


class _Exchange:
    """A request whose body is counted, and whose response is not lost if it is early."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits):
        headers = dict(scope["headers"])
        self._receive, self._send = receive, send
        self._left = int(limits.megabytes * 1e6)
        self._why = f"the body is larger than {limits.megabytes:g} MB: send a smaller image"
        self._held = False
        claimed = int(headers.get(b"content-length", 0))
        self.too_long = self._why if claimed > self._left else ""
        self.received = not claimed and b"transfer-encoding" not in headers
        self.answering = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.received = True
            return message
        self._left -= len(message["body"])
        self.received = not message["more_body"]
        if self._left < 0 and not self.answering:
            raise HTTPException(413, self._why)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answering = True
            if not self.received:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
        elif not message.get("more_body") and not self.received:
            message["more_body"] = self._held = True
        await self._send(message)

    async def finish(self) -> None:
        """End a response that was sent before the request was complete."""
        if not self._held:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self.received:
                    await self.receive()
        await self._send({"type": "http.response.body", "body": b""})


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which also closes connections that make no progress."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch(before=None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clock.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not valid HTTP/1.1: send POST /predict with an image")

    def _watch(self, before: object) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        now = (self.cycle, idle)
        if now != before:
            # A request seen twice has had more than its time.
            wait = PATIENCE * self.timeout_keep_alive
            self._clock = self.loop.call_later(wait, self._watch, now)
        elif idle:
            self._refuse(408, "no complete request was received: send it without pauses")
        else:
            self.transport.abort()

    def _refuse(self, status: int, why: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = _line(why)
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        answer = h11.Response(status_code=status, headers=headers)
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()


def _line(why: str) -> bytes:
    return json.dumps({"error": why}).encode() + b"\n"
