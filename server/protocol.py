"""What a connection may take before a request reaches the app: bytes of headers, and time to send them. Knows uvicorn, no route.

uvicorn and httptools bound neither: headers of any length are kept until they end, and a client may take forever to send them. What is
only a little too long is let through, for the app to refuse in the envelope of the called convention.
"""

import asyncio
import http
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import ApiError, envelope


def bounded(max_head_bytes: int, header_timeout: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with a bound on the bytes and on the seconds (s) that the head of a request may take."""
    return type("BoundedProtocol", (_Bounded,), {"max_head_bytes": max_head_bytes, "header_timeout": header_timeout})


class _Bounded(HttpToolsProtocol):
    max_head_bytes: int
    header_timeout: float

    _head_bytes = 0  # of a head that did not end yet, without the read that it began in
    _in_head = False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        continued = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if continued and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.max_head_bytes:
                self._refuse(ApiError(431, "headers_too_large", "The request's path and headers are far too large."))
        elif self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._set_deadline()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._drop_deadline()
        super().on_headers_complete()

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.header_timeout, self._late)

    def _drop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self._in_head and not self.transport.is_closing():
            self._refuse(
                ApiError(408, "request_timeout", f"The headers were not complete after {self.header_timeout:g} s: send them again.")
            )
        self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answers as far as HTTP goes, for no route is known, and closes; into an answer that is under way nothing is written."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        body = json.dumps(envelope("", error)).encode()
        lines = [
            f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
