"""What object storage refuses, in one sentence each: credentials, bucket, region, network and server told apart."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from featstore.errors import StoreError
from featstore.store.location import S3Location

_AGAIN = "run the same command again, what is complete is kept"

_ROLE_ADDRESS = "169.254."
"""Where machines of a cloud ask for the credentials of their role: the last place that is looked at."""

_REFUSED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken")
_ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint", "redirect without")
_BUSY = ("status code: 5", "status code: 429", "SlowDown")
_NO_CONNECTION = ("error sending request", "dns error", "http error", "connect", "timed out", "timeout")


class ConditionError(Exception):
    """A condition of a write did not hold: the object is there already, or another than was thought."""


def is_cut_off(error: Exception) -> bool:
    """Whether a connection was lost where obstore does not try again: in the middle of an answer, or before that of a
    write on a condition."""
    said = str(error).partition("\n\nDebug source")[0]
    tries = re.search(r"after (\d+) retries, max_retries: (\d+)", said)
    exhausted = tries is not None and tries.group(1) == tries.group(2)
    return ("error sending request" in said and not exhausted) or "response body" in said or "decoding" in said


@contextmanager
def asking(location: S3Location, doing: str) -> Iterator[None]:
    """What object storage refuses within becomes a `StoreError` that says what was being done and what helps; a missing
    object stays a FileNotFoundError, a write whose condition does not hold becomes `ConditionError`."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError) as error:
        raise ConditionError(doing) from error
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise StoreError(_sentence(location, doing, error)) from error
        raise
    except BaseError as error:
        raise StoreError(_sentence(location, doing, error)) from error


def _sentence(location: S3Location, doing: str, error: Exception) -> str:
    said = " ".join(str(error).partition("\n\nDebug source")[0].split())[:400]
    if "NoSuchBucket" in said:
        return f"There is no bucket {location.bucket!r}: make it, or check the name in {location} and AWS_ENDPOINT_URL."
    if _ROLE_ADDRESS in said:
        return (
            f"{location} cannot be used without credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE, or AWS_SKIP_SIGNATURE=true where the bucket is public."
        )
    if any(word in said for word in _ELSEWHERE):
        return f"The bucket of {location} lies in another region: set AWS_REGION to its own."
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or any(
        word in said for word in _REFUSED
    ):
        return (
            f"{location} refuses these credentials ({doing}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE, and what they may do in the bucket."
        )
    if any(word in said for word in _BUSY):
        return (
            f"{location} keeps failing ({doing}, tried again and again: {said}): its server is overloaded or broken; "
            f"later {_AGAIN}."
        )
    if any(word in said.lower() for word in _NO_CONNECTION):
        return (
            f"{location} is out of reach ({doing}, tried again and again: {said}): check the network and "
            f"AWS_ENDPOINT_URL, and {_AGAIN}."
        )
    return f"{location} failed ({doing}: {said}); {_AGAIN}."
