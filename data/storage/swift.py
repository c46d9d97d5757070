"""Blobs in a container of OpenStack Swift, or of what speaks its API.

Invariants:
- A blob of more than one part is a static large object: its manifest names every segment with size and checksum, Swift
  checks them when the manifest is put, and that one request makes the blob. (Quay writes dynamic large objects, which
  are whatever a listing of their segments happens to show; they are read, copied and deleted like any blob.)
- Segments lie under `.segments/GROUP/`, where no path of a blob leads, and belong to one blob alone.
- Before the first segment of a group is put, and before the manifest that names it is replaced or deleted, a marker
  `.open/GROUP` says whose it is. So what a crash, or one of two writers at the same moment, leaves behind is found
  without looking at every blob. A marker whose blob is there goes with the next sweep.
- The client's errors are translated here, once. This module is imported only where a storage of its kind is configured.

Swift's documentation: "Large Object Support", "TempURL middleware", "Object Storage API: Objects".
"""

import contextlib
import hashlib
import json
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

from swiftclient.client import Connection, get_capabilities, http_connection
from swiftclient.exceptions import ClientException
from swiftclient.utils import generate_temp_url
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
    check_range,
    checked_folder,
    checked_path,
)
from data.storage.parts import PartsWriter
from data.storage.resuming import Body, Nothing, ResumingReader
from util.digest import Readable

log = logging.getLogger(__name__)

