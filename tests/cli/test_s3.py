"""The main job on object storage, over a link that fails: everything ends as it does on a local disk, byte by byte."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from featstore.store.bucket import Retries, open_bucket
from featstore.store.keys import S3Location, parse_location
from tests.cli.conftest import Run
from tests.faulty_proxy import Faults, FaultyProxy

BAD_LINK = Faults(busy=0.15, refused=0.08, lost=0.08, cut=0.08, latency=0.002, bytes_per_second=20e6)
DRAWS = 10


@pytest.fixture
def build(photographs: Path, small_model: Path) -> list[str]:
    """`cache build` of 6 photographs, whose noisy latents are 6 x 2 x 10 rows."""
    arguments = ["cache", "build", "--dataset", "folder", "--root", str(photographs), "--model", str(small_model)]
    return [*arguments, "--size", "64", "--t", "50,261", "--ensemble", str(DRAWS), "--batch-size", "4"]


def stored(store: str) -> dict[str, bytes]:
    """Every object, or file, of a store but its lock."""
    place = parse_location(store)
    if isinstance(place, Path):
        files = [file for file in place.rglob("*") if file.is_file() and file.name != ".lock"]
        return {file.relative_to(place).as_posix(): file.read_bytes() for file in files}
    bucket = open_bucket(place)
    found = {one.key: bucket.get(one.key) for one in bucket.below()}
    return {path: content.tobytes() for path, content in found.items() if content is not None}


def numbers(file: str) -> object:
    return json.loads(Path(file).read_text())["results"]


@pytest.mark.slow
def test_main_job_over_a_bad_link(run: Run, build: list[str], s3_link: FaultyProxy, s3_store: str) -> None:
    s3_link.faults = BAD_LINK
    evaluation = ["eval", "--layers", "2,3", "--t", "261,50", "--ensemble", "2", "--readouts", "nn,kernelsoftmax"]
    for store in ("local.zarr", s3_store):
        for arguments in ([*build, "--ensemble", "30"], [*evaluation, "--json", f"{Path(store).name}.json"]):
            result = run(*arguments, "--store", store)
            assert result.exit_code == 0, result.output
    assert stored(s3_store) == stored("local.zarr")
    assert numbers("own.zarr.json") == numbers("local.zarr.json")
    verified = run("cache", "verify", "--store", s3_store, "--json", "verified.json")
    assert verified.exit_code == 0, verified.output
    rows = {array["path"]: array["present"] for array in json.loads(Path("verified.json").read_text())["arrays"]}
    assert (rows["latents"], rows["noisy/t0261"]) == (6, 6 * 30)
    assert s3_link.injected >= 200
    assert min(s3_link.counts[what] for what in ("busy", "refused", "lost", "cut")) > 20


def test_stopped_server(
    run: Run, build: list[str], s3_link: FaultyProxy, s3_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops answering in the middle is given up after so many tries, in one sentence; nothing is lost."""
    puts = 0

    def stop_after_a_hundred(request: str) -> None:
        nonlocal puts
        puts += request.startswith("PUT")
        if puts == 100:
            s3_link.faults = Faults(busy=1.0)

    with monkeypatch.context() as impatient:
        impatient.setattr("featstore.store.bucket.RETRIES", Retries(again=2, first_wait=0.01, longest_wait=0.02))
        s3_link.on_request = stop_after_a_hundred
        result = run(*build, "--store", s3_store)
    assert result.exit_code == 2
    assert s3_store in result.output
    assert "overloaded or broken" in result.output
    assert "503" in result.output
    assert "Traceback" not in result.output
    # every row under way was tried three times, 8 at a time and 16 handed over at most, and the error of one is raised
    assert 3 <= s3_link.counts["busy"] <= 3 * 24
    s3_link.on_request = None
    s3_link.faults = Faults()
    kept = {path for path in stored(s3_store) if "/c." in path}
    assert 60 < len(kept) < 6 + 12 * DRAWS
    again = run(*build, "--store", s3_store)
    assert again.exit_code == 0, again.output
    assert f"{6 + 12 * DRAWS - len(kept)} noisy latents" in again.output
    assert run(*build, "--store", "local.zarr").exit_code == 0
    assert stored(s3_store) == stored("local.zarr")


