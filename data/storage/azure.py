"""Blobs in a container of Azure Blob Storage, or of what speaks its API.

Invariants:
- A blob of more than one part is staged, block by block, at a name of its writer's own under `.parts/`, where no path
  of a blob leads, and then copied to its place by the server. At the blob's own name the blocks of two writers would
  be one list, and the first commit would drop the other's.
- A copy of up to 256 MiB is one synchronous request. A larger one is a copy that Azure may go on with after it has
  answered; within one account it is done at once in practice. A blob whose copy is not done is not there.
- What is read comes in one request, of the same object or not at all.
- The client's errors are translated here, once, without the signatures that its URLs carry. This module is imported
  only where a storage of its kind is configured.

Azure's documentation: "Blob Storage REST API": Put Block List, Copy Blob, Copy Blob From URL, "Create a service SAS".
"""

import base64
import binascii
import contextlib
import logging
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from azure.core import MatchConditions, PipelineClient
from azure.core.credentials import AzureSasCredential
from azure.core.exceptions import AzureError, HttpResponseError
from azure.core.pipeline.policies import RetryPolicy
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest, HttpResponse
from azure.storage.blob import (
    BlobBlock,
    BlobProperties,
    BlobSasPermissions,
    ContainerClient,
    ExponentialRetry,
    generate_blob_sas,
)
from urllib3.exceptions import HTTPError

from data.storage.base import (
    ANYBODY,
    BlobNotFound,
    BlobWriter,
    InvalidBlobPath,
    Recipient,
    Storage,
    StorageUnavailable,
    StoredBlob,
    attachment,
    check_range,
    checked_folder,
    checked_path,
)
from data.storage.parts import PART_SIZE, PartsWriter
from data.storage.resuming import Nothing, ResumingReader
from util.digest import Readable

log = logging.getLogger(__name__)