PART_SIZE = 16 << 20
_GROWTH = 100  # after each so many parts they become larger by one size: Swift's 1,000 make 86 GiB
_COPIES = 4  # segments that are copied side by side
_READ_SECONDS = 60.0  # a copy of a segment is answered when it is done
_PAGE = 1000
_READ_SIZE = 1 << 16
_SEGMENTS, _OPEN = ".segments", ".open"
_GROUP = "x-object-meta-verbs-segments"
_MEDIA_TYPE = "application/octet-stream"
_BROKEN = (HTTPError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwiftSettings:
    """How a container is reached."""

    container: str
    auth_url: str
    user: str
    password: str = field(repr=False)
    prefix: str = ""
    """What stands before every path, with the `/` at its end if it is to have one."""
    auth_version: int = 2
    os_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Tenant, project, domains and region, by the client's names."""
    ca_file: str | None = None
    temp_url_key: str | None = field(default=None, repr=False)
    """The key that account or container have for temporary URLs; without it there are none."""
    connect_timeout: float = 5
    """Seconds to wait for a connection."""
    retries: int = 5
    """How often a request is made again, after 1, 2, 4, … seconds."""
    retry_on_ratelimit: bool = True
    part_size: int = PART_SIZE


@dataclass(frozen=True, slots=True)
class _Segments:
    """Where the segments of a large object lie. `group` names them: ours by a name of their own, others by a digest."""

    group: str
    prefix: str


@dataclass(frozen=True, slots=True)
class _Segment:
    """One segment: the object's name, its checksum as Swift told it, and bytes."""

    name: str
    etag: str
    size: int


class SwiftStorage(Storage):
    """Blobs in a container. No request is made before one is asked for."""

    def __init__(self, settings: SwiftSettings) -> None:
        self._settings = settings
        self._container, self._prefix = settings.container, settings.prefix
        self._idle: deque[_Connection] = deque()
        self._has_large_objects = False
        self._url: str | None = None

    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        check_range(offset, length)
        name = self._name(path)
        if length == 0:
            self.size(path)
            return Nothing()
        answer = self._get(path, name, offset, None if length is None else offset + length)
        if answer is None:
            return Nothing()
        headers, body = answer
        left = _number(headers, "content-length", path)
        reopen = partial(self._reopen, path, name, headers.get("etag", ""))
        return ResumingReader(path, offset, left, body=body, reopen=reopen, broken=_BROKEN)

    def size(self, path: str) -> int:
        return _number(self._head(path), "content-length", path)

    def create(self, path: str) -> BlobWriter:
        return _SwiftWriter(self, path, self._name(path), part_size=self._settings.part_size)

    def copy(self, source: str, target: str) -> None:
        """Have Swift copy the object; one of ours that has segments gets segments of its own."""
        origin, name = self._name(source), self._name(target)
        headers = self._head(source)
        if origin == name:
            return
        segments = self._segments(headers)
        if segments is not None and segments.prefix.startswith(self._own(_SEGMENTS)):
            self._copy_large(source, origin, target, _number(headers, "content-length", source))
            return
        with self._replacing(target), self._asking(source, found=True) as connection:
            destination = f"/{quote(self._container)}/{quote(name)}"
            connection.copy_object(self._container, origin, destination, headers={"Content-Type": _MEDIA_TYPE})

    def delete(self, path: str) -> None:
        name = self._name(path)
        with contextlib.suppress(BlobNotFound), self._replacing(path), self._asking(path, found=True) as connection:
            connection.delete_object(self._container, name)

    def list(self, prefix: str) -> Iterator[StoredBlob]:
        return self._under(checked_folder(prefix))

    def sweep(self, *, older_than: float, dry_run: bool = False) -> int:
        found, since = 0, time.time() - older_than
        for marker in self._listed(self._own(_OPEN) + "/"):
            if _modified(marker) > since:
                continue
            with contextlib.suppress(BlobNotFound):  # somebody else sweeps, too
                found += self._sweep(marker["name"], since, dry_run=dry_run)
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
        """Return a temporary URL, None without a key. Its answer has the object's own media type, not `media_type`."""
        name = self._name(path)
        if self._settings.temp_url_key is None:
            return None
        if self._url is None:
            with self._asking(path) as connection:
                self._url = connection.storage_url()
        place = urlsplit(self._url)
        full_path = f"{place.path.rstrip('/')}/{self._container}/{name}"
        signed = generate_temp_url(full_path, seconds, self._settings.temp_url_key, "GET", digest="sha256")
        query = signed.removeprefix(full_path)
        if file_name is not None:
            query += f"&filename={quote(file_name, safe='')}"
        return f"{place.scheme}://{place.netloc}{quote(full_path)}{query}"

    # --- Requests that the writer makes, too ---

    def put(self, path: str, name: str, content: bytes) -> _Segment:
        """Make an object of `content`, for the blob at `path`."""
        # The client holds on to what it has sent, and the part that it came from is going to be filled again.
        with self._asking(path) as connection, memoryview(content) as view:
            etag = connection.put_object(
                self._container, name, _Content(view), content_length=len(content), content_type=_MEDIA_TYPE
            )
        return _Segment(name, etag, len(content))

    def put_blob(self, path: str, name: str, content: bytes) -> None:
        """Make the blob at `path` of `content`, by one request but for what it replaces."""
        with self._replacing(path):
            self.put(path, name, content)

    def begin(self, path: str) -> str:
        """Return a new group of segments for the blob at `path`, marked as open."""
        if not self._has_large_objects:
            with self._asking(path) as connection:
                if "slo" not in connection.capabilities():
                    raise StorageUnavailable(f"Swift has no static large objects (slo), and {path} needs one")
            self._has_large_objects = True
        group = uuid.uuid4().hex
        self._mark(path, _Segments(group, self._folder(group)))
        return group

    def segment(self, group: str, number: int) -> str:
        """Return the name of a segment."""
        return f"{self._folder(group)}{number:08d}"

    def put_manifest(self, path: str, name: str, group: str, segments: Sequence[_Segment]) -> None:
        """Make the blob at `path` of segments, in one step."""
        manifest = [
            {"path": f"/{self._container}/{segment.name}", "etag": segment.etag, "size_bytes": segment.size}
            for segment in segments
        ]
        with self._replacing(path), self._asking(path) as connection:
            connection.put_object(
                self._container,
                name,
                json.dumps(manifest).encode(),
                content_type=_MEDIA_TYPE,
                headers={_GROUP: group},
                query_string="multipart-manifest=put",
            )

    def give_back(self, path: str, group: str) -> None:
        """Delete the segments of a group that no manifest has been sent for, and its marker.

        Once one has been sent, also where the answer was an error, the blob may be there: then a sweep decides.
        """
        self._remove(path, _Segments(group, self._folder(group)))

    # ---

    def _copy_large(self, source: str, origin: str, target: str, size: int) -> None:
        with self._asking(source, found=True) as connection:
            query = "multipart-manifest=get"
            _, manifest = connection.get_object(self._container, origin, query_string=query)
        entries = json.loads(manifest)
        if sum(entry["bytes"] for entry in entries) != size:
            raise StorageUnavailable(f"{source} was replaced while it was copied")
        group = self.begin(target)
        try:
            with ThreadPoolExecutor(_COPIES, thread_name_prefix="copy") as threads:
                copies = [
                    threads.submit(self._copy_segment, source, entry, self.segment(group, number))
                    for number, entry in enumerate(entries, 1)
                ]
                segments = [copy.result() for copy in copies]
        except BaseException:
            with contextlib.suppress(StorageUnavailable):  # the marker stays, and a sweep finds it
                self.give_back(target, group)
            raise
        self.put_manifest(target, self._name(target), group, segments)

    def _copy_segment(self, source: str, entry: Mapping[str, Any], name: str) -> _Segment:
        with self._asking(source, found=True) as connection:
            container, _, origin = entry["name"].removeprefix("/").partition("/")
            connection.copy_object(container, origin, f"/{quote(self._container)}/{quote(name)}")
        return _Segment(name, entry["hash"], entry["bytes"])

    @contextlib.contextmanager
    def _replacing(self, path: str) -> Iterator[None]:
        """Afterwards, delete the segments of the blob that was at `path` before."""
        try:
            segments = self._segments(self._head(path))
        except BlobNotFound:
            segments = None
        if segments is not None:
            self._mark(path, segments)
        yield
        if segments is not None:
            try:
                self._remove(path, segments)
            except StorageUnavailable as error:  # what was asked for is done
                log.warning("the segments %s stay until they are swept: %s", segments.prefix, error)

    def _segments(self, headers: Mapping[str, str]) -> _Segments | None:
        """Return where the segments of an object lie that are this object's alone, None where it has none."""
        if headers.get("x-static-large-object", "").lower() == "true" and _GROUP in headers:
            return _Segments(headers[_GROUP], self._folder(headers[_GROUP]))
        container, _, prefix = headers.get("x-object-manifest", "").partition("/")
        if prefix and container == self._container:
            return _Segments(_group_of(prefix), prefix)
        return None

    def _mark(self, path: str, segments: _Segments) -> None:
        content = json.dumps({"path": path, "prefix": segments.prefix}).encode()
        self.put(path, f"{self._own(_OPEN)}/{segments.group}", content)

    def _remove(self, path: str, segments: _Segments) -> None:
        for segment in self._listed(segments.prefix):
            self._delete(path, segment["name"])
        self._delete(path, f"{self._own(_OPEN)}/{segments.group}")

    def _sweep(self, marker: str, since: float, *, dry_run: bool) -> int:
        """Return 1 where the segments that `marker` speaks of were no blob's, and old."""
        with self._asking(marker, found=True) as connection:
            content = connection.get_object(self._container, marker)[1]
        try:
            said = json.loads(content)
            path, segments = checked_path(said["path"]), _Segments(marker.rpartition("/")[2], str(said["prefix"]))
            # What lies under the prefix is going to be deleted: it has to be the one that the marker is named after.
            if not segments.prefix or segments.group not in (
                _group_of(segments.prefix),
                self._group_in(segments.prefix),
            ):
                raise ValueError(segments.prefix)
        except (ValueError, KeyError, TypeError, InvalidBlobPath):
            log.warning("%s in the container %s is no marker of ours and stays", marker, self._container)
            return 0
        if any(_modified(segment) > since for segment in self._listed(segments.prefix)):
            return 0
        try:
            headers = self._head(path)
            there = self._segments(headers)
            if there is None and headers.get("x-static-large-object", "").lower() == "true":
                return 0  # whose metadata somebody replaced: the segments may be its own
            referenced = there == segments
        except BlobNotFound:  # also said of an object by a cluster that has lost sight of it; its container knows
            first = next(self._listed(self._name(path)), None)
            referenced = first is not None and first["name"] == self._name(path)
            if referenced:
                return 0
        if not dry_run and referenced:
            self._delete(path, marker)
        elif not dry_run:
            self._remove(path, segments)
        return 0 if referenced else 1

    def _delete(self, path: str, name: str) -> None:
        with contextlib.suppress(BlobNotFound), self._asking(path, found=True) as connection:
            connection.delete_object(self._container, name)

    def _under(self, folder: str) -> Iterator[StoredBlob]:
        start = self._name(folder) + "/"
        for item in self._listed(start):
            with contextlib.suppress(InvalidBlobPath, BlobNotFound):
                path = checked_path(f"{folder}/{item['name'].removeprefix(start)}")
                # A dynamic large object is listed as the nothing that its manifest holds.
                yield StoredBlob(path, item["bytes"] or self.size(path), int(_modified(item) * 1000))

    def _listed(self, start: str) -> Iterator[dict[str, Any]]:
        """Iterate over the objects whose names begin with `start`, by their names."""
        marker: str | None = None
        while True:
            with self._asking(start) as connection:
                _, page = connection.get_container(self._container, prefix=start, marker=marker, limit=_PAGE)
            yield from page
            if not page:
                return
            marker = page[-1]["name"]

    def _head(self, path: str) -> dict[str, str]:
        name = self._name(path)
        with self._asking(path, found=True) as connection:
            headers: dict[str, str] = connection.head_object(self._container, name)
        return headers

    def _get(
        self, path: str, name: str, offset: int, end: int | None, etag: str | None = None
    ) -> tuple[dict[str, str], Body] | None:
        """Return Swift's answer, None where `offset` is not before the object's end."""
        # Also the whole is asked for as a range: the client resumes other reads by itself, and would not say so.
        headers = {"Range": f"bytes={offset}-{'' if end is None else end - 1}"}
        if etag:
            headers["If-Match"] = f'"{etag.strip(chr(34))}"'
        # The client reads from the last answer of a connection, whichever was meant: so a body has one for itself.
        connection = self._connection()
        with self._translated(path, found=True):
            try:
                answer, body = connection.get_object(self._container, name, resp_chunk_size=_READ_SIZE, headers=headers)
            except ClientException as error:
                self._idle.append(connection)
                if error.http_status == 416:
                    return None
                raise
        return answer, _SwiftBody(body, partial(self._idle.append, connection))

    def _reopen(self, path: str, name: str, etag: str, offset: int, end: int) -> Body:
        answer = self._get(path, name, offset, end, etag)
        if answer is None or _number(answer[0], "content-length", path) != end - offset:
            raise StorageUnavailable(f"{path} became shorter while it was read")
        return answer[1]

    @contextlib.contextmanager
    def _asking(self, path: str, *, found: bool = False) -> Iterator["_Connection"]:
        """Give a connection that nobody else uses, and translate its errors as `_translated` does."""
        connection = self._connection()
        try:
            with self._translated(path, found=found):
                yield connection
        finally:
            self._idle.append(connection)

    def _connection(self) -> "_Connection":
        try:
            return self._idle.pop()
        except IndexError:
            return _Connection(self._settings)

    @contextlib.contextmanager
    def _translated(self, path: str, *, found: bool) -> Iterator[None]:
        """Translate the client's errors. A 404 is BlobNotFound where `found`; else it is the container that is not."""
        try:
            yield
        except ClientException as error:
            if found and error.http_status == 404:
                raise BlobNotFound(f"there is no blob {path} in storage") from error
            said = f"{error.http_status} {error.http_reason}" if error.http_status else error.msg
            raise StorageUnavailable(f"Swift refuses {path} in the container {self._container}: {said}") from error
        except _BROKEN as error:
            raise StorageUnavailable(f"Swift does not answer for {path}: {error}") from error

    def _own(self, folder: str) -> str:
        return f"{self._prefix}{folder}"

    def _group_in(self, prefix: str) -> str | None:
        """Return the group of segments of ours whose folder is `prefix`, None where it is no such folder."""
        group = prefix.removesuffix("/").rpartition("/")[2]
        return group if group and prefix == self._folder(group) else None

    def _folder(self, group: str) -> str:
        return f"{self._own(_SEGMENTS)}/{group}/"

    def _name(self, path: str) -> str:
        return f"{self._prefix}{checked_path(path)}"


class _Connection(Connection):  # type: ignore[misc] # the client has no types
    """The client's connection, which waits longer for an answer than for a connection."""

    def __init__(self, settings: SwiftSettings) -> None:
        super().__init__(
            authurl=settings.auth_url,
            user=settings.user,
            key=settings.password,
            auth_version=str(settings.auth_version),
            os_options=settings.os_options,
            cacert=settings.ca_file,
            retries=settings.retries,
            retry_on_ratelimit=settings.retry_on_ratelimit,
            timeout=settings.connect_timeout,
        )

    def http_connection(self, url: str | None = None) -> Any:
        return http_connection(url or self.url, cacert=self.cacert, timeout=(self.timeout, _READ_SECONDS))

    def get_auth(self) -> tuple[str, str]:
        """Log in. Raises ClientException, also for what the identity service's libraries raise."""
        try:
            answer: tuple[str, str] = super().get_auth()
        except (ClientException, OSError, HTTPError):
            raise
        except Exception as error:
            raise ClientException(f"{self.authurl} does not let us in: {type(error).__name__}") from error
        return answer

    def capabilities(self) -> Mapping[str, Any]:
        """Return what the cluster says that it can, asked for as often as everything else."""
        return self._retry(None, self._ask_capabilities)  # type: ignore[no-any-return]

    def _ask_capabilities(self, url: str, *_: object, http_conn: tuple[Any, Any], **__: object) -> Any:
        return get_capabilities((urlsplit(self._map_url(url)), http_conn[1]))

    def storage_url(self) -> str:
        """Return where the account's containers lie."""
        url, _ = (self.url, self.token) if self.url else self.get_auth()
        return str(url)


class _SwiftBody:
    """The bytes of an answer. `release` gives its connection back."""

    def __init__(self, body: Any, release: Callable[[], None]) -> None:
        self._body, self._release = body, release

    def read(self, size: int, /) -> bytes:
        piece: bytes = self._body.read(size)
        return piece

    def close(self) -> None:
        self._body.close()
        self._release()


class _SwiftWriter(PartsWriter[_Segment]):
    def __init__(self, storage: SwiftStorage, path: str, name: str, *, part_size: int) -> None:
        super().__init__(path, part_size=part_size, growth=_GROWTH)
        self._storage, self._name = storage, name
        self._group = ""
        self._manifest_sent = False

    def _put_whole(self, content: bytes) -> None:
        self._storage.put_blob(self._path, self._name, content)

    def _begin(self) -> None:
        self._group = self._storage.begin(self._path)

    def _put(self, number: int, content: bytes) -> _Segment:
        return self._storage.put(self._path, self._storage.segment(self._group, number), content)

    def _complete(self, parts: list[_Segment]) -> None:
        self._manifest_sent = True
        try:
            self._storage.put_manifest(self._path, self._name, self._group, parts)
        except StorageUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, ClientException) and 400 <= (cause.http_status or 0) < 500:
                self._manifest_sent = False  # refused, so nothing was written
            raise

    def _give_back(self) -> None:
        if self._manifest_sent:
            log.warning("whether %s was written is not known; its segments stay until they are swept", self._path)
            return
        try:
            self._storage.give_back(self._path, self._group)
        except StorageUnavailable as error:
            log.warning("the segments of %s stay until they are swept: %s", self._path, error)


class _Content:
    """Bytes as a file that can be sent again, without a copy of them."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._position = content, 0

    def __len__(self) -> int:
        return len(self._content)

    def read(self, size: int) -> bytes:
        piece = bytes(self._content[self._position : self._position + size])
        self._position += len(piece)
        return piece

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position


def _number(headers: Mapping[str, str], name: str, path: str) -> int:
    value = headers.get(name, "")
    if not value.isascii() or not value.isdecimal():
        raise StorageUnavailable(f"Swift does not say how many bytes {path} has")
    return int(value)


def _modified(item: Mapping[str, Any]) -> float:
    """Return when a listed object was put, in seconds since 1970."""
    return datetime.fromisoformat(item["last_modified"]).replace(tzinfo=UTC).timestamp()


def _group_of(prefix: str) -> str:
    """Return what the segments of a dynamic large object, which lie under `prefix`, are called as a group."""
    return hashlib.sha256(prefix.encode()).hexdigest()
