"""What --store may be."""

from pathlib import Path

import pytest

from featstore.errors import StoreError
from featstore.store.keys import S3Location, parse_location


def test_address() -> None:
    found = parse_location("s3://lab-data/stores/spair.zarr/")
    assert found == S3Location("lab-data", "stores/spair.zarr")
    assert str(found) == "s3://lab-data/stores/spair.zarr"
    assert parse_location(found) is found


@pytest.mark.parametrize("folder", ["dualsd.zarr", "/data/spair.zarr", "../s3/x", "s3", "C:/x", "a:b"])
def test_folder(folder: str) -> None:
    assert parse_location(folder) == parse_location(Path(folder)) == Path(folder)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("s3:/lab-data/x", "two slashes"),
        ("s3:///x", "two slashes"),
        ("S3://lab-data/x", "two slashes"),
        ("s3://lab-data", "where in the bucket"),
        ("s3://lab-data/", "where in the bucket"),
        ("s3://lab-data/a/../b", "where in the bucket"),
        ("s3://a b/x", "names no bucket"),
        ("gs://lab-data/x", "cannot hold a store"),
        ("az://lab-data/x", "cannot hold a store"),
        ("https://lab-data/x", "cannot hold a store"),
    ],
)
def test_wrong(typed: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        parse_location(typed)


def test_a_path_that_lost_a_slash() -> None:
    """pathlib folds `s3://` to `s3:/`."""
    with pytest.raises(StoreError, match="two slashes"):
        parse_location(Path("s3://lab-data/x"))
