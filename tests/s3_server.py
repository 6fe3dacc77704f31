"""A real S3 server on loopback: moto's, in a process and an environment of its own.

Its libraries want an older python-dateutil than this project is tested with, so that `make` installs it beside
(tests/s3-server.txt).
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import MappingProxyType

OWN = Path(__file__).parent.parent / ".venv" / "s3-server" / "bin" / "python"


def python_with_moto() -> str | None:
    """What can run the server: DUALSD_S3_SERVER, what `make` installed, or this Python; None where none can."""
    for python in (os.environ.get("DUALSD_S3_SERVER"), str(OWN), sys.executable):
        if python and Path(python).exists():
            found = subprocess.run([python, "-c", "import moto.server"], capture_output=True, check=False)
            if found.returncode == 0:
                return python
    return None


@contextmanager
def running(python: str) -> Iterator[int]:
    """The server's port, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            try:
                _request(port, "GET", "/moto-api/")
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


def make_bucket(port: int, name: str) -> None:
    """Make an empty bucket."""
    assert _request(port, "PUT", f"/{name}") == 200


def make_public(port: int, path: str) -> None:
    """Let everybody read an object."""
    assert _request(port, "PUT", f"{path}?acl", {"x-amz-acl": "public-read"}) == 200


def _request(port: int, method: str, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> int:
    signed = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request(method, path, headers={"Authorization": signed, "Content-Length": "0", **headers})
        return connection.getresponse().status
    finally:
        connection.close()
