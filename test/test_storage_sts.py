"""Buckets with temporary credentials: the suite of all storages, and how roles of STS are assumed and kept."""

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from data.storage import s3
from data.storage.base import BlobWriter, Storage, StorageUnavailable
from data.storage.drivers import InvalidStorageConfiguration, make_storage
from data.storage.s3 import S3Settings, S3Storage
from data.storage.sts import Role, role_credentials
from data.storage.testing import PATH, StorageTests, content_of
from test.databases import free_port
from test.proxy import proxy
from test.relay import Relay, relay
from test.s3server import Bucket, s3_server

ROLE = "arn:aws:iam::123456789012:role/quay"


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def back_door(endpoint: str) -> Iterator[Bucket]:
    with closing(Bucket(endpoint, "temporary")) as bucket:
        yield bucket


@pytest.fixture
def sts(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Relay]:
    """Return a relay to the one STS there is, and no credentials but those that a test gives."""
    with relay(endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", between.url)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield between


def asked(sts: Relay) -> list[dict[str, str]]:
    """Return what STS was asked, without the keys' signatures."""
    bodies = re.findall(rb"\bAction=[^\s]*", b"\n".join(sts.requests))
    return [{name: values[0] for name, values in parse_qs(body.decode()).items()} for body in bodies]


def signed_by(sts: Relay) -> set[str]:
    """Return the keys that signed the requests to STS."""
    return {key.decode() for key in re.findall(rb"Credential=([^/]+)/", b"\n".join(sts.requests))}


@pytest.fixture
def parameters(endpoint: str) -> dict[str, Any]:
    return {
        "s3_bucket": "temporary",
        "storage_path": "/datastorage/registry",
        "s3_region": "us-east-1",
        "endpoint_url": endpoint,
        "sts_role_arn": ROLE,
        "sts_user_access_key": "AKIAUSER",
        "sts_user_secret_key": "hunter2",
    }


@pytest.fixture
def storage(parameters: dict[str, Any], sts: Relay, back_door: Bucket, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(s3, "MIN_PART_SIZE", 256 << 10)
    monkeypatch.setattr(s3, "PART_SIZE", 256 << 10)
    monkeypatch.setattr("data.storage.drivers.PART_SIZE", 256 << 10)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    return make_storage("here", "STSS3Storage", parameters)


class TestSTSS3Storage(StorageTests):
    def settle(self, writer: BlobWriter) -> None:
        assert isinstance(writer, s3._S3Writer)
        writer._wait(0)


def key_of(storage: Storage) -> str:
    """Return the key by which `storage` signs."""
    url = storage.direct_download_url(PATH, seconds=60)
    assert url is not None
    query = parse_qs(urlsplit(url).query)
    assert query["X-Amz-Security-Token"]
    return query["X-Amz-Credential"][0].partition("/")[0]


def test_the_role_is_assumed_once_with_the_first_request(storage: Storage, sts: Relay, back_door: Bucket) -> None:
    assert sts.requests == []
    back_door.put(PATH, b"x")
    assert content_of(storage.open(PATH)) == b"x"
    assert storage.size(PATH) == 1
    (request,) = asked(sts)
    assert (request["Action"], request["RoleArn"], request["RoleSessionName"]) == ("AssumeRole", ROLE, "quay")
    assert signed_by(sts) == {"AKIAUSER"}
    assert key_of(storage).startswith("ASIA")


def test_the_credentials_are_renewed_before_they_expire(endpoint: str, sts: Relay, back_door: Bucket) -> None:
    late = timedelta()
    role = Role(arn=ROLE, access_key="AKIAUSER", secret_key="hunter2", region="us-east-1")
    credentials = role_credentials(role, clock=lambda: datetime.now(UTC) + late)
    storage = S3Storage(S3Settings(bucket="temporary", endpoint_url=endpoint), credentials)
    first = key_of(storage)
    late = timedelta(minutes=40)
    assert key_of(storage) == first
    late = timedelta(minutes=50)
    assert key_of(storage) != first
    assert len(asked(sts)) == 2


def test_a_renewal_that_fails_early_is_no_error_and_one_that_fails_late_is(
    endpoint: str, sts: Relay, back_door: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = timedelta()
    role = Role(arn=ROLE, access_key="AKIAUSER", secret_key="hunter2", region="us-east-1")
    credentials = role_credentials(role, clock=lambda: datetime.now(UTC) + late)
    storage = S3Storage(S3Settings(bucket="temporary", endpoint_url=endpoint), credentials)
    first = key_of(storage)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    late = timedelta(minutes=47)
    assert key_of(storage) == first
    late = timedelta(minutes=59)
    with pytest.raises(StorageUnavailable, match=f"S3 does not answer for {PATH}: Could not connect") as caught:
        storage.size(PATH)
    assert "hunter2" not in str(caught.value)


def test_a_web_identity_assumes_the_role_with_the_token_of_the_moment(
    parameters: dict[str, Any], sts: Relay, back_door: Bucket, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    del parameters["sts_user_access_key"], parameters["sts_user_secret_key"]
    storage = make_storage(
        "here",
        "STSS3Storage",
        {**parameters, "sts_web_identity_token_file": str(token), "sts_role_session_name": "registry"},
    )
    with pytest.raises(StorageUnavailable, match=f"S3 does not answer for {PATH}: .*token: No such file"):
        storage.size(PATH)
    token.write_text("the.first.one")
    back_door.put(PATH, b"x")
    assert storage.size(PATH) == 1
    (request,) = asked(sts)
    assert request["Action"] == "AssumeRoleWithWebIdentity"
    assert (request["WebIdentityToken"], request["RoleSessionName"]) == ("the.first.one", "registry")


def test_without_keys_whoever_the_library_finds_assumes_the_role(
    parameters: dict[str, Any], sts: Relay, back_door: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    del parameters["sts_user_access_key"], parameters["sts_user_secret_key"]
    storage = make_storage("here", "STSS3Storage", parameters)
    with pytest.raises(StorageUnavailable, match="Unable to locate credentials"):
        storage.size(PATH)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    back_door.put(PATH, b"x")
    assert storage.size(PATH) == 1
    assert signed_by(sts) == {"AKIAENVIRONMENT"}


def test_without_a_role_the_library_s_own_web_identity_is_who_we_are(
    parameters: dict[str, Any], sts: Relay, back_door: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("of.the.pod")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("sts_role_arn", "sts_user_access_key", "sts_user_secret_key"):
        del parameters[name]
    back_door.put(PATH, b"x")
    assert make_storage("here", "STSS3Storage", parameters).size(PATH) == 1
    assert [request["WebIdentityToken"] for request in asked(sts)] == ["of.the.pod"]


def test_an_sts_that_refuses_is_told(
    parameters: dict[str, Any], sts: Relay, back_door: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = make_storage("here", "STSS3Storage", parameters)
    with proxy(sts.url) as refusing:
        refusing.refuses = lambda _, __: "refuse"
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", refusing.url)
        with pytest.raises(StorageUnavailable, match=f"S3 refuses AssumeRole of {PATH}: ") as caught:
            storage.size(PATH)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "fact"),
    [
        ({"sts_user_secret_key": ""}, "sts_user_secret_key is missing"),
        ({"sts_user_access_key": None}, "sts_user_access_key is missing"),
        ({"sts_role_arn": None}, "sts_role_arn is missing"),
        ({"sts_role_arn": 3}, "sts_role_arn must be a text"),
        ({"s3_bucket": None}, "s3_bucket is missing"),
        ({"sts_user_password": "hunter2"}, "unknown parameter sts_user_password"),
    ],
)
def test_what_cannot_be_used_is_named(parameters: dict[str, Any], changed: dict[str, Any], fact: str) -> None:
    with pytest.raises(InvalidStorageConfiguration) as caught:
        make_storage("here", "STSS3Storage", {**parameters, **changed})
    assert str(caught.value) == f"storage location 'here' (STSS3Storage): {fact}"