def test_killed(run: Run, build: list[str], s3_link: FaultyProxy, s3_store: str) -> None:
    """SIGKILL in the middle of a build: no object is half, and the next run goes on from there."""
    enough, killed = threading.Event(), threading.Event()

    def hold(request: str) -> None:
        """From a row in the middle on nothing is answered before the kill, however late that comes."""
        if "/c.3.7" in request:
            enough.set()
        if enough.is_set():
            killed.wait(timeout=600)

    s3_link.on_request = hold
    s3_link.faults = Faults(latency=0.01)
    code = f"from cli.main import app; app({[*build, '--store', s3_store]!r})"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    assert enough.wait(timeout=600)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    s3_link.on_request, s3_link.faults = None, Faults()
    killed.set()
    before = stored(s3_store)
    assert 0 < len([path for path in before if "/c." in path]) < 6 + 12 * DRAWS
    assert run(*build, "--store", s3_store).exit_code == 0
    assert run(*build, "--store", "local.zarr").exit_code == 0
    after = stored(s3_store)
    assert after == stored("local.zarr")
    assert before == {path: after[path] for path in before}


@pytest.mark.slow
def test_parts_at_once_and_their_maps_exported(run: Run, build: list[str], s3_link: FaultyProxy, s3_store: str) -> None:
    """Two jobs that find no store: one makes it, both fill it. What is exported is what a local store exports."""
    build = [*build, "--ensemble", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    s3_link.faults = Faults(latency=0.002)
    jobs = [
        subprocess.Popen([sys.executable, "-m", "dualsd", *build, "--store", s3_store, "--part", part], env=environment)
        for part in ("1/2", "2/2")
    ]
    assert [job.wait(timeout=600) for job in jobs] == [0, 0]
    export = ["cache", "export", "--layers", "2,3", "--t", "261,50", "--ensemble", "2", "--batch-size", "4"]
    assert run(*build, "--store", "local.zarr").exit_code == 0
    assert stored(s3_store) == stored("local.zarr")
    for store, out in (("local.zarr", "local.safetensors"), (s3_store, "far.safetensors")):
        result = run(*export, "--store", store, "--out", out)
        assert result.exit_code == 0, result.output
    assert Path("far.safetensors").read_bytes() == Path("local.safetensors").read_bytes()
    assert stored(s3_store) == stored("local.zarr")


def test_changed_photograph(run: Run, build: list[str], photographs: Path, s3_link: FaultyProxy, s3_store: str) -> None:
    """An image whose file changed has a new row, in the bucket as on a disk."""
    assert run(*build, "--store", s3_store).exit_code == 0
    assert run(*build, "--store", "local.zarr").exit_code == 0
    (photographs / "cat" / "1.png").write_bytes((photographs / "dog" / "2.png").read_bytes())
    again = run(*build, "--store", s3_store)
    assert again.exit_code == 0, again.output
    assert "1 encoded" in again.output
    assert run(*build, "--store", "local.zarr").exit_code == 0
    assert stored(s3_store) == stored("local.zarr")


def test_care(run: Run, build: list[str], s3_link: FaultyProxy, s3_store: str) -> None:
    """What is cut short in the bucket is found and made anew; pruning takes away what it says; packed rows are read."""
    assert run(*build, "--store", s3_store).exit_code == 0
    maps = ["cache", "maps", "--layers", "2,3", "--t", "261,261", "--ensemble", "1", "--batch-size", "4"]
    assert run(*maps, "--store", s3_store).exit_code == 0
    whole = stored(s3_store)
    place = parse_location(s3_store)
    assert isinstance(place, S3Location)
    bucket, victim = open_bucket(place), "noisy/t0261/c.2.5.0.0.0"
    bucket.put(victim, whole[victim][:-7])
    found = run("cache", "verify", "--store", s3_store)
    assert found.exit_code == 2
    assert "1 damaged row(s)" in found.output
    dropped = run("cache", "verify", "--store", s3_store, "--drop", "--json", "v.json")
    assert dropped.exit_code == 0, dropped.output
    (command,) = json.loads(Path("v.json").read_text())["commands"].values()
    assert run(*shlex.split(command)[1:], "--batch-size", "4").exit_code == 0
    assert stored(s3_store) == whole
    pruned = run("cache", "prune", "--store", s3_store, "--layers", "2")
    assert pruned.exit_code == 0, pruned.output
    assert stored(s3_store) == {path: own for path, own in whole.items() if "layer2" not in path}
    assert run("cache", "prune", "--store", s3_store, "--layers", "3").exit_code == 0
    # as on a disk, the folder of all maps goes with the last of them
    assert stored(s3_store) == {path: own for path, own in whole.items() if not path.startswith("maps/")} | {
        path: own for path, own in whole.items() if path == "maps/zarr.json"
    }
    before = stored(s3_store)
    assert run("cache", "pack", "--store", s3_store).exit_code == 0
    assert len(stored(s3_store)) < len(before)
    assert run("cache", "verify", "--store", s3_store).exit_code == 0
    assert run("cache", "unpack", "--store", s3_store).exit_code == 0
    assert stored(s3_store) == before


def test_grid(run: Run, build: list[str], s3_link: FaultyProxy, s3_store: str) -> None:
    """The same table from both; what the grid kept while it ran is gone."""
    grid = ["grid", "--layers", "2", "--t", "50,261", "--ensemble", "1", "--readouts", "nn"]
    for name, store in (("local", "local.zarr"), ("far", s3_store)):
        assert run(*build, "--store", store).exit_code == 0
        result = run(*grid, "--csv", f"{name}.csv", "--out", name, "--store", store)
        assert result.exit_code == 0, result.output
    assert Path("local.csv").read_text() == Path("far.csv").read_text()
    assert stored(s3_store) == stored("local.zarr")


@pytest.mark.slow
def test_train(run: Run, s3_link: FaultyProxy, s3_store: str) -> None:
    """The same prompts from both, bit by bit, over a bad link."""
    s3_link.faults = BAD_LINK
    train = ["train", "--mode", "class", "--steps", "3", "--draws", "2", "--val-pairs", "20", "--batch", "3"]
    for name, store in (("local", "local.zarr"), ("far", s3_store)):
        built = run("cache", "build", "--t", "261,350", "--store", store)
        assert built.exit_code == 0, built.output
        trained = run(*train, "--device", "cpu", "--name", name, "--store", store)
        assert trained.exit_code == 0, trained.output
    prompts = [Path("runs", name, "prompts-last.safetensors").read_bytes() for name in ("local", "far")]
    assert prompts[0] == prompts[1]
    resumed = run("train", "--resume", "runs/far", "--steps", "4", "--device", "cpu")
    assert resumed.exit_code == 0, resumed.output


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("s3:/bucket/own", "write s3://bucket/prefix, with two slashes"),
        ("s3://bucket", "where in the bucket"),
        ("gs://bucket/own", "cannot hold a store"),
        ("s3://no-such-bucket-here/own", "There is no bucket 'no-such-bucket-here'"),
    ],
)
def test_wrong_address(run: Run, s3_link: FaultyProxy, store: str, said: str) -> None:
    result = run("cache", "info", "--store", store)
    assert result.exit_code == 2
    assert said in result.output
    assert not any(Path().iterdir()), "no folder of that name was made"


def test_no_store_there(run: Run, s3_link: FaultyProxy, s3_store: str) -> None:
    result = run("eval", "--store", s3_store)
    assert result.exit_code == 2
    assert f"There is no store at {s3_store}" in result.output


def test_obstore_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    result = run("cache", "info", "--store", "s3://bucket/own")
    assert result.exit_code == 2
    assert "pip install 'dualsd[s3]'" in result.output
