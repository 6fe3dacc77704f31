"""Who may ask the workbench: the page that it served, with the token of its address, and nobody else.

Other pages in the same browser can send requests to any port of this machine, and a name that somebody makes resolve to
127.0.0.1 makes theirs look like ours (DNS rebinding). So what a request says of its host, its origin and its site must
be ours; every call must bring the token, which only the page knows; and a body that is too large is refused before it
is read.
"""

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

API, TOKEN, TOKEN_HEADER = "/api/", "token", "x-dualsd-token"
UPLOAD = "/api/upload"

LARGEST_BODY, LARGEST_UPLOAD = 1 << 20, 32 << 20
"""Bytes of a request's body, and of an image that is dropped on the page."""

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer."""

LOCAL = ("127.0.0.1", "localhost", "::1")


def refusal(status: int, sentence: str) -> JSONResponse:
    """An answer that says why there is none."""
    return JSONResponse({"error": sentence}, status)


@dataclass(frozen=True, slots=True)
class Guard:
    """Hands on to `app` what may be asked. token: that of the address. host, port: that it is bound to."""

    app: ASGIApp
    token: str
    host: str
    port: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":  # no request: the server begins, or ends
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        headers, limit = Headers(scope=scope), LARGEST_UPLOAD if scope["path"] == UPLOAD else LARGEST_BODY
        refused = self._refused(scope, headers, limit)
        if refused is not None:
            await refused(scope, receive, send_guarded)
            return
        await self.app(scope, _Limited(receive, limit), send_guarded)

    def _refused(self, scope: Scope, headers: Headers, limit: int) -> JSONResponse | None:
        """The answer to a request that may not be made; None to others."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if len(headers.getlist("host")) != 1 or not self._is_ours(host):
            return refusal(403, "This address is not the workbench's own: use the one that `dualsd view` printed.")
        if origin is not None and origin != f"http://{host}":
            return refusal(403, "Another site's page may not ask the workbench.")
        # a link to the page that was clicked elsewhere may lead here; the token says that it was ours
        is_visit = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_visit:
            return refusal(403, "Another site's page may not ask the workbench.")
        if (scope["path"] == "/" or scope["path"].startswith(API)) and not self._has_token(scope, headers):
            return refusal(403, "The token is missing or wrong: open the address that `dualsd view` printed.")
        stated = headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > limit:
            return refusal(413, f"That is too large: at most {limit >> 20} MiB are taken.")
        return None

    def _has_token(self, scope: Scope, headers: Headers) -> bool:
        asked = parse_qs(scope["query_string"].decode("latin-1")).get(TOKEN, []) if scope["method"] == "GET" else []
        given = [*headers.getlist(TOKEN_HEADER), *asked]
        return len(given) == 1 and secrets.compare_digest(given[0].encode(), self.token.encode())

    def _is_ours(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        if port != str(self.port):
            return False
        name = name.removeprefix("[").removesuffix("]").lower()
        if self.host in LOCAL:
            return name in LOCAL
        if name == self.host.lower() or name in LOCAL:
            return True
        # bound to all addresses: whichever number leads here; no name does, as anybody can make one lead anywhere
        return is_every(self.host) and _is_number(name)


def is_every(host: str) -> bool:
    """Whether a host stands for all addresses of this machine."""
    return _is_number(host) and ipaddress.ip_address(host).is_unspecified


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    return host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class TooLargeError(Exception):
    """A body is larger than it may be."""


@dataclass(slots=True)
class _Limited:
    """A body that says nothing of its length is counted as it comes."""

    receive: Receive
    left: int

    async def __call__(self) -> Message:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise TooLargeError
        return message


def spell_host(host: str) -> str:
    """As an address has it."""
    return f"[{host}]" if ":" in host else host


def names_of(host: str) -> Sequence[str]:
    """Under which names the page is said to be reached: all addresses are this machine's own."""
    return LOCAL[:1] if is_every(host) else (host,)
