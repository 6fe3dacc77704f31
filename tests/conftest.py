"""A small model and a small folder of photographs that tests share."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featstore.store.bucket import Retries
from tests.faulty_proxy import FaultyProxy
from tests.s3_server import make_bucket, python_with_moto, running
from tools.demo_model.small_model import write_small_model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 2-1's block structure with seeded random weights, as a diffusers folder."""
    folder = tmp_path_factory.mktemp("model") / "small"
    write_small_model(folder, seed=3)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fingerprints are remembered in a folder of the tests' own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A `folder` dataset: 2 categories of 3 pictures each, 4 keypoints a picture, sizes 60x40 and so on."""
    return write_photographs(tmp_path / "photographs")


def write_photographs(root: Path) -> Path:
    """The same bytes each time."""
    rows = ["image,name,x,y"]
    random = np.random.default_rng(5)
    for category in ("cat", "dog"):
        (root / category).mkdir(parents=True)
        for index in range(3):
            width, height = 60 + 10 * index, 40 + 6 * index
            pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / category / f"{index}.png")
            rows += [
                f"{category}/{index},k{point},{random.uniform(0, width - 1):.2f},{random.uniform(0, height - 1):.2f}"
                for point in range(4)
            ]
    (root / "keypoints.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no small file system can be mounted here: that takes the rights of an administrator")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """The port of a real S3 server on loopback."""
    python = python_with_moto()
    if python is None:
        assert "CI" not in os.environ, "CI installs the S3 server (make test)"
        pytest.skip("moto's S3 server is not installed: `make test` installs it")
    with running(python) as port:
        yield port


@pytest.fixture
def s3_link(s3_server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A link to the S3 server that has the bucket `bucket-...` of `s3_store`, and the environment to use it. It works
    until a test gives it faults; waits before another try are short."""
    proxy = FaultyProxy(s3_server, seed=7)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("featstore.store.bucket.RETRIES", Retries(again=20, first_wait=0.01, longest_wait=0.05))
    yield proxy
    proxy.close()


@pytest.fixture
def s3_store(s3_server: int, s3_link: FaultyProxy) -> str:
    """Where a store may be made: s3://bucket-.../stores/own.zarr, in a bucket of its own."""
    bucket = f"bucket-{uuid.uuid4().hex}"
    make_bucket(s3_server, bucket)
    return f"s3://{bucket}/stores/own.zarr"
