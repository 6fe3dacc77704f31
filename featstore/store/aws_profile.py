"""Credentials the usual way: the environment's first, then a profile's, then the role of the machine.

obstore reads the environment and asks for roles by itself; profiles are files, which it does not read."""

import configparser
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featstore.errors import StoreError
from featstore.store.keys import S3Location

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_INDIRECT = ("role_arn", "sso_session", "sso_start_url", "credential_process", "web_identity_token_file")
_ROLE_VARIABLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """config: what obstore is told over the environment. provider: of credentials that change, None for none."""

    config: dict[str, str] = field(repr=False)
    provider: Any = None


def settings_of_profile(location: S3Location) -> AwsSettings:
    """Endpoint, region and credentials for a store. Raises `StoreError` for a profile that is named and missing, or
    that takes boto3 where that is not installed."""
    profile, own = _profile(location)
    config = {}
    endpoint = _first(_ENDPOINTS) or own.get("endpoint_url")
    region = _first(_REGIONS) or own.get("region")
    if endpoint:
        config["endpoint"] = endpoint
    if region:
        config["region"] = region
    if _first(("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE")):
        return AwsSettings(config)
    if _KEYS[0] in own and _KEYS[1] in own:
        return AwsSettings(config | {key.removeprefix("aws_"): own[key] for key in _KEYS if key in own})
    if any(name in own for name in _INDIRECT) and not _first(_ROLE_VARIABLES):
        return AwsSettings(config, _through_boto3(location, profile))
    return AwsSettings(config)


def _first(names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _profile(location: S3Location) -> tuple[str, dict[str, str]]:
    """A profile's name, and what the two files say of it."""
    named = os.environ.get("AWS_PROFILE")
    name = named or "default"
    found: dict[str, str] = {}
    files = (
        (os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"), name if name == "default" else f"profile {name}"),
        (os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), name),
    )
    for file, section in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(Path(file).expanduser(), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise StoreError(f"{file} cannot be read as AWS settings for {location}: correct it.") from error
        if parser.has_section(section):
            found |= dict(parser.items(section))
    if named and not found:
        raise StoreError(f"AWS_PROFILE names {named!r}, which is in neither of {files[0][0]} and {files[1][0]}.")
    return name, found


def _through_boto3(location: S3Location, profile: str) -> Any:
    """Sessions, roles and processes, which boto3 knows how to ask."""
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise StoreError(
            f"The AWS profile {profile!r} for {location} takes boto3 (pip install boto3), or put keys into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    return Boto3CredentialProvider(boto3.session.Session(profile_name=profile))
