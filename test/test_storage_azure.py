"""Blobs in Azure: the suite of all storages against Azurite on loopback, and what only Azure does."""

import itertools
import random
import re
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from data.storage import azure
from data.storage.azure import AzureSettings, AzureStorage
from data.storage.base import BlobNotFound, BlobWriter, StorageUnavailable
from data.storage.testing import PATH, StorageTests, content_of
from test.azurite import ACCOUNT, CONTAINER, KEY, azure_client, azurite
from test.databases import free_port
from test.proxy import proxy
from test.relay import Relay, relay

_prefixes = (f"datastorage/{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with azurite(tmp_path_factory.mktemp("azurite")) as url:
        yield url


class Container:
    """One folder of the container by a client of its own. `leftovers` are objects that blocks were staged at."""

    def __init__(self, account: str, prefix: str) -> None:
        self.prefix = prefix
        self.client = azure_client(account)

    def put(self, path: str, content: bytes) -> None:
        self.client.upload_blob(f"{self.prefix}/{path}", content, overwrite=True)

    def get(self, path: str) -> bytes | None:
        try:
            return self.client.download_blob(f"{self.prefix}/{path}").readall()
        except ResourceNotFoundError:
            return None

    def names(self) -> list[str]:
        """Return the names of all objects, those among them that have nothing but staged blocks."""
        items = self.client.list_blobs(name_starts_with=f"{self.prefix}/", include=["uncommittedblobs"])
        return [item.name.removeprefix(f"{self.prefix}/") for item in items]

    def leftovers(self) -> list[str]:
        return [name for name in self.names() if name.startswith(".")]

    def modified(self, path: str) -> datetime:
        return self.client.get_blob_client(f"{self.prefix}/{path}").get_blob_properties().last_modified

    def close(self) -> None:
        self.client.close()


@pytest.fixture
def back_door(account: str) -> Iterator[Container]:
    with closing(Container(account, next(_prefixes))) as container:
        yield container


@pytest.fixture
def settings(account: str, back_door: Container) -> AzureSettings:
    return AzureSettings(
        container=CONTAINER,
        account_name=ACCOUNT,
        account_key=KEY,
        endpoint_url=account,
        prefix=back_door.prefix,
        part_size=256 << 10,
    )


@pytest.fixture
def storage(settings: AzureSettings) -> AzureStorage:
    return AzureStorage(settings)


def settle(writer: BlobWriter) -> None:
    """Wait until all blocks that `writer` has sent are there."""
    assert isinstance(writer, azure._AzureWriter)
    writer._wait(0)


class TestAzureStorage(StorageTests):
    def settle(self, writer: BlobWriter) -> None:
        settle(writer)


# --- Blocks -----------------------------------------------------------------------------------------------------------

PIECE = 256 << 10
LARGE = random.Random(0).randbytes(3 * PIECE + 1000)
OTHER = random.Random(1).randbytes(2 * PIECE + 1000)


def write(storage: AzureStorage, path: str, content: bytes) -> None:
    with storage.create(path) as writer:
        writer.write(content)
        writer.commit()


def test_two_writers_of_one_large_blob_do_not_take_each_other_s_blocks(
    storage: AzureStorage, back_door: Container
) -> None:
    with storage.create(PATH) as one, storage.create(PATH) as other:
        one.write(LARGE)
        other.write(OTHER)
        one.commit()
        assert back_door.get(PATH) == LARGE
        other.write(LARGE)
        other.commit()
    assert back_door.get(PATH) == OTHER + LARGE


def test_a_writer_that_lives_is_not_swept(
    storage: AzureStorage, back_door: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "_HEARTBEAT_SECONDS", 0)
    with storage.create(PATH) as writer:
        writer.write(LARGE)
        settle(writer)
        (staging,) = back_door.leftovers()
        began = back_door.modified(staging)
        time.sleep(1.1)  # Azure tells whole seconds
        writer.write(LARGE)
        settle(writer)
        assert back_door.modified(staging) > began
        writer.commit()
    assert back_door.get(PATH) == LARGE * 2


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_large_blob_is_copied(
    storage: AzureStorage, back_door: Container, synchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "_SYNCHRONOUS_COPY", len(LARGE) if synchronous else 0)
    write(storage, PATH, LARGE)
    storage.copy(PATH, "other")
    assert back_door.get(PATH) == back_door.get("other") == LARGE
    assert back_door.names() == ["other", PATH]


@pytest.mark.parametrize("status", ["pending", "failed", "aborted"])
def test_a_blob_whose_copy_is_not_done_is_not_there(
    settings: AzureSettings, back_door: Container, account: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "_COPY_PAUSE", 0)
    monkeypatch.setattr(azure, "_SYNCHRONOUS_COPY", 0)
    back_door.put("one", b"x")
    with proxy(account) as between:
        storage = AzureStorage(replace(settings, endpoint_url=f"{between.url}/{ACCOUNT}"))
        between.adds = {"x-ms-copy-id": "1", "x-ms-copy-status": status}
        for ask in (storage.open, storage.size):
            with pytest.raises(BlobNotFound, match="one is being copied to its place"):
                ask("one")
        with pytest.raises(BlobNotFound, match="one is being copied to its place"):
            storage.copy("one", PATH)
        monkeypatch.setattr(azure, "_COPY_SECONDS", 0.1)
        monkeypatch.setattr(storage, "size", lambda _: 1)
        with pytest.raises(StorageUnavailable, match=f"Azure has not copied one: {status}"):
            storage.copy("one", PATH)


def test_a_commit_that_fails_leaves_nothing(settings: AzureSettings, back_door: Container, account: str) -> None:
    with proxy(account) as between:
        storage = AzureStorage(replace(settings, endpoint_url=f"{between.url}/{ACCOUNT}"))
        between.refuses = lambda _, target: "refuse" if "comp=blocklist" in target else None
        with pytest.raises(StorageUnavailable, match=f"Azure refuses {PATH} in the container blobs: 403"):
            write(storage, PATH, LARGE)
    assert back_door.names() == []


def test_an_abort_that_fails_hides_no_other_error(
    settings: AzureSettings, back_door: Container, account: str, caplog: pytest.LogCaptureFixture
) -> None:
    with proxy(account) as between:
        storage = AzureStorage(replace(settings, endpoint_url=f"{between.url}/{ACCOUNT}"))
        with pytest.raises(ZeroDivisionError), storage.create(PATH) as writer:  # noqa: PT012 the block is the point
            writer.write(LARGE)
            settle(writer)
            between.refuses = lambda *_: "refuse"
            raise ZeroDivisionError
    assert f"the blocks of {PATH} stay until they are swept" in caplog.text
    assert AzureStorage(settings).sweep(older_than=-60) == 1


def test_folders_of_a_hierarchical_namespace_are_no_blobs(storage: AzureStorage, back_door: Container) -> None:
    back_door.put("verbs/a/b", b"x")
    back_door.client.upload_blob(f"{back_door.prefix}/verbs/a", b"", metadata={"hdi_isfolder": "true"})
    assert [blob.path for blob in storage.list("verbs")] == ["verbs/a/b"]


# --- Connections ------------------------------------------------------------------------------------------------------


@pytest.fixture
def between(account: str) -> Iterator[Relay]:
    with relay(account) as running:
        yield running


@pytest.fixture
def relayed(settings: AzureSettings, between: Relay) -> AzureStorage:
    return AzureStorage(replace(settings, endpoint_url=between.url))


def test_a_read_goes_on_where_the_connection_broke(relayed: AzureStorage, back_door: Container, between: Relay) -> None:
    back_door.put(PATH, LARGE)
    between.cut_after(100_000, 50_000)
    stream = relayed.open(PATH, offset=10)
    assert content_of(stream) == LARGE[10:]
    assert between.waiting() == 0
    first, *others = between.ranges()
    assert first == "bytes=10-"
    assert len(others) >= 2
    assert all(re.fullmatch(f"bytes=[0-9]{{4,}}-{len(LARGE) - 1}", other) for other in others)


def test_another_object_in_the_place_of_a_broken_one_is_not_spliced_in(
    relayed: AzureStorage, back_door: Container, between: Relay
) -> None:
    large = LARGE * 12  # more than what lies in sockets
    back_door.put(PATH, large)
    stream = relayed.open(PATH)
    assert large.startswith(stream.read(1000))
    back_door.put(PATH, large[::-1])
    between.cut_all()
    with pytest.raises(StorageUnavailable, match=f"Azure refuses {PATH} .*: 412 ConditionNotMet"):
        content_of(stream)


def test_a_blob_that_is_gone_when_a_read_goes_on_is_told(
    relayed: AzureStorage, back_door: Container, between: Relay
) -> None:
    back_door.put(PATH, LARGE * 12)
    stream = relayed.open(PATH)
    stream.read(1000)
    relayed.delete(PATH)
    between.cut_all()
    with pytest.raises(BlobNotFound, match=PATH):
        content_of(stream)


def test_a_request_whose_connection_broke_is_made_again(
    relayed: AzureStorage, back_door: Container, between: Relay
) -> None:
    between.cut_after(0)
    write(relayed, PATH, LARGE)
    assert back_door.get(PATH) == LARGE
    assert between.waiting() == 0


@pytest.mark.parametrize("by_key", [True, False])
def test_an_account_that_is_not_there_is_unavailable_and_no_signature_is_told(
    settings: AzureSettings, by_key: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "_RETRIES", 0)
    nowhere = replace(settings, endpoint_url=f"http://127.0.0.1:{free_port()}/{ACCOUNT}")
    storage = AzureStorage(nowhere if by_key else replace(nowhere, account_key=None, sas_token="?sv=1&sig=hunter2"))
    for ask in (
        storage.open,
        storage.size,
        storage.delete,
        lambda path: write(storage, path, b"x"),
        lambda path: list(storage.list(path)),
    ):
        with pytest.raises(StorageUnavailable, match=f"Azure does not answer for {PATH}") as caught:
            ask(PATH)
        told = "".join(traceback.format_exception(caught.value))
        assert "sig=" not in told
        assert "hunter2" not in told


@pytest.mark.parametrize("wrong", [{"account_key": "AAAA"}, {"account_key": None, "sas_token": "sv=2020-10-02&sig=A"}])
def test_who_is_not_let_in_is_told(settings: AzureSettings, wrong: dict[str, str | None]) -> None:
    storage = AzureStorage(replace(settings, **wrong))  # type: ignore[arg-type]
    for ask in (storage.open, storage.size, lambda path: write(storage, path, b"x")):
        with pytest.raises(StorageUnavailable, match=f"Azure refuses {PATH} in the container blobs: 403") as caught:
            ask(PATH)
        assert "sig=" not in str(caught.value)


def test_a_container_that_is_not_there_is_told(settings: AzureSettings) -> None:
    storage = AzureStorage(replace(settings, container="absent"))
    for ask in (storage.open, storage.size, lambda path: write(storage, path, b"x"), storage.delete):
        with pytest.raises(StorageUnavailable, match=f"{PATH} in the container absent: 404 ContainerNotFound"):
            ask(PATH)


# --- URLs and signatures ----------------------------------------------------------------------------------------------


def test_a_url_gives_the_blob_under_its_name_and_media_type(storage: AzureStorage, back_door: Container) -> None:
    path = "a b/ü%3F/c?d"
    back_door.put(path, LARGE)
    url = storage.direct_download_url(path, seconds=60, file_name='é".tar', media_type="application/x-tar")
    assert url is not None
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == LARGE
        assert "filename*=UTF-8''%C3%A9%22.tar" in answer.headers["Content-Disposition"]
        assert answer.headers["Content-Type"] == "application/x-tar"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url.replace("sig=", "sig=A"))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(str(storage.direct_download_url(path, seconds=-60)))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"))


