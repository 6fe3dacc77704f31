"""Where a store lies, as it was typed: a folder, or a prefix in a bucket of object storage."""

import re
from dataclasses import dataclass
from pathlib import Path

from featstore.errors import StoreError

_OTHER_CLOUDS = ("gs", "gcs", "az", "azure", "adl", "abfs", "abfss", "r2", "http", "https", "ftp", "sftp", "file")


@dataclass(frozen=True, slots=True)
class S3Location:
    """A store on object storage that speaks S3. prefix: within the bucket, without slashes around it."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


StoreLocation = Path | S3Location
"""A local folder, or a prefix in a bucket. Both print themselves as they are typed."""


def absolute(location: StoreLocation) -> str:
    """Where it lies, wherever one stands."""
    return str(location.resolve() if isinstance(location, Path) else location)


def parse_location(typed: str | StoreLocation) -> StoreLocation:
    """`spair.zarr` or `s3://bucket/prefix`. Raises `StoreError` for an address that is neither."""
    if isinstance(typed, S3Location):
        return typed
    text = str(typed)
    scheme, _, rest = text.partition(":")
    if scheme.lower() in ("s3", "s3a", "s3n") and rest.startswith("/"):
        if scheme != "s3" or not re.match(r"//[^/]", rest):
            raise StoreError(f"{text} is no address on S3: write s3://bucket/prefix, with two slashes.")
        bucket, _, prefix = rest.removeprefix("//").partition("/")
        parts = [part for part in prefix.split("/") if part]
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+[A-Za-z0-9]", bucket):
            raise StoreError(f"{text} names no bucket that can be: {bucket!r} is no bucket's name.")
        if not parts or any(part in (".", "..") for part in parts):
            raise StoreError(f"{text} must say where in the bucket the store lies: s3://{bucket}/dualsd.zarr, say.")
        return S3Location(bucket, "/".join(parts))
    if scheme.lower() in _OTHER_CLOUDS and rest.startswith("/"):
        raise StoreError(
            f"{text} cannot hold a store: --store takes a folder or s3://bucket/prefix (Google's and other clouds "
            "speak S3, too: name theirs in AWS_ENDPOINT_URL)."
        )
    return Path(text)