_GROWTH = 5000  # after each so many blocks they become larger by one size: Azure's 50,000 make 2 TiB
_RETRIES = 3
_SYNCHRONOUS_COPY = 256 << 20  # bytes that Copy Blob From URL takes
_COPY_SECONDS = 600  # for a larger copy to be done
_COPY_PAUSE = 0.25
_SIGNED_SECONDS = 900  # from making a URL to the server's reading it, with both clocks
_HEARTBEAT_SECONDS = 600  # a sweep takes what is a day old
_BLOCK = 1 << 16
_PARTS = ".parts"
_SAME = MatchConditions.IfNotModified
_BROKEN = (AzureError, HTTPError, OSError)
_QUERY = re.compile(r"\?[^\s'\"<>)]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureSettings:
    """How a container is reached: by the account's key, or else by a shared access signature (SAS)."""

    container: str
    account_name: str
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    prefix: str = ""
    """What stands before every path, `storage_path` in the configuration."""
    endpoint_url: str | None = None
    """None is Azure itself."""
    part_size: int = PART_SIZE
    timeout: float = 60
    """Seconds to wait for a connection, and for the next bytes."""


class AzureStorage(Storage):
    """Blobs in a container. No request is made before one is asked for.

    Raises ValueError for settings that cannot be used.
    """

    def __init__(self, settings: AzureSettings) -> None:
        self._account, self._key = settings.account_name, settings.account_key
        self._sas = (settings.sas_token or "").lstrip("?")
        self._container_name = settings.container
        self._prefix = settings.prefix.strip("/")
        self._part_size = settings.part_size
        if self._key is not None and not _is_base64(self._key):
            raise ValueError("azure_account_key is not in base64")
        if self._key is None and not self._sas:
            raise ValueError("azure_account_key is missing, and sas_token too")
        self._container = ContainerClient(
            settings.endpoint_url or f"https://{self._account}.blob.core.windows.net",
            settings.container,
            credential={"account_name": self._account, "account_key": self._key}
            if self._key
            else AzureSasCredential(self._sas),
            retry_policy=ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=_RETRIES),
            connection_timeout=settings.timeout,
            read_timeout=settings.timeout,
        )
        # Reads go past the library's own, which loads 4 to 32 MiB before it gives the first byte.
        self._reads: PipelineClient[Any, Any] = PipelineClient(
            self._container.url,
            policies=[RetryPolicy(retry_total=_RETRIES)],
            transport=RequestsTransport(
                connection_timeout=settings.timeout,
                read_timeout=settings.timeout,
                connection_data_block_size=_BLOCK,
            ),
        )

    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        check_range(offset, length)
        name = self._name(path)
        if length == 0:
            self.size(path)
            return Nothing()
        answer = self._get(path, name, offset, None if length is None else offset + length)
        if answer is None:
            return Nothing()
        reopen = partial(self._reopen, path, name, answer.headers["ETag"])
        left = int(answer.headers["Content-Length"])
        return ResumingReader(path, offset, left, body=_AzureBody(answer), reopen=reopen, broken=_BROKEN)

    def size(self, path: str) -> int:
        with self._translated(path):
            blob = self._container.get_blob_client(self._name(path)).get_blob_properties()
        if _is_unfinished(blob.copy.status):
            raise BlobNotFound(f"the blob {path} is being copied to its place")
        return blob.size

    def create(self, path: str) -> BlobWriter:
        return _AzureWriter(self, path, self._name(path), part_size=self._part_size)

    def copy(self, source: str, target: str) -> None:
        """Have Azure copy the blob."""
        origin, name = self._name(source), self._name(target)
        size = self.size(source)
        if origin != name:
            self.copy_object(source, origin, name, size)

    def delete(self, path: str) -> None:
        with contextlib.suppress(BlobNotFound):
            self.delete_object(path, self._name(path))

    def list(self, prefix: str) -> Iterator[StoredBlob]:
        return self._under(checked_folder(prefix))

    def sweep(self, *, older_than: float, dry_run: bool = False) -> int:
        """Delete the blocks of writers that nobody goes on with."""
        found, since = 0, time.time() - older_than
        for item in self._listed(self._own(""), _PARTS):
            if item.last_modified.timestamp() <= since:
                if not dry_run:
                    self.drop_blocks(item.name, item.name)
                found += 1
        return found

    def direct_download_url(
        self,
        path: str,
        *,
        seconds: int,
        file_name: str | None = None,
        media_type: str | None = None,
        recipient: Recipient = ANYBODY,
    ) -> str | None:
        """Return a URL with a signature for this blob; None without the account's key, because only that can sign."""
        name = self._name(path)
        if self._key is None:
            return None
        disposition = None if file_name is None else attachment(file_name)
        return self._signed(name, seconds, disposition=disposition, media_type=media_type)

    # --- Requests that the writer makes, too ---

    def put_object(self, path: str, name: str, content: bytes) -> str:
        """Make an object of `content`, by one request. Return its ETag."""
        with self._translated(path):
            return str(self._container.get_blob_client(name).upload_blob(bytes(content), overwrite=True)["etag"])

    def begin(self, path: str) -> tuple[str, str]:
        """Return name and ETag of a new object that blocks are staged at."""
        name = self._own(uuid.uuid4().hex)
        return name, self.put_object(path, name, b"")

    def stage(self, path: str, name: str, block: str, content: bytes) -> None:
        """Stage a block."""
        with self._translated(path):
            self._container.get_blob_client(name).stage_block(block, bytes(content), length=len(content))

    def touch(self, path: str, name: str, etag: str) -> str:
        """Have the object count as written to now, with the blocks that are staged at it. Return its new ETag."""
        with self._translated(path):
            blob = self._container.get_blob_client(name)
            return str(blob.set_blob_metadata({}, etag=etag, match_condition=_SAME)["etag"])

    def commit_blocks(self, path: str, name: str, etag: str, blocks: Sequence[str]) -> None:
        """Make the object that blocks are staged at of these, if it still has `etag`."""
        with self._translated(path):
            self._container.get_blob_client(name).commit_block_list(
                [BlobBlock(block) for block in blocks], etag=etag, match_condition=_SAME
            )

    def drop_blocks(self, path: str, name: str) -> None:
        """Delete an object and the blocks that are staged at it: a delete alone may leave them for a week."""
        self.put_object(path, name, b"")
        with contextlib.suppress(BlobNotFound):
            self.delete_object(path, name)

    def copy_object(self, path: str, origin: str, name: str, size: int) -> None:
        """Have Azure copy an object of `size` bytes, and wait until that is done."""
        blob = self._container.get_blob_client(name)
        source = self._signed(origin, _SIGNED_SECONDS)
        with self._translated(path):
            if size <= _SYNCHRONOUS_COPY:
                blob.start_copy_from_url(source, requires_sync=True)
                return
            status: str | None = str(blob.start_copy_from_url(source)["copy_status"])
            end = time.monotonic() + _COPY_SECONDS
            while status == "pending" and time.monotonic() < end:
                time.sleep(_COPY_PAUSE)
                status = blob.get_blob_properties().copy.status
        if status != "success":
            raise StorageUnavailable(f"Azure has not copied {path}: {status}")

    def delete_object(self, path: str, name: str) -> None:
        """Delete an object. Raises BlobNotFound."""
        with self._translated(path):
            self._container.get_blob_client(name).delete_blob(delete_snapshots="include")

    # ---

    def _under(self, folder: str) -> Iterator[StoredBlob]:
        start = self._name(folder) + "/"
        for item in self._listed(start, folder):
            # In an account with a hierarchical namespace, folders are objects, too.
            if _is_unfinished(item.copy.status) or (item.metadata or {}).get("hdi_isfolder") == "true":
                continue
            with contextlib.suppress(InvalidBlobPath):
                path = checked_path(f"{folder}/{item.name.removeprefix(start)}")
                yield StoredBlob(path, item.size, int(item.last_modified.timestamp() * 1000))

    def _listed(self, start: str, folder: str) -> Iterator[BlobProperties]:
        items = iter(self._container.list_blobs(name_starts_with=start, include=["metadata", "copy"]))
        while True:
            with self._translated(folder):
                item = next(items, None)
            if item is None:
                return
            yield item

    def _get(self, path: str, name: str, offset: int, end: int | None, etag: str | None = None) -> HttpResponse | None:
        """Return Azure's answer, None where `offset` is not before the blob's end."""
        headers = {"If-Match": etag} if etag else {}
        if offset or end is not None:
            headers["Range"] = f"bytes={offset}-{'' if end is None else end - 1}"
        request = HttpRequest("GET", self._signed(name, _SIGNED_SECONDS), headers=headers)
        with self._translated(path):
            answer: HttpResponse = self._reads.send_request(request, stream=True)
            if answer.status_code < 300 and not _is_unfinished(answer.headers.get("x-ms-copy-status")):
                return answer
            answer.close()
        if answer.status_code == 416:
            return None
        if answer.status_code < 300:
            raise BlobNotFound(f"the blob {path} is being copied to its place")
        if answer.status_code == 412:
            self.size(path)  # a blob that is gone has no ETag either
        raise self._refusal(path, answer.status_code, answer.headers.get("x-ms-error-code"))

    def _reopen(self, path: str, name: str, etag: str, offset: int, end: int) -> "_AzureBody":
        answer = self._get(path, name, offset, end, etag)
        if answer is None or answer.headers.get("Content-Length") != str(end - offset):
            raise StorageUnavailable(f"{path} became shorter while it was read")
        return _AzureBody(answer)

    def _signed(self, name: str, seconds: int, *, disposition: str | None = None, media_type: str | None = None) -> str:
        """Return a URL by which the object can be read, for `seconds` where the account's key signs it."""
        token = self._sas
        if self._key is not None:
            token = generate_blob_sas(
                self._account,
                self._container_name,
                name,
                account_key=self._key,
                permission=BlobSasPermissions(read=True),
                expiry=datetime.now(UTC) + timedelta(seconds=seconds),
                content_disposition=disposition,
                content_type=media_type,
            )
        url = self._container.get_blob_client(name).url.partition("?")[0]
        return f"{url}?{token}"

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except HttpResponseError as error:
            raise self._refusal(path, error.status_code, getattr(error, "error_code", None)) from error
        except _BROKEN as error:
            said = _QUERY.sub("?…", str(error))
            raise StorageUnavailable(f"Azure does not answer for {path}: {said}") from None  # the cause has signatures

    def _refusal(self, path: str, status: int | None, code: str | None) -> BlobNotFound | StorageUnavailable:
        if status == 404 and code == "BlobNotFound":
            return BlobNotFound(f"there is no blob {path} in storage")
        said = f"{status} {getattr(code, 'value', code) or 'and no reason given'}"
        return StorageUnavailable(f"Azure refuses {path} in the container {self._container_name}: {said}")

    def _own(self, name: str) -> str:
        return f"{self._prefix}/{_PARTS}/{name}" if self._prefix else f"{_PARTS}/{name}"

    def _name(self, path: str) -> str:
        return f"{self._prefix}/{checked_path(path)}" if self._prefix else checked_path(path)


