"""A hub on 127.0.0.1 that hands out one model's folder, as huggingface_hub asks for it."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


class Hub:
    """What a hub does. folder: that it hands out. names: what it says of a file's name. answer: a status and an error
    code with which it answers everything. first_wait: seconds before the first answer."""

    def __init__(
        self,
        folder: Path,
        names: Callable[[str], str] = str,
        answer: tuple[int, str] | None = None,
        first_wait: float = 0.0,
    ) -> None:
        self.folder, self.names, self.answer, self.first_wait = folder, names, answer, first_wait
        self.asked: list[str] = []

    def listing(self) -> list[dict[str, object]]:
        """Names, sizes and hashes of the files."""
        files = sorted(file for file in self.folder.rglob("*") if file.is_file())
        return [
            {
                "type": "file",
                "path": self.names(file.relative_to(self.folder).as_posix()),
                "size": file.stat().st_size,
                "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
            }
            for file in files
        ]


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The address of a hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            """Silent."""

        def send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            if not hub.asked:
                time.sleep(hub.first_wait)
            path = self.path.split("?")[0]
            hub.asked.append(path)
            if hub.answer is not None:
                status, code = hub.answer
                self.send(status, b"{}", X_Error_Code=code)
            elif "/tree/" in path:
                self.send(200, json.dumps(hub.listing()).encode(), Content_Type="application/json")
            elif path.startswith("/api/models/"):
                siblings = [{"rfilename": file["path"]} for file in hub.listing()]
                known = {"id": "o/m", "sha": COMMIT, "siblings": siblings}
                self.send(200, json.dumps(known).encode(), Content_Type="application/json")
            else:
                content = (hub.folder / path.split("/resolve/")[1].split("/", 1)[1]).read_bytes()
                self.send(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

        def do_HEAD(self) -> None:
            self.do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
