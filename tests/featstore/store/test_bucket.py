"""Objects in a bucket of a real server: conditions, the lock, failures told apart, and what runs meanwhile."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from featstore.errors import StoreError
from featstore.pipeline.sources import StoredMaps
from featstore.progress import Silent
from featstore.store import bucket as bucket_lock
from featstore.store.bucket import Bucket, Retries, open_bucket, settings_of
from featstore.store.care import verify
from featstore.store.keys import S3Location, map_path, parse_location
from featstore.store.pack import pack, unpack
from featstore.store.rows import REQUESTS, row_writer
from featstore.store.store import create_store, open_store
from matcher.configuration import LayerSpec, MatchSettings
from matcher.maps import AHEAD
from matcher.pairs import MatchingPair
from matcher.sweep import evaluate
from tests.faulty_proxy import Faults, FaultyProxy
from tests.featstore.store.small_store import ARRAYS, EXTRACTOR, HEADER, LATENT, contents, row_values, write_small_store
from tests.s3_server import make_public

IMPATIENT = Retries(again=3, first_wait=0.01, longest_wait=0.02)


@pytest.fixture
def place(s3_store: str) -> S3Location:
    found = parse_location(s3_store)
    assert isinstance(found, S3Location)
    return found


def content(bucket: Bucket, key: str) -> bytes:
    """What an object holds; nothing where it is not there."""
    found = bucket.get(key)
    return b"" if found is None else found.tobytes()


@pytest.fixture
def bucket(place: S3Location) -> Bucket:
    return open_bucket(place)


def test_a_store_as_on_disk(place: S3Location, tmp_path: Path) -> None:
    """Every array of every kind, object by object the files of the same store on a disk."""
    local, far = write_small_store(tmp_path / "local.zarr"), write_small_store(place)
    rounded = dataclasses.replace(EXTRACTOR, encoding="bitround4")
    for store in (local, far):
        array = store.require_maps(rounded, 2, 261, (6, 4, 4))
        array.write((1,), row_values(array, (1,)))
        assert array.present().tolist() == [False, True, False]
        np.testing.assert_allclose(array.read((1,)), row_values(array, (1,)), rtol=2**-5)
    files = {
        file.relative_to(local.path).as_posix(): file.read_bytes()
        for file in (tmp_path / "local.zarr").rglob("*")
        if file.is_file()
    }
    bucket = open_bucket(place)
    found = {one.key: content(bucket, one.key) for one in bucket.below()}
    assert sorted(found) == sorted(files)
    assert found == files
    assert open_store(place).arrays().keys() == far.arrays().keys() == local.arrays().keys()
    assert set(ARRAYS) == {*far.arrays(), "grids/0123456789abcdef"} - {map_path(rounded, 2, 261)}


def test_a_packed_store_that_was_copied_there(place: S3Location, bucket: Bucket, tmp_path: Path) -> None:
    """Read, verified and unpacked as on a disk; and packed again, it is what it was."""
    local = write_small_store(tmp_path / "local.zarr")
    pack(local, Silent())
    files = contents(tmp_path / "local.zarr")
    for name, data in files.items():
        bucket.put(name, data)
    store = open_store(place)
    packed = [path for path, array in store.arrays().items() if array.packed]
    assert len(packed) == len(local.arrays())

    def assert_whole() -> None:
        for array in open_store(place).arrays().values():
            for row in np.ndindex(*array.rows_shape):
                assert np.array_equal(array.read(row), row_values(array, row))

    assert_whole()
    assert verify(store, Silent()).sound
    assert sorted(unpack(store, store.array_paths(), Silent())) == sorted(packed)
    assert_whole()
    assert {one.why for one in pack(open_store(place), Silent())} == {""}
    assert_whole()
    assert verify(open_store(place), Silent()).sound
    assert {one.key for one in bucket.below()} == files.keys()


def test_what_lists_and_reads_cost(place: S3Location, s3_link: FaultyProxy) -> None:
    """Which rows are there is one request, however many; a row is one, too."""
    latents = write_small_store(place, images=40).latents()
    s3_link.requests.clear()
    assert latents.present().all()
    assert len(s3_link.requests) == 1
    for row in range(40):
        assert np.array_equal(latents.read((row,)), row_values(latents, (row,)))
    assert len(s3_link.requests) == 41


def test_rows_of_changed_images_go_in_one_request_an_array(place: S3Location, s3_link: FaultyProxy) -> None:
    """Whoever forgets them holds the lock meanwhile."""
    latents = write_small_store(place).latents()
    before = len(s3_link.requests)
    latents.delete_rows([(0,), (1,)])
    assert len(s3_link.requests) == before + 1
    assert not latents.present()[:2].any()


def test_a_store_is_there_whole_or_not(place: S3Location, s3_link: FaultyProxy, bucket: Bucket) -> None:
    """Cut off before its root was written, it is not there; the next one is made over what is left."""
    small = write_small_store
    s3_link.on_request = lambda request: setattr(
        s3_link, "faults", Faults(busy=1.0 if "own.zarr/zarr.json" in request and "PUT" in request else 0.0)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featstore.store.bucket.RETRIES", IMPATIENT)
        with pytest.raises(StoreError, match="overloaded or broken"):
            small(place)
    assert any("images/id" in one.key for one in bucket.below())
    s3_link.on_request, s3_link.faults = None, Faults()
    with pytest.raises(StoreError, match="There is no store at"):
        open_store(place)
    store = small(place)
    with pytest.raises(StoreError, match="exists already"):
        create_store(place, HEADER, store.images, LATENT)


def test_conditions(bucket: Bucket, s3_link: FaultyProxy) -> None:
    assert bucket.create("a", b"first")
    assert not bucket.create("a", b"second")
    stat = bucket.stat("a")
    assert stat is not None
    assert stat.bytes == 5
    assert bucket.replace("a", b"third", stat.e_tag)
    assert not bucket.replace("a", b"fourth", stat.e_tag), "it is another one now"
    assert content(bucket, "a") == b"third"
    assert bucket.get("b") is None
    assert bucket.stat("b") is None
    bucket.delete(["a", "b"])
    assert bucket.below() == []


def test_a_condition_whose_answer_was_lost(bucket: Bucket, s3_link: FaultyProxy) -> None:
    """The write happened, the answer did not come: the try that follows finds its own work and says so."""
    s3_link.faults = Faults(lost=1.0)
    s3_link.on_request = lambda _: setattr(s3_link, "faults", Faults()) if len(s3_link.requests) == 1 else None
    assert bucket.create("a", b"mine")
    assert s3_link.counts["lost"] == 1


def test_lock(place: S3Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time: whoever comes second waits until the first is done."""
    monkeypatch.setattr(bucket_lock, "WAIT_SECONDS", 0.01)
    inside, overlaps = threading.Semaphore(1), []

    def rearrange() -> None:
        for _ in range(3):
            with open_bucket(place).exclusive("a test", lambda _: None):
                alone = inside.acquire(blocking=False)
                overlaps.append(alone)
                time.sleep(0.02)  # long enough for another to come in, if it could
                if alone:
                    inside.release()

    threads = [threading.Thread(target=rearrange) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [True] * 9
    assert open_bucket(place).below() == [], "it is let go"


def test_lock_of_a_killed_process(place: S3Location, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts until its time is over, then it is taken over."""
    killed = b"of a process that was killed"
    bucket.create(".lock", killed)
    entered = threading.Event()

    def rearrange() -> None:
        with open_bucket(place).exclusive("a test", lambda _: None):
            entered.set()

    monkeypatch.setattr(bucket_lock, "WAIT_SECONDS", 0.01)
    waiting = threading.Thread(target=rearrange)
    waiting.start()
    assert not entered.wait(timeout=0.2)
    assert content(bucket, ".lock") == killed
    monkeypatch.setattr(bucket_lock, "LEASE_SECONDS", -1.0)
    assert entered.wait(timeout=300)
    waiting.join()
    assert bucket.get(".lock") is None


def test_a_server_that_only_fails(place: S3Location, s3_link: FaultyProxy) -> None:
    """So many tries and no more, for each way of failing."""
    broken = open_bucket(place, IMPATIENT)
    asked: list[tuple[Faults, Callable[[], object], str]] = [
        (Faults(busy=1.0), lambda: broken.get("a"), "overloaded or broken"),
        (Faults(busy=1.0), lambda: broken.put("a", b"x"), "overloaded or broken"),
        (Faults(refused=1.0), lambda: broken.get("a"), "out of reach"),
        (Faults(refused=1.0), lambda: broken.level(""), "out of reach"),
        (Faults(cut=1.0), lambda: broken.below(), "out of reach"),
    ]
    for faults, ask, said in asked:
        s3_link.faults = faults
        s3_link.requests.clear()
        with pytest.raises(StoreError, match=said) as raised:
            ask()
        assert str(place) in str(raised.value)
        assert "\n" not in str(raised.value)
        assert IMPATIENT.again < len(s3_link.requests) <= IMPATIENT.again + 1


def test_refused_credentials(place: S3Location, s3_link: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(client: object, *arguments: object) -> None:
        answer = "<Error><Code>InvalidAccessKeyId</Code></Error>"
        client.send_response_only(403)  # type: ignore[attr-defined]
        client.send_header("Content-Length", str(len(answer)))  # type: ignore[attr-defined]
        client.end_headers()  # type: ignore[attr-defined]
        client.wfile.write(answer.encode())  # type: ignore[attr-defined]

    monkeypatch.setattr(s3_link, "_serve", refuse)
    with pytest.raises(StoreError, match="refuses these credentials"):
        open_store(place)


def test_no_server(place: S3Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="is out of reach"):
        open_bucket(place, IMPATIENT).get("a")


def test_a_row_cut_in_the_middle(place: S3Location, s3_link: FaultyProxy) -> None:
    """Bodies that end too early are asked for again, and what comes is whole."""
    latents = write_small_store(place).latents()
    s3_link.faults = Faults(cut=0.5)
    for _ in range(10):
        for row in range(3):
            assert np.array_equal(latents.read((row,)), row_values(latents, (row,)))
    assert s3_link.counts["cut"] > 5


@pytest.mark.parametrize("damage", [lambda content: content[:-5], lambda content: content[:-5] + b"\0" + content[-4:]])
def test_a_damaged_object(place: S3Location, bucket: Bucket, damage: Callable[[bytes], bytes]) -> None:
    latents = write_small_store(place).latents()
    bucket.put("latents/c.1.0.0.0", damage(content(bucket, "latents/c.1.0.0.0")))
    with pytest.raises(StoreError, match=r"Row 1 of array 'latents'.* is damaged"):
        latents.read((1,))
    assert latents.damage((1,)) is not None


def test_rows_are_written_while_others_are_computed(place: S3Location) -> None:
    """The second row is computed before the first is written; when the writer ends, all are."""
    latents = write_small_store(place).latents()
    latents.delete_rows([(0,)])
    computed, late = threading.Event(), []

    class Slow:
        """An array whose first write ends only after the second row was computed."""

        objects, path = latents.objects, latents.path

        def write(self, row: tuple[int, ...], values: np.ndarray) -> None:
            if row == (0,):
                late.append(computed.wait(timeout=300))
            latents.write(row, values)

    with row_writer() as write:
        write(Slow(), (0,), row_values(latents, (0,)))  # type: ignore[arg-type]
        computed.set()
        write(Slow(), (1,), row_values(latents, (1,)))  # type: ignore[arg-type]
    assert late == [True]
    assert latents.present().all()


def test_an_error_of_a_write_behind_comes_up(place: S3Location) -> None:
    latents = write_small_store(place).latents()
    with pytest.raises(StoreError, match="not finite"), row_writer() as write:
        write(latents, (0,), np.full(LATENT, np.inf))


def test_maps_are_read_while_others_are_matched(place: S3Location) -> None:
    """Every target's map but the first is asked for before the first target is matched to its end."""
    store = write_small_store(place, images=6)
    ids = store.images.ids
    points = np.array([[10.0, 12.0]], dtype=np.float32)
    pairs = [MatchingPair(ids[0], target, "cat", points, points, 30.0) for target in ids[1:]]
    asked: list[str] = []
    everything = threading.Event()

    class Watched(StoredMaps):
        def load(self, image: str, layer: LayerSpec) -> torch.Tensor:
            found = super().load(image, layer)
            asked.append(image)
            if len(asked) == len(ids):
                everything.set()
            return found

    before = []
    evaluate(
        pairs,
        Watched(store, EXTRACTOR),
        [LayerSpec("2", 261)],
        ["nn"],
        MatchSettings(64),
        torch.device("cpu"),
        lambda _: before.append(everything.wait(timeout=300)),
    )
    assert before == [True] * len(pairs)


def test_how_far_ahead(place: S3Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a bucket as many images as requests may be under way, fewer where they are large."""
    spec = [LayerSpec("2", 261), LayerSpec("3", 261)]
    local = StoredMaps(write_small_store(tmp_path / "local.zarr"), EXTRACTOR)
    far = StoredMaps(write_small_store(place), EXTRACTOR)
    assert (local.images_ahead(spec), far.images_ahead(spec)) == (AHEAD, REQUESTS)
    monkeypatch.setattr("featstore.pipeline.sources.AHEAD_BYTES", 5 * 2 * (6 * 4 * 4 * 2 + 4))
    assert far.images_ahead(spec) == 5


def test_profile(place: S3Location, s3_link: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, region and endpoint from the files; the environment's come first."""
    pytest.importorskip("boto3", reason="profiles are read by boto3, of the extra dualsd[s3]")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = K\naws_secret_access_key = S\n")
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-north-1\nendpoint_url = http://127.0.0.1:1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    found = settings_of(place)
    assert found.config["endpoint"] == s3_link.url
    assert found.provider is None
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    found = settings_of(place)
    assert found.config == {"endpoint": "http://127.0.0.1:1", "region": "eu-north-1"}
    assert found.provider is not None
    said = found.provider()
    assert (said["access_key_id"], said["secret_access_key"]) == ("K", "S")
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(StoreError, match=r"AWS profile for .* cannot be used: .*other"):
        settings_of(place)


def test_anonymous(place: S3Location, s3_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public bucket is read without credentials and without a signature."""
    write_small_store(place)
    for one in open_bucket(place).below():
        make_public(s3_server, f"/{place.bucket}/{place.prefix}/{one.key}")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    latents = open_store(place).latents()
    assert latents.present().all()
    assert np.array_equal(latents.read((2,)), row_values(latents, (2,)))