def test_with_a_shared_access_signature_all_but_urls_is_to_be_had(
    settings: AzureSettings, back_door: Container
) -> None:
    token = generate_container_sas(
        ACCOUNT,
        CONTAINER,
        account_key=KEY,
        permission=ContainerSasPermissions.from_string("racwdl"),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    storage = AzureStorage(replace(settings, account_key=None, sas_token=token))
    write(storage, PATH, LARGE)
    storage.copy(PATH, "other")
    assert content_of(storage.open("other", offset=5)) == LARGE[5:]
    assert [blob.path for blob in storage.list("sha256")] == [PATH]
    storage.delete(PATH)
    assert back_door.names() == ["other"]
    assert storage.direct_download_url(PATH, seconds=60) is None


def test_an_account_of_azure_s_own_is_found_by_its_name() -> None:
    settings = AzureSettings(container="quay", account_name="acme", account_key=KEY, prefix="/datastorage/registry/")
    url = AzureStorage(settings).direct_download_url("a/b", seconds=60)
    assert url is not None
    assert url.startswith("https://acme.blob.core.windows.net/quay/datastorage/registry/a/b?")


@pytest.mark.parametrize(
    ("credentials", "fact"),
    [
        ({}, "azure_account_key is missing, and sas_token too"),
        ({"account_key": "hunter2!"}, "azure_account_key is not in base64"),
        ({"account_key": "hunter2"}, "azure_account_key is not in base64"),
    ],
)
def test_credentials_that_cannot_be_used_are_named_and_not_told(credentials: dict[str, str], fact: str) -> None:
    with pytest.raises(ValueError, match=f"^{fact}$"):
        AzureStorage(AzureSettings(container="c", account_name="a", **credentials))  # type: ignore[arg-type]
    assert "hunter2" not in repr(AzureSettings(container="c", account_name="a", account_key="hunter2"))