class _AzureBody:
    """The bytes of an answer, in pieces of the size that is asked for."""

    def __init__(self, answer: HttpResponse) -> None:
        self._answer, self._pieces = answer, answer.iter_raw()
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return piece

    def close(self) -> None:
        self._answer.close()


class _AzureWriter(PartsWriter[str]):
    def __init__(self, storage: AzureStorage, path: str, name: str, *, part_size: int) -> None:
        super().__init__(path, part_size=part_size, growth=_GROWTH)
        self._storage, self._name = storage, name
        self._staging = self._etag = ""
        self._touched, self._touching = 0.0, threading.Lock()
        self._size = 0

    def _put_whole(self, content: bytes) -> None:
        self._storage.put_object(self._path, self._name, content)

    def _begin(self) -> None:
        self._staging, self._etag = self._storage.begin(self._path)
        self._touched = time.monotonic()

    def _put(self, number: int, content: bytes) -> str:
        block = f"{number:05d}"
        self._storage.stage(self._path, self._staging, block, content)
        with self._touching:
            if time.monotonic() - self._touched > _HEARTBEAT_SECONDS:
                self._etag = self._storage.touch(self._path, self._staging, self._etag)
                self._touched = time.monotonic()
        return block

    def _write(self, chunk: bytes) -> None:
        super()._write(chunk)
        self._size += len(chunk)

    def _complete(self, parts: list[str]) -> None:
        try:
            self._storage.commit_blocks(self._path, self._staging, self._etag, parts)
            self._storage.copy_object(self._path, self._staging, self._name, self._size)
        except BlobNotFound as error:
            raise StorageUnavailable(f"what was written of {self._path} was taken away: {error}") from error
        self._give_back()

    def _give_back(self) -> None:
        try:
            self._storage.drop_blocks(self._path, self._staging)
        except StorageUnavailable as error:
            log.warning("the blocks of %s stay until they are swept: %s", self._path, error)


def _is_unfinished(status: object) -> bool:
    """Return whether an object is what a copy that is not done, or has failed, has left."""
    return status in ("pending", "aborted", "failed")


def _is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return False
