"""A file appears whole or not at all, and what the disk refuses is one sentence."""

import errno
import os
import resource
import stat
import time
from pathlib import Path

import pytest

from featstore.errors import DiskFullError, StoreError
from featstore.files import IN_FLIGHT_SECONDS, open_whole, write_whole

OLD, NEW = b"old", b"new" * 1000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    write_whole(path, OLD)
    return path


def test_it_replaces_what_lies_there_and_what_a_kill_left(file: Path) -> None:
    left, young, other = (file.with_name(f"file{name}.partial") for name in (".0a", ".0b", "-2.0c"))
    for partial in (left, young, other):
        partial.write_bytes(b"half")
    for partial in (left, other):
        os.utime(partial, (time.time() - IN_FLIGHT_SECONDS - 5,) * 2)
    write_whole(file, NEW)
    assert file.read_bytes() == NEW
    assert sorted(file.parent.iterdir()) == sorted([file, young, other])  # the young one may be another process's


def test_two_that_write_one_file_do_not_touch_each_other(file: Path) -> None:
    with open_whole(file) as first, open_whole(file) as second:
        first.write(b"first")
        second.write(NEW)
    assert file.read_bytes() == b"first"  # the last that was done
    assert list(file.parent.iterdir()) == [file]


def test_others_may_read_what_the_user_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (
            errno.ENOSPC,
            DiskFullError,
            r"the disk is full, 100 B are free, it takes 3\.0 kB; make room and run",
        ),
        (errno.EDQUOT, DiskFullError, r"the disk is full, 100 B are free, it takes 3\.0 kB"),
        (errno.EFBIG, StoreError, r"file could not be written: no file may be that large there\.$"),
        (errno.EIO, StoreError, r"file could not be written: .*Input/output error"),
    ],
)
def test_where_the_disk_refuses_it_the_old_one_stays(
    file: Path, monkeypatch: pytest.MonkeyPatch, broken: str, code: int, kind: type[StoreError], words: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(broken, fail)
    monkeypatch.setattr("featstore.files.free_bytes", lambda _: 100)
    with pytest.raises(StoreError, match=words) as error:
        write_whole(file, NEW)
    assert type(error.value) is kind
    assert file.read_bytes() == OLD
    assert list(file.parent.iterdir()) == [file]


def test_a_limit_of_files_is_named(file: Path) -> None:
    """What `ulimit -f` sets; Python lets the write fail instead of ending the process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(StoreError, match=r"it takes 3\.0 kB, 2\.0 kB more than the 1\.0 kB that a file may have"):
            write_whole(file, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_bytes() == OLD
    assert list(file.parent.iterdir()) == [file]
