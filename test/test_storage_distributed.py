"""Several locations as one storage, and what Quay's configuration says of them."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.storage.base import BlobNotFound, Storage, StorageUnavailable
from data.storage.distributed import DistributedStorage, StorageReadOnly, storage_from_config
from data.storage.drivers import InvalidStorageConfiguration, make_storage
from data.storage.local import LocalStorage
from data.storage.s3 import S3Storage
from data.storage.swift import SwiftSettings, SwiftStorage
from data.storage.testing import content_of
from endpoints.settings import Settings
from util.digest import Readable


class Broken(LocalStorage):
    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        raise StorageUnavailable("the wire is cut")

    def size(self, path: str) -> int:
        raise StorageUnavailable("the wire is cut")


@dataclass(frozen=True)
class Locations:
    root: Path

    def storage(self, name: str, blobs: Mapping[str, bytes] | None = None) -> Storage:
        storage = LocalStorage(self.root / name)
        for path, content in (blobs or {}).items():
            with storage.create(path) as writer:
                writer.write(content)
                writer.commit()
        return storage


@pytest.fixture
def at(tmp_path: Path) -> Locations:
    return Locations(tmp_path)


def test_a_blob_comes_from_the_preferred_location_that_has_it(at: Locations) -> None:
    storage = DistributedStorage(
        {
            "us": at.storage("us", {"both": b"us", "us": b"us"}),
            "eu": at.storage("eu", {"both": b"eu!", "eu": b"eu!"}),
        },
        ["eu", "us"],
    )
    assert content_of(storage.open(["us", "eu"], "both")) == b"eu!"
    assert content_of(storage.open(["us"], "both")) == b"us"
    assert storage.size(["us", "eu"], "both") == 3
    assert storage.size(["us", "eu"], "us") == 2
    assert content_of(storage.open(["us", "eu"], "us", offset=1, length=1)) == b"s"


def test_a_location_that_has_lost_a_blob_or_does_not_answer_is_passed_over(at: Locations) -> None:
    storage = DistributedStorage(
        {"broken": Broken(at.root / "broken"), "empty": at.storage("empty"), "last": at.storage("last", {"a/b": b"x"})},
        ["broken", "empty", "last"],
    )
    assert content_of(storage.open(["last", "empty", "broken"], "a/b")) == b"x"
    assert storage.size(["last", "empty", "broken"], "a/b") == 1


def test_a_blob_that_no_location_has_is_not_found_and_the_locations_are_named(at: Locations) -> None:
    storage = DistributedStorage({"us": at.storage("us"), "eu": at.storage("eu")}, ["us", "eu"])
    with pytest.raises(BlobNotFound, match="no blob a/b in us, eu"):
        storage.open(["us", "eu"], "a/b")
    with pytest.raises(BlobNotFound, match=r"no blob a/b in eu$"):
        storage.size(["eu"], "a/b")


def test_a_blob_that_may_lie_where_nobody_answers_is_not_called_absent(at: Locations) -> None:
    storage = DistributedStorage({"broken": Broken(at.root / "broken"), "eu": at.storage("eu")}, ["broken", "eu"])
    with pytest.raises(StorageUnavailable, match="the wire is cut"):
        storage.open(["broken", "eu"], "a/b")


def test_a_location_that_is_not_configured_is_named(at: Locations) -> None:
    storage = DistributedStorage({"us": at.storage("us")}, ["us"])
    with pytest.raises(BlobNotFound, match="should lie in asia, which the configuration does not have"):
        storage.open(["asia"], "a/b")
    with pytest.raises(BlobNotFound, match="any location"):
        storage.open([], "a/b")


def test_what_is_written_goes_to_the_preferred_location(at: Locations) -> None:
    storage = DistributedStorage({"us": at.storage("us"), "eu": at.storage("eu")}, ["eu"])
    with storage.create("a/b") as writer:
        writer.write(b"x")
        writer.commit()
    assert (at.root / "eu/a/b").read_bytes() == b"x"
    assert not (at.root / "us/a/b").exists()
    assert storage.preferred_location == "eu"
    assert storage.preferred.size("a/b") == 1
    assert storage.locations == ("eu", "us")


def test_a_blob_is_deleted_from_the_locations_that_are_named(at: Locations) -> None:
    us, eu, last = (at.storage(name, {"a/b": b"x", "c": b"x"}) for name in ("us", "eu", "last"))
    storage = DistributedStorage({"us": us, "eu": eu, "last": last}, ["us"])
    for _ in range(2):
        storage.delete(["eu", "last", "not configured"], "a/b")
    assert [blob.path for blob in eu.list("a")] == [blob.path for blob in last.list("a")] == []
    assert us.size("a/b") == eu.size("c") == 1
    with pytest.raises(StorageReadOnly, match="a/b cannot be deleted"):
        DistributedStorage({"us": us}, ["us"], readonly=True).delete(["us"], "a/b")
    assert us.size("a/b") == 1


def test_nothing_is_written_when_the_registry_is_read_only(at: Locations) -> None:
    storage = DistributedStorage({"us": at.storage("us", {"a": b"x"})}, ["us"], readonly=True)
    with pytest.raises(StorageReadOnly, match="read-only: a cannot be written"):
        storage.create("a")
    assert content_of(storage.open(["us"], "a")) == b"x"


@pytest.mark.parametrize("names", [(), ("us",)])
def test_a_preference_without_a_storage_is_a_mistake(at: Locations, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no storage for"):
        DistributedStorage(dict.fromkeys(names, LocalStorage(at.root)), ["eu", *names] if names else [])


# --- The configuration ------------------------------------------------------------------------------------------------


def test_the_settings_become_storages_in_the_order_of_preference(tmp_path: Path) -> None:
    locations = {name: ["LocalStorage", {"storage_path": str(tmp_path / name)}] for name in ("us", "eu")}
    settings = Settings.parse(
        {
            "DISTRIBUTED_STORAGE_CONFIG": locations,
            "DISTRIBUTED_STORAGE_PREFERENCE": ["eu"],
            "REGISTRY_STATE": "readonly",
        }
    )
    storage = storage_from_config(settings)
    assert storage.locations == ("eu", "us")
    with pytest.raises(StorageReadOnly):
        storage.create("a")


def test_an_unknown_driver_is_named_with_those_there_are() -> None:
    with pytest.raises(
        InvalidStorageConfiguration,
        match=r"'here' asks for the driver 'FakeStorage'; there are: LocalStorage, S3Storage, .*RadosGWStorage",
    ):
        make_storage("here", "FakeStorage", {"auth_url": "https://secret"})


KEYS = {"s3_access_key": "key", "s3_secret_key": "hunter2"}
PLAIN = {"access_key": "key", "secret_key": "hunter2", "bucket_name": "quay", "storage_path": "/datastorage/registry"}


AZURE = {
    "azure_container": "quay",
    "azure_account_name": "acme",
    "azure_account_key": "aHVudGVyMg==",
    "storage_path": "/datastorage/registry",
}
SWIFT = {
    "swift_container": "quay",
    "storage_path": "/datastorage/registry",
    "auth_url": "https://keystone.example.com/v3",
    "swift_user": "quay",
    "swift_password": "hunter2",
}


@pytest.mark.parametrize(
    ("driver", "parameters", "fact"),
    [
        ("LocalStorage", {}, "storage_path is missing"),
        ("LocalStorage", {"storage_path": ""}, "storage_path is missing"),
        ("LocalStorage", {"storage_path": 3}, "storage_path must be a text"),
        ("LocalStorage", {"storage_path": "/x", "mode": 1}, "unknown parameter mode"),
        ("S3Storage", {**KEYS}, "s3_bucket is missing"),
        ("S3Storage", {**KEYS, "s3_bucket": "b", "s3_secret": "hunter2"}, "unknown parameter s3_secret"),
        ("S3Storage", {**KEYS, "s3_bucket": "b", "port": "https"}, "port must be a whole number above zero"),
        ("S3Storage", {**KEYS, "s3_bucket": "b", "port": True}, "port must be a whole number above zero"),
        ("S3Storage", {**KEYS, "s3_bucket": "b", "is_secure": "no"}, "is_secure must be true or false"),
        ("S3Storage", {**KEYS, "s3_bucket": "b", "endpoint_url": "minio:9000"}, "Invalid endpoint: minio:9000"),
        (
            "S3Storage",
            {**KEYS, "s3_bucket": "b", "s3_region": "us east"},
            "Provided region_name 'us east' doesn't match a supported format.",
        ),
        (
            "S3Storage",
            {"s3_secret_key": "hunter2", "s3_bucket": "b"},
            "Partial credentials found in explicit, missing: aws_access_key_id",
        ),
        ("RadosGWStorage", PLAIN, "hostname is missing"),
        ("IBMCloudStorage", {**PLAIN, "hostname": "h", "bucket_name": None}, "bucket_name is missing"),
        ("GoogleCloudStorage", {**PLAIN, "hostname": "h"}, "unknown parameter hostname"),
        ("AzureStorage", {**AZURE, "azure_container": ""}, "azure_container is missing"),
        ("AzureStorage", {**AZURE, "azure_account_name": None}, "azure_account_name is missing"),
        ("AzureStorage", {**AZURE, "azure_account_key": None}, "azure_account_key is missing, and sas_token too"),
        ("AzureStorage", {**AZURE, "azure_account_key": "hunter2"}, "azure_account_key is not in base64"),
        ("AzureStorage", {**AZURE, "sas_token": 3}, "sas_token must be a text"),
        (
            "AzureStorage",
            {**AZURE, "endpoint_url": "127.0.0.1:10000/hunter2"},
            "endpoint_url must be a URL, e.g. https://storage.example.com",
        ),
        (
            "AzureStorage",
            {**AZURE, "endpoint_url": "https://a.blob.core.windows.net/?sig=hunter2"},
            "endpoint_url must be a URL, e.g. https://storage.example.com",
        ),
        ("AzureStorage", {**AZURE, "azure_key": "hunter2"}, "unknown parameter azure_key"),
        ("SwiftStorage", {**SWIFT, "swift_container": None}, "swift_container is missing"),
        ("SwiftStorage", {**SWIFT, "auth_url": ""}, "auth_url is missing"),
        (
            "SwiftStorage",
            {**SWIFT, "auth_url": "https://user:hunter2@h/"},
            "auth_url must be a URL, e.g. https://storage.example.com",
        ),
        ("SwiftStorage", {**SWIFT, "swift_user": None}, "swift_user is missing"),
        ("SwiftStorage", {**SWIFT, "swift_password": None}, "swift_password is missing"),
        ("SwiftStorage", {**SWIFT, "auth_version": 4}, "auth_version must be 1, 2 or 3"),
        ("SwiftStorage", {**SWIFT, "auth_version": "v3"}, "auth_version must be a whole number above zero"),
        ("SwiftStorage", {**SWIFT, "os_options": ["hunter2"]}, "os_options must consist of keys and values"),
        ("SwiftStorage", {**SWIFT, "simple_path_concat": "no"}, "simple_path_concat must be true or false"),
        ("SwiftStorage", {**SWIFT, "temp_url": "hunter2"}, "unknown parameter temp_url"),
    ],
)
def test_what_cannot_be_used_is_named_without_secrets(driver: str, parameters: Mapping[str, Any], fact: str) -> None:
    with pytest.raises(InvalidStorageConfiguration) as caught:
        make_storage("here", driver, parameters)
    assert str(caught.value) == f"storage location 'here' ({driver}): {fact}"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("driver", "parameters", "url"),
    [
        ("S3Storage", {"s3_region": "us-east-2"}, "https://quay.s3.us-east-2.amazonaws.com/datastorage/registry/a/b"),
        (
            "S3Storage",
            {"host": "s3.eu-west-1.amazonaws.com", "s3_region": "eu-west-1"},
            "https://quay.s3.eu-west-1.amazonaws.com/datastorage/registry/a/b",
        ),
        ("S3Storage", {"endpoint_url": "http://minio:9000"}, "http://minio:9000/quay/datastorage/registry/a/b"),
        (
            "S3Storage",
            {"host": "minio", "port": 9000, "is_secure": False},
            "http://minio:9000/quay/datastorage/registry/a/b",
        ),
        ("S3Storage", {"host": "http://minio:9000"}, "http://minio:9000/quay/datastorage/registry/a/b"),
        (
            "S3Storage",
            {"endpoint_url": "https://minio.example.com", "path_style": False},
            "https://quay.minio.example.com/datastorage/registry/a/b",
        ),
    ],
)
def test_quay_s_s3_kinds_lead_to_their_bucket(driver: str, parameters: Mapping[str, Any], url: str) -> None:
    given = {**KEYS, "s3_bucket": "quay", "storage_path": "/datastorage/registry", **parameters}
    assert url_of(make_storage("here", driver, given)) == url


@pytest.mark.parametrize(
    ("driver", "parameters", "url"),
    [
        ("RadosGWStorage", {"hostname": "rgw", "is_secure": True, "port": "7480"}, "https://rgw:7480/quay"),
        ("RadosGWStorage", {"hostname": "rgw:7480", "is_secure": False, "port": 80}, "http://rgw:7480/quay"),
        (
            "RHOCSStorage",
            {"hostname": "s3.svc", "is_secure": True, "server_side_assembly": True},
            "https://s3.svc/quay",
        ),
        ("IBMCloudStorage", {"hostname": "cos", "is_secure": True, "maximum_chunk_size_mb": 100}, "https://cos/quay"),
        ("GoogleCloudStorage", {"boto_timeout": 30}, "https://storage.googleapis.com/quay"),
    ],
)
def test_quay_s_gateways_lead_to_their_bucket(driver: str, parameters: Mapping[str, Any], url: str) -> None:
    assert url_of(make_storage("here", driver, {**PLAIN, **parameters})) == f"{url}/datastorage/registry/a/b"


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("s3.us-east-2.amazonaws.com", "us-east-2"),
        ("s3-eu-west-1.amazonaws.com", "eu-west-1"),
        ("s3.dualstack.ap-southeast-1.amazonaws.com", "ap-southeast-1"),
        ("s3.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("s3.amazonaws.com", "us-east-1"),
    ],
)
def test_a_host_of_aws_tells_its_region(host: str, region: str) -> None:
    storage = make_storage("here", "S3Storage", {**KEYS, "s3_bucket": "quay", "host": host})
    url = storage.direct_download_url("a/b", seconds=60)
    assert url is not None
    assert f"%2F{region}%2Fs3%2F" in url


def test_encryption_is_asked_of_aws_alone() -> None:
    given = {**KEYS, "s3_bucket": "quay", "s3_region": "us-east-2"}
    aws, minio = make_storage("a", "S3Storage", given), make_storage("b", "S3Storage", {**given, "host": "minio"})
    assert isinstance(aws, S3Storage)
    assert isinstance(minio, S3Storage)
    assert aws._upload == {"ServerSideEncryption": "AES256"}
    assert minio._upload == {}


def test_the_size_of_parts_is_quay_s_smallest_chunk() -> None:
    storage = make_storage("a", "RadosGWStorage", {**PLAIN, "hostname": "rgw", "minimum_chunk_size_mb": 25})
    assert isinstance(storage, S3Storage)
    assert storage._part_size == 25 << 20


def url_of(storage: Storage) -> str:
    url = storage.direct_download_url("a/b", seconds=60)
    assert url is not None
    return url.partition("?")[0]


def test_a_storage_tells_whether_it_may_be_written(at: Locations) -> None:
    storages = {"us": at.storage("us")}
    assert not DistributedStorage(storages, ["us"]).readonly
    assert DistributedStorage(storages, ["us"], readonly=True).readonly


def test_quay_s_parameters_of_azure_lead_to_the_container() -> None:
    url = "https://acme.blob.core.windows.net/quay/datastorage/registry/a/b"
    assert url_of(make_storage("here", "AzureStorage", AZURE)) == url
    elsewhere = {**AZURE, "endpoint_url": "https://acme.blob.core.usgovcloudapi.net", "sas_token": ""}
    url = "https://acme.blob.core.usgovcloudapi.net/quay/datastorage/registry/a/b"
    assert url_of(make_storage("here", "AzureStorage", elsewhere)) == url


@pytest.mark.parametrize(
    ("path", "simple", "prefix"),
    [
        ("/datastorage/registry", False, "datastorage/registry/"),
        ("/datastorage/registry/", False, "datastorage/registry/"),
        ("/registry-", True, "registry-"),
        ("/datastorage", True, "datastorage"),
        ("/", False, ""),
        ("", False, ""),
        (None, False, ""),
    ],
)
def test_what_stands_before_a_path_in_swift_is_what_quay_puts_there(
    path: str | None, simple: bool, prefix: str
) -> None:
    storage = make_storage("here", "SwiftStorage", {**SWIFT, "storage_path": path, "simple_path_concat": simple})
    assert isinstance(storage, SwiftStorage)
    assert storage._settings.prefix == prefix


def test_quay_s_parameters_of_swift_are_taken() -> None:
    storage = make_storage(
        "here",
        "SwiftStorage",
        {
            **SWIFT,
            "auth_version": "3",
            "os_options": {"tenant_id": "t", "region_name": "r"},
            "ca_cert_path": "/conf/stack/ca.pem",
            "temp_url_key": "key",
            "connect_timeout": 7,
            "retry_count": "2",
            "retry_on_ratelimit": False,
        },
    )
    assert isinstance(storage, SwiftStorage)
    assert storage._settings == SwiftSettings(
        container="quay",
        prefix="datastorage/registry/",
        auth_url="https://keystone.example.com/v3",
        user="quay",
        password="hunter2",
        auth_version=3,
        os_options={"tenant_id": "t", "region_name": "r"},
        ca_file="/conf/stack/ca.pem",
        temp_url_key="key",
        connect_timeout=7,
        retries=2,
        retry_on_ratelimit=False,
    )
    assert "hunter2" not in repr(storage._settings)
    zeros = make_storage("here", "SwiftStorage", {**SWIFT, "connect_timeout": 0, "retry_count": "0"})
    usual = make_storage("here", "SwiftStorage", SWIFT)
    assert isinstance(zeros, SwiftStorage)
    assert isinstance(usual, SwiftStorage)
    assert zeros._settings == usual._settings


@pytest.mark.parametrize(
    ("driver", "parameters", "module", "library", "extra"),
    [
        ("AzureStorage", AZURE, "data.storage.azure", "azure.core", "azure"),
        ("SwiftStorage", SWIFT, "data.storage.swift", "swiftclient.client", "swift"),
    ],
)
def test_a_driver_whose_library_is_not_installed_says_how_to_install_it(
    driver: str, parameters: Mapping[str, Any], module: str, library: str, extra: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, module, raising=False)
        patch.setitem(sys.modules, library, None)
        with pytest.raises(InvalidStorageConfiguration) as caught:
            make_storage("here", driver, parameters)
    expected = f"{library} is not installed: pip install 'registry-verbs[{extra}]'"
    assert str(caught.value) == f"storage location 'here' ({driver}): {expected}"
