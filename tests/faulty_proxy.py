"""A link to an HTTP server on this machine that fails as real ones do, from a seed."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Faults:
    """busy, refused, lost, cut: the share of requests that are answered with 503, whose connection is reset before the
    server sees them, after it did but before it answers, and in the middle of the answer's body. latency: seconds
    before each answer. bytes_per_second: of bodies, either way; 0 for no limit."""

    busy: float = 0.0
    refused: float = 0.0
    lost: float = 0.0
    cut: float = 0.0
    latency: float = 0.0
    bytes_per_second: float = 0.0


class FaultyProxy:
    """Passes requests on to `upstream`, a port. faults may be changed at any time. counts: of what was done to
    requests, by name, `passed` among them. on_request: called with each
    one as it arrives, `PUT /bucket/key`."""

    def __init__(self, upstream: int, seed: int = 0) -> None:
        self.faults = Faults()
        self.counts: Counter[str] = Counter()
        self.requests: list[str] = []
        self.on_request: Callable[[str], None] | None = None
        self._random, self._choosing = random.Random(seed), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy._serve(self, body, upstream)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:  # a client that was killed
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def injected(self) -> int:
        """Requests that something was done to."""
        return sum(count for what, count in self.counts.items() if what != "passed")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _choose(self, method: str, path: str) -> tuple[str, Faults]:
        with self._choosing:
            faults, drawn = self.faults, self._random.random()
            self.requests.append(f"{method} {path}")
        for what in ("busy", "refused", "lost", "cut"):
            share = getattr(faults, what)
            if drawn < share:
                return what, faults
            drawn -= share
        return "passed", faults

    def _serve(self, client: BaseHTTPRequestHandler, body: bytes, upstream: int) -> None:
        method = client.command
        if self.on_request is not None:
            self.on_request(f"{method} {client.path}")
        what, faults = self._choose(method, client.path)
        pace = len(body) / faults.bytes_per_second if faults.bytes_per_second else 0.0
        time.sleep(faults.latency + pace)
        if what == "busy":
            self._count(what)
            _answer(client, 503, [], SLOW_DOWN)
            return
        if what == "refused":
            self._count(what)
            _reset(client)
            return
        status, headers, answer = _ask(upstream, method, client.path, dict(client.headers), body)
        if what == "lost" or (what == "cut" and (method == "HEAD" or len(answer) < 2)):
            self._count("lost")
            _reset(client)
            return
        time.sleep(len(answer) / faults.bytes_per_second if faults.bytes_per_second else 0.0)
        self._count(what)
        if what == "cut":
            _answer(client, status, headers, answer, part=len(answer) // 2)
            _reset(client)
        else:
            _answer(client, status, headers, answer)

    def _count(self, what: str) -> None:
        with self._choosing:
            self.counts[what] += 1


def _ask(
    upstream: int, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = HTTPConnection("127.0.0.1", upstream, timeout=600)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


def _answer(
    client: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], body: bytes, part: int | None = None
) -> None:
    client.send_response_only(status)
    length = str(len(body))
    for name, value in headers:
        if name.lower() == "content-length":
            length = value  # of a HEAD's object
        elif name.lower() not in ("transfer-encoding", "connection"):
            client.send_header(name, value)
    client.send_header("Content-Length", length)
    client.end_headers()
    client.wfile.write(body if part is None else body[:part])
    client.wfile.flush()


def _reset(client: BaseHTTPRequestHandler) -> None:
    """Close a connection so that the other side sees it reset, not ended."""
    client.close_connection = True
    if client.wfile.closed:
        return
    time.sleep(0.005)  # what was sent arrives first
    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.connection.close()
