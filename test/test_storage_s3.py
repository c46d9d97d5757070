"""Blobs in a bucket: the suite of all storages against an S3 on loopback, and what only a network does."""

import random
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from urllib3.exceptions import SSLError

from data.database import create_tables, make_engine
from data.importer import import_image
from data.layerindexes import LayerIndexes
from data.registry import SqlRegistry
from data.storage import parts, s3
from data.storage.base import BlobNotFound, BlobWriter, Storage, StorageUnavailable
from data.storage.distributed import DistributedStorage
from data.storage.s3 import S3Settings, S3Storage
from data.storage.testing import PATH, BackDoor, StorageTests, content_of
from test.images import Image, Layer, Layout
from test.layers import file
from test.s3server import Bucket, s3_server
from util.digest import Digest


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def back_door(endpoint: str) -> Iterator[Bucket]:
    with closing(Bucket(endpoint, "registry")) as bucket:
        yield bucket


@pytest.fixture
def settings(endpoint: str) -> S3Settings:
    return S3Settings(
        bucket="registry",
        prefix="/datastorage/registry",
        endpoint_url=endpoint,
        access_key="key",
        secret_key="secret",
        timeout=60,
    )


@pytest.fixture
def storage(settings: S3Settings, back_door: BackDoor, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    """Return a storage whose parts are small, so that no test moves more than a few."""
    monkeypatch.setattr(s3, "MIN_PART_SIZE", 1)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    return S3Storage(replace(settings, part_size=256 << 10))


def settle(writer: BlobWriter) -> None:
    """Wait until all parts that `writer` has sent are there."""
    assert isinstance(writer, s3._S3Writer)
    writer._wait(0)


class TestS3Storage(StorageTests):
    def settle(self, writer: BlobWriter) -> None:
        settle(writer)


# --- Parts ------------------------------------------------------------------------------------------------------------


def calls(storage: S3Storage) -> list[str]:
    """Return a list that gets the name of every request that `storage` makes from now on."""
    made: list[str] = []
    storage._client.meta.events.register("before-call.s3", lambda model, **_: made.append(model.name), unique_id="test")
    return made


def test_a_small_blob_is_one_request(storage: S3Storage) -> None:
    made = calls(storage)
    with storage.create(PATH) as writer:
        writer.write(b"x" * 1000)
        writer.write(b"y" * 1000)
        writer.commit()
    assert made == ["PutObject"]


def test_a_large_blob_goes_up_in_parts_and_only_one_is_held(storage: S3Storage, back_door: Bucket) -> None:
    made = calls(storage)
    held = 0
    with storage.create(PATH) as writer:
        for _ in range(256):
            writer.write(b"x" * 10_000)
            held = max(held, len(writer._part))  # type: ignore[attr-defined]
        writer.commit()
    assert made == ["CreateMultipartUpload", *["UploadPart"] * 10, "CompleteMultipartUpload"]
    assert held <= 256 << 10
    assert back_door.get(PATH) == b"x" * 2_560_000


def test_parts_grow_so_that_ten_thousand_are_enough(storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_GROWTH", 2)
    sizes: dict[int, int] = {}  # by the number: parts go up side by side

    def note(params: dict[str, Any], **_: object) -> None:
        sizes[params["PartNumber"]] = len(params["Body"])

    storage._client.meta.events.register("provide-client-params.s3.UploadPart", note)
    with storage.create(PATH) as writer:
        writer.write(bytes(9 * (256 << 10)))
        writer.commit()
    assert [sizes[number] >> 18 for number in sorted(sizes)] == [1, 1, 2, 2, 3]


def test_parts_are_never_smaller_than_s3_allows(settings: S3Settings, back_door: Bucket) -> None:
    storage = S3Storage(replace(settings, part_size=1))
    made = calls(storage)
    with storage.create(PATH) as writer:
        writer.write(bytes(5 << 20))
        writer.commit()
    assert made == ["PutObject"]


def test_a_part_that_fails_gives_back_what_was_sent(
    storage: S3Storage, back_door: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with storage.create(PATH) as writer:
        writer.write(bytes(300 << 10))
        assert back_door.leftovers() == [f"datastorage/registry/{PATH}"]
        storage._client.meta.events.register("before-send.s3.UploadPart", _refused)
        with pytest.raises(  # noqa: PT012 a part goes up behind the write that filled it
            StorageUnavailable, match="S3 refuses UploadPart of sha256/ab/abcdef: AccessDenied, not you"
        ):
            for _ in range(parts.PARTS_AHEAD + 2):
                writer.write(bytes(300 << 10))
    assert back_door.leftovers() == []
    assert back_door.get(PATH) is None


def test_the_last_part_that_fails_is_no_blob(storage: S3Storage, back_door: Bucket) -> None:
    storage._client.meta.events.register("before-send.s3.UploadPart", _refused)
    with pytest.raises(StorageUnavailable, match="AccessDenied"), storage.create(PATH) as writer:  # noqa: PT012
        writer.write(bytes(300 << 10))
        writer.commit()
    assert back_door.leftovers() == []
    assert back_door.get(PATH) is None


def test_a_part_that_fails_is_sent_again(storage: S3Storage, back_door: Bucket) -> None:
    answers = iter([_failed, _failed])
    sent = 0

    def send(request: Any, **_: object) -> Any:
        nonlocal sent
        sent += 1
        answer = next(answers, None)
        return answer(request) if answer else None

    storage._client.meta.events.register("before-send.s3.UploadPart", send)
    content = random.Random(0).randbytes(600 << 10)
    with storage.create(PATH) as writer:
        writer.write(content)
        writer.commit()
    assert sent == 3 + 2
    assert back_door.get(PATH) == content


def test_parts_go_up_side_by_side_in_bounded_memory(storage: S3Storage, back_door: Bucket) -> None:
    together = threading.Barrier(parts.PARTS_AHEAD, timeout=60)

    def send(**_: object) -> None:
        together.wait()

    storage._client.meta.events.register("before-send.s3.UploadPart", send)
    content = random.Random(0).randbytes(3 * parts.PARTS_AHEAD * (256 << 10))
    held = 0
    with storage.create(PATH) as writer:
        assert isinstance(writer, s3._S3Writer)
        for start in range(0, len(content), 100_000):
            writer.write(content[start : start + 100_000])
            held_parts = [writer._part, *(part for _, part in writer._sending), *writer._sent]
            held = max(held, sum(map(len, held_parts)))
        writer.commit()
    assert (parts.PARTS_AHEAD << 18) < held <= (parts.PARTS_AHEAD + 1) << 18
    assert back_door.get(PATH) == content


def test_an_abort_that_fails_hides_no_other_error(
    storage: S3Storage, back_door: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    storage._client.meta.events.register("before-send.s3.AbortMultipartUpload", _refused)
    with pytest.raises(ZeroDivisionError), storage.create(PATH) as writer:  # noqa: PT012 the block is the point
        writer.write(bytes(300 << 10))
        raise ZeroDivisionError
    assert f"the parts of {PATH} stay in the bucket" in caplog.text
    for upload in back_door.client.list_multipart_uploads(Bucket="registry")["Uploads"]:
        back_door.client.abort_multipart_upload(Bucket="registry", Key=upload["Key"], UploadId=upload["UploadId"])


def _refused(request: Any, **_: object) -> Any:
    from botocore.awsrequest import AWSResponse

    class Raw:
        def stream(self, *_: object, **__: object) -> Iterator[bytes]:
            yield b"<Error><Code>AccessDenied</Code><Message>not you</Message></Error>"

    return AWSResponse(request.url, 403, {}, Raw())  # type: ignore[arg-type]


def _failed(request: Any) -> Any:
    answer = _refused(request)
    answer.status_code = 503
    return answer


@pytest.mark.parametrize(("encrypt", "expected"), [(True, "AES256"), (False, None)])
@pytest.mark.parametrize("size", [10, 300 << 10])
@pytest.mark.usefixtures("storage")
def test_encryption_is_asked_for_where_it_is_wanted(
    settings: S3Settings, size: int, encrypt: bool, expected: str | None
) -> None:
    encrypting = S3Storage(replace(settings, encrypt=encrypt, part_size=256 << 10))
    asked: list[str | None] = []
    for call in ("PutObject", "CreateMultipartUpload"):
        encrypting._client.meta.events.register(
            f"before-call.s3.{call}",
            lambda params, **_: asked.append(params["headers"].get("x-amz-server-side-encryption")),
        )
    with encrypting.create(PATH) as writer:
        writer.write(bytes(size))
        writer.commit()
    assert asked == [expected]


# --- Broken connections -----------------------------------------------------------------------------------------------


class Flaky:
    """An S3 that answers GET with as many bytes as it is told to, and then hangs up. It keeps the requests."""

    def __init__(self, content: bytes, cuts: list[int], *, etags: list[str] | None = None) -> None:
        self.content, self.cuts, self.etags = content, cuts, etags or []
        self.ranges: list[str | None] = []
        self.conditions: list[str | None] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        headers = dict(re.findall(r"^([\w-]+): (.*?)\r?$", request.decode(), re.MULTILINE))
        wanted, condition = headers.get("Range"), headers.get("If-Match")
        self.ranges.append(wanted)
        self.conditions.append(condition)
        etag = self.etags.pop(0) if self.etags else '"one"'
        if condition and condition != etag:
            body = b"<Error><Code>PreconditionFailed</Code><Message>another object</Message></Error>"
            connection.sendall(b"HTTP/1.1 412 No\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
            return
        first, last = 0, len(self.content) - 1
        if wanted and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)):
            first, last = int(match[1]), int(match[2] or last)
        if first >= len(self.content):
            connection.sendall(b"HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        body = self.content[first : last + 1]
        cut = self.cuts.pop(0) if self.cuts else len(body)
        connection.sendall(
            b"HTTP/1.1 %s OK\r\nETag: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
            % (b"206" if wanted else b"200", etag.encode(), len(body))
        )
        connection.sendall(body[:cut])

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


CONTENT = bytes(range(256)) * 1000


def flaky_storage(server: Flaky) -> S3Storage:
    return S3Storage(S3Settings(bucket="b", endpoint_url=server.url, access_key="key", secret_key="secret", timeout=60))


def test_a_read_goes_on_where_the_connection_broke() -> None:
    with closing(Flaky(CONTENT, [100_000, 50_000, 0])) as server:
        assert content_of(flaky_storage(server).open(PATH)) == CONTENT
    assert server.ranges == [None, "bytes=100000-255999", "bytes=150000-255999", "bytes=150000-255999"]
    assert server.conditions == [None, '"one"', '"one"', '"one"']


def test_a_read_of_a_range_goes_on_within_it() -> None:
    with closing(Flaky(CONTENT, [100])) as server:
        assert content_of(flaky_storage(server).open(PATH, offset=1000, length=5000)) == CONTENT[1000:6000]
    assert server.ranges == ["bytes=1000-5999", "bytes=1100-5999"]


def test_a_read_in_one_go_goes_on_too() -> None:
    with closing(Flaky(CONTENT, [100_000])) as server:
        stream = flaky_storage(server).open(PATH)
        assert stream.read() == CONTENT
        stream.close()


def test_a_read_goes_on_after_an_error_of_tls() -> None:
    class Garbled:
        def read(self, _: int) -> bytes:
            raise SSLError("bad record mac")

        def close(self) -> None:
            raise SSLError("bad record mac")

    with closing(Flaky(CONTENT, [])) as server:
        stream = flaky_storage(server).open(PATH)
        stream._body.close()  # type: ignore[attr-defined]
        stream._body = Garbled()  # type: ignore[attr-defined]
        assert content_of(stream) == CONTENT
    assert server.ranges == [None, "bytes=0-255999"]


def test_a_stream_that_ends_before_its_end_is_read_on() -> None:
    class Short:
        def read(self, _: int) -> bytes:
            return b""

        def close(self) -> None:
            pass

    with closing(Flaky(CONTENT, [])) as server:
        stream = flaky_storage(server).open(PATH)
        stream._body.close()  # type: ignore[attr-defined]
        stream._body = Short()  # type: ignore[attr-defined]
        assert content_of(stream) == CONTENT


@pytest.mark.parametrize("left", [1000, 5000])
def test_an_object_that_has_become_shorter_is_an_error(left: int) -> None:
    with closing(Flaky(CONTENT, [1000])) as server:
        stream = flaky_storage(server).open(PATH)
        assert len(stream.read(1000)) == 1000
        server.content = CONTENT[:left]
        with pytest.raises(StorageUnavailable, match="became shorter while it was read"):
            content_of(stream)


def test_a_connection_that_always_breaks_is_an_error_and_no_short_blob() -> None:
    with closing(Flaky(CONTENT, [1000, *[0] * 50])) as server:
        stream = flaky_storage(server).open(PATH)
        with pytest.raises(StorageUnavailable, match=f"{PATH} cannot be read on from byte 1000"):
            content_of(stream)
    assert len(server.ranges) == 6


def test_another_object_in_the_place_of_a_broken_one_is_not_spliced_in() -> None:
    with closing(Flaky(CONTENT, [1000], etags=['"one"', '"two"'])) as server:
        stream = flaky_storage(server).open(PATH)
        with pytest.raises(StorageUnavailable, match="PreconditionFailed, another object"):
            content_of(stream)


def test_a_server_that_is_not_there_is_unavailable(settings: S3Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)
    with socket.socket() as unused:  # nobody else gets its port, and it listens to nobody
        unused.bind(("127.0.0.1", 0))
        storage = S3Storage(replace(settings, endpoint_url=f"http://127.0.0.1:{unused.getsockname()[1]}"))
        with pytest.raises(StorageUnavailable, match=f"S3 does not answer for {PATH}"):
            storage.open(PATH)
        with pytest.raises(StorageUnavailable), storage.create(PATH) as writer:
            writer.commit()


def test_a_bucket_that_is_not_there_is_no_absent_blob(settings: S3Settings, endpoint: str) -> None:
    storage = S3Storage(replace(settings, bucket="absent"))
    with pytest.raises(StorageUnavailable, match="NoSuchBucket"):
        storage.open(PATH)


def test_a_refusal_is_no_absent_blob(storage: S3Storage) -> None:
    storage._client.meta.events.register("before-send.s3.GetObject", _refused)
    with pytest.raises(StorageUnavailable, match="AccessDenied, not you"):
        storage.open(PATH)


# --- Listing and sweeping ---------------------------------------------------------------------------------------------


def test_a_long_folder_is_listed_page_by_page(storage: S3Storage, back_door: Bucket) -> None:
    def few(params: dict[str, Any], **_: object) -> None:
        params["MaxKeys"] = 3

    storage._client.meta.events.register("provide-client-params.s3.ListObjectsV2", few)
    made = calls(storage)
    for number in range(8):
        back_door.put(f"verbs/{number}", b"x")
    assert sorted(blob.path for blob in storage.list("verbs")) == [f"verbs/{number}" for number in range(8)]
    assert made == ["ListObjectsV2"] * 3


def test_a_folder_that_a_console_made_is_no_blob(storage: S3Storage, back_door: Bucket) -> None:
    back_door.put("verbs/", b"")
    back_door.put("verbs/a/", b"")
    back_door.put("verbs/a/b", b"x")
    assert [blob.path for blob in storage.list("verbs")] == ["verbs/a/b"]


def test_a_list_that_is_refused_is_told(storage: S3Storage) -> None:
    storage._client.meta.events.register("before-send.s3.ListObjectsV2", _refused)
    with pytest.raises(StorageUnavailable, match="S3 refuses ListObjectsV2 of verbs: AccessDenied, not you"):
        list(storage.list("verbs"))


def test_uploads_of_others_are_not_swept(storage: S3Storage, back_door: Bucket) -> None:
    with storage.create("uploads/x") as theirs:
        theirs.write(bytes(300 << 10))
        settle(theirs)
        assert storage.sweep(older_than=-60) == 0
        assert back_door.leftovers() == ["datastorage/registry/uploads/x"]


def test_an_old_upload_that_still_grows_is_not_swept(storage: S3Storage, back_door: Bucket) -> None:
    def aged(parsed: Any, **_: object) -> None:
        for upload in parsed.get("Uploads", []):
            upload["Initiated"] -= timedelta(days=2)

    storage._client.meta.events.register("after-call.s3.ListMultipartUploads", aged)
    with storage.create("verbs/x") as writer:
        writer.write(bytes(300 << 10))
        settle(writer)
        assert storage.sweep(older_than=3600) == 0
        assert back_door.leftovers() == ["datastorage/registry/verbs/x"]
        writer.commit()


@pytest.mark.parametrize(("call", "found"), [("ListParts", 0), ("AbortMultipartUpload", 1)])
def test_an_upload_that_ends_while_it_is_swept_is_a_blob(
    storage: S3Storage, back_door: Bucket, call: str, found: int
) -> None:
    writer = storage.create("verbs/x")
    writer.write(bytes(300 << 10))
    settle(writer)

    def commit(**_: object) -> None:
        writer.commit()

    storage._client.meta.events.register(f"before-call.s3.{call}", commit)
    assert storage.sweep(older_than=-60) == found
    assert back_door.get("verbs/x") == bytes(300 << 10)


@pytest.mark.parametrize("call", ["AbortMultipartUpload", "ListParts", "ListMultipartUploads"])
def test_a_sweep_that_is_refused_is_told(storage: S3Storage, call: str) -> None:
    with storage.create("verbs/x") as writer:
        writer.write(bytes(300 << 10))
        settle(writer)
        storage._client.meta.events.register(f"before-send.s3.{call}", _refused)
        with pytest.raises(StorageUnavailable, match="AccessDenied"):
            storage.sweep(older_than=-60)
        storage._client.meta.events.unregister(f"before-send.s3.{call}", _refused)


# --- How it is reached ------------------------------------------------------------------------------------------------


def test_a_url_downloads_with_a_name_and_a_type_and_without_keys(storage: Storage, back_door: BackDoor) -> None:
    back_door.put(PATH, b"content")
    url = storage.direct_download_url(PATH, seconds=60, file_name="app.tar", media_type="application/x-tar")
    assert url is not None
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"content"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="app.tar"'
        assert answer.headers["Content-Type"] == "application/x-tar"
    assert "X-Amz-Expires=60" in url


def test_a_file_name_cannot_break_out_of_its_header(storage: Storage) -> None:
    url = storage.direct_download_url(PATH, seconds=60, file_name='é".tar\r\nX: y')
    assert url is not None
    assert "response-content-disposition=attachment%3B%20filename%3D%22__.tar__X%3A%20y%22%3B%20filename%2A%3D" in url


def url_of(**more: Any) -> str:
    settings = S3Settings(bucket="bucket", prefix="p", access_key="key", secret_key="secret", **more)
    url = S3Storage(settings).direct_download_url("a/b", seconds=60)
    assert url is not None
    return url


def test_aws_has_the_bucket_in_the_host_name_and_others_in_the_path() -> None:
    assert url_of(region="eu-west-1").startswith("https://bucket.s3.eu-west-1.amazonaws.com/p/a/b?")
    assert url_of(endpoint_url="http://127.0.0.1:9000").startswith("http://127.0.0.1:9000/bucket/p/a/b?")
    assert url_of(endpoint_url="https://rgw.example.com", path_style=False).startswith(
        "https://bucket.rgw.example.com/"
    )
    assert url_of(region="us-east-1", path_style=True).startswith("https://s3.amazonaws.com/bucket/p/a/b?")
    assert url_of(region="cn-north-1").startswith("https://bucket.s3.cn-north-1.amazonaws.com.cn/p/a/b?")


def test_a_region_is_part_of_the_signature() -> None:
    assert "%2Feu-west-1%2Fs3%2F" in url_of(region="eu-west-1")
    assert "%2Fus-east-1%2Fs3%2F" in url_of(endpoint_url="http://127.0.0.1:9000")
    assert "%2Flocal%2Fs3%2F" in url_of(endpoint_url="http://127.0.0.1:9000", region="local")


def test_with_keys_no_credentials_are_looked_for(
    settings: S3Settings, back_door: BackDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as metadata:
        metadata.setblocking(False)
        address = f"http://127.0.0.1:{metadata.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody else's")
        back_door.put(PATH, b"x")
        storage = S3Storage(settings)
        assert storage.size(PATH) == 1
        url = storage.direct_download_url(PATH, seconds=60)
        assert url is not None
        assert "Credential=key%2F" in url
        with pytest.raises(BlockingIOError):
            metadata.accept()


def test_a_session_token_is_sent(settings: S3Settings) -> None:
    assert "X-Amz-Security-Token=token" in url_of(session_token="token")


def test_the_library_is_imported_for_this_driver_only() -> None:
    program = (
        "import sys, data.storage.distributed, data.importer, data.registry; "
        "assert not {'azure', 'boto3', 'botocore', 'swiftclient'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_blob_that_is_gone_when_a_read_goes_on_is_told(storage: Storage, back_door: Bucket) -> None:
    back_door.put(PATH, b"x" * 10)
    stream = storage.open(PATH)
    stream._body.close()  # type: ignore[attr-defined]
    stream._body = None  # type: ignore[attr-defined]
    storage.delete(PATH)
    with pytest.raises(BlobNotFound):
        stream.read()
    stream.close()


# --- All of it together -----------------------------------------------------------------------------------------------


def test_an_image_is_imported_into_a_bucket_and_its_layers_are_read_from_there(
    storage: S3Storage, back_door: Bucket, tmp_path: Path
) -> None:
    noise = random.Random(0).randbytes(700 << 10)
    image = Image([Layer([file(b"noise", noise)], "none"), Layer([file(b"etc/hostname", b"here")])])
    layout = Layout(tmp_path / "layout")
    source = layout.tag("edge", layout.image(image))
    engine = make_engine(f"sqlite:///{tmp_path}/registry.db")
    create_tables(engine)
    everywhere = DistributedStorage({"bucket": storage}, ["bucket"])
    indexes = LayerIndexes(everywhere)
    import_image(source, "acme", "app", "1.0", engine=engine, storage=everywhere, indexes=indexes)
    digests = [Digest.of(layer.blob) for layer in image.layers]
    found = SqlRegistry(engine).blobs("acme", "app", digests)
    assert [found[digest].locations for digest in digests] == [("bucket",)] * 2
    assert [back_door.get(found[digest].path) for digest in digests] == [layer.blob for layer in image.layers]
    asked = calls(storage)
    kept = indexes.many([found[digest] for digest in digests], [Digest.of(layer.content) for layer in image.layers])
    assert [index.names for index in kept] == [[b"noise"], [b"etc/hostname"]]
    assert asked == ["GetObject"] * 2
    import_image(source, "acme", "app", "2.0", engine=engine, storage=everywhere, indexes=indexes)
    assert not {"PutObject", "CreateMultipartUpload"} & set(asked)


def test_a_large_object_is_copied_in_parts(
    storage: S3Storage, back_door: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_COPY_PART", 5 << 20)
    content = random.Random(4).randbytes(12 << 20)
    back_door.put("one", content)
    storage.copy("one", PATH)
    head = back_door.client.head_object(Bucket=back_door.name, Key=f"datastorage/registry/{PATH}")
    assert head["ETag"].endswith('-3"')
    assert back_door.get(PATH) == content
    assert back_door.leftovers() == []


def test_a_bucket_that_is_not_there_takes_no_copy(settings: S3Settings) -> None:
    with pytest.raises((BlobNotFound, StorageUnavailable)):
        S3Storage(replace(settings, bucket="absent")).copy("one", PATH)
