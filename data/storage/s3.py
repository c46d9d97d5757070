"""Blobs in an S3 bucket: AWS, MinIO, Ceph's RADOS gateway, Google's interoperable interface.

The law: memory does not grow with a blob. What is written goes up in parts, a few side by side, or by one request where
it is small; it becomes a blob with the last request, and is given back where that does not come. What is read comes in
one request, and where the connection breaks, the next one goes on at the byte where it broke, of the same object or not
at all. The library's errors are translated here, once. It takes half a second to import, so this module is imported
only where a storage of its kind is configured.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.credentials import CredentialProvider, CredentialResolver, Credentials
from botocore.exceptions import BotoCoreError, ClientError
from botocore.response import StreamingBody
from urllib3.exceptions import HTTPError

from data.storage.base import (
    ANYBODY,
    OWN,
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

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, MultipartUploadTypeDef

log = logging.getLogger(__name__)

MIN_PART_SIZE = 5 << 20  # S3 takes smaller parts at the end only
_GROWTH = 1000  # after each so many parts they become larger by one size, so that S3's 10,000 make 400 GiB and not 80
_COPY_PART = 64 << 20
_ATTEMPTS = 5
_NOT_FOUND = {"NoSuchKey", "404", "NotFound"}
_NO_UPLOAD = "NoSuchUpload"
_RANGE = {"InvalidRange", "416"}


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """How a bucket is reached. Without keys the library looks for credentials where it always does."""

    bucket: str
    prefix: str = ""
    """What stands before every path, `storage_path` in the configuration."""
    endpoint_url: str | None = None
    """None is AWS in `region`."""
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    signature_version: str = "s3v4"
    path_style: bool | None = None
    """The bucket in the path and not in the host name; None: for every endpoint but AWS."""
    encrypt: bool = False
    """Ask for server-side encryption with AES-256, as a bucket's policy may demand."""
    part_size: int = PART_SIZE
    timeout: float = 60
    """Seconds to wait for a connection, and for the next bytes."""
    max_connections: int = 32


class S3Storage(Storage):
    """Blobs in a bucket. No request is made before one is asked for. Raises ValueError for settings that cannot be."""

    def __init__(self, settings: S3Settings, credentials: Credentials | None = None) -> None:
        """`credentials` go before those of `settings`."""
        self._bucket = settings.bucket
        self._prefix = settings.prefix.strip("/")
        self._part_size = max(settings.part_size, MIN_PART_SIZE)
        self._upload: dict[str, Any] = {"ServerSideEncryption": "AES256"} if settings.encrypt else {}
        try:
            self._client = _client(settings, credentials)
        except BotoCoreError as error:
            raise ValueError(str(error)) from error

    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        check_range(offset, length)
        key = self._key(path)
        if length == 0:
            self.size(path)
            return Nothing()
        end = None if length is None else offset + length
        answer = self._get(path, key, offset, end)
        if answer is None:
            return Nothing()
        return ResumingReader(
            path,
            offset,
            answer["ContentLength"],
            body=answer["Body"],
            reopen=partial(self._reopen, path, answer["ETag"]),
            broken=(BotoCoreError, HTTPError, OSError),  # HTTPError: the library passes on those of TLS
        )

    def size(self, path: str) -> int:
        key = self._key(path)
        with _translated(path):
            return self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]

    def create(self, path: str) -> BlobWriter:
        target = {"Bucket": self._bucket, "Key": self._key(path)}
        return _S3Writer(self._client, path, target, part_size=self._part_size, more=self._upload)

    def copy(self, source: str, target: str) -> None:
        """Have S3 copy the object, a large one in parts side by side, because one request may take long."""
        origin = {"Bucket": self._bucket, "Key": self._key(source)}
        key = self._key(target)
        if origin["Key"] == key:
            self.size(source)
            return
        with _translated(source):
            self._client.copy(
                origin,  # type: ignore[arg-type] # a TypedDict of these two
                self._bucket,
                key,
                ExtraArgs=self._upload,
                Config=TransferConfig(multipart_threshold=_COPY_PART, multipart_chunksize=_COPY_PART),
            )

    def delete(self, path: str) -> None:
        key = self._key(path)
        with contextlib.suppress(BlobNotFound), _translated(path):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def list(self, prefix: str) -> Iterator[StoredBlob]:
        return self._under(checked_folder(prefix))

    def sweep(self, *, older_than: float, dry_run: bool = False) -> int:
        """Give back the parts of uploads that nobody goes on with.

        MinIO lists no uploads by folder, and removes old ones by itself; 0 then.
        """
        found, since = 0, time.time() - older_than
        pages = self._client.get_paginator("list_multipart_uploads")
        with _translated(f"uploads under {OWN}/"):
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._key(OWN)}/"):
                for upload in page.get("Uploads", []):
                    if upload["Initiated"].timestamp() <= since and self._is_stale(upload, since):
                        if not dry_run:
                            self._give_back(upload)
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
        parameters: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(path)}
        if file_name is not None:
            parameters["ResponseContentDisposition"] = attachment(file_name)
        if media_type is not None:
            parameters["ResponseContentType"] = media_type
        with _translated(path):
            return self._client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=seconds)

    def _reopen(self, path: str, etag: str, offset: int, end: int) -> StreamingBody:
        """Return the bytes from `offset` to `end` of the object that has `etag`. Raises as `open` does."""
        answer = self._get(path, self._key(path), offset, end, etag)
        if answer is None or answer["ContentLength"] != end - offset:
            raise StorageUnavailable(f"{path} became shorter while it was read")
        body: StreamingBody = answer["Body"]
        return body

    def _under(self, folder: str) -> Iterator[StoredBlob]:
        key = f"{self._key(folder)}/"
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=key))
        while True:
            with _translated(folder):
                page = next(pages, None)
            if page is None:
                return
            for item in page.get("Contents", []):
                with contextlib.suppress(InvalidBlobPath):  # what a console or a mounted bucket takes for a folder
                    path = checked_path(f"{folder}/{item['Key'].removeprefix(key)}")
                    yield StoredBlob(path, item["Size"], int(item["LastModified"].timestamp() * 1000))

    def _give_back(self, upload: "MultipartUploadTypeDef") -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        except ClientError as error:
            if _code(error) != _NO_UPLOAD:
                raise

    def _is_stale(self, upload: "MultipartUploadTypeDef", since: float) -> bool:
        """Return whether the last part of `upload` came before `since`; False where the upload is gone by now."""
        pages = self._client.get_paginator("list_parts").paginate(
            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
        )
        try:
            return all(part["LastModified"].timestamp() <= since for page in pages for part in page.get("Parts", []))
        except ClientError as error:
            if _code(error) == _NO_UPLOAD:
                return False
            raise

    def _get(self, path: str, key: str, offset: int, end: int | None, etag: str | None = None) -> Any:
        """Return S3's answer, None where `offset` is not before the object's end."""
        more: dict[str, Any] = {"IfMatch": etag} if etag else {}
        if offset or end is not None:
            more["Range"] = f"bytes={offset}-{'' if end is None else end - 1}"
        with _translated(path):
            try:
                return self._client.get_object(Bucket=self._bucket, Key=key, **more)
            except ClientError as error:
                if _code(error) in _RANGE:
                    return None
                raise

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{checked_path(path)}" if self._prefix else checked_path(path)


class _S3Writer(PartsWriter["CompletedPartTypeDef"]):
    """A blob on its way up. `target` names the object, `more` is what goes with the request that makes it."""

    # Any: the stubs have no word for arguments that several calls share.
    def __init__(
        self, client: "S3Client", path: str, target: dict[str, Any], *, part_size: int, more: dict[str, Any]
    ) -> None:
        super().__init__(path, part_size=part_size, growth=_GROWTH)
        self._client, self._object, self._more = client, target, more
        self._upload_id = ""

    def _put_whole(self, content: bytes) -> None:
        with _translated(self._path):
            self._client.put_object(**self._object, **self._more, Body=content)

    def _begin(self) -> None:
        with _translated(self._path):
            self._upload_id = self._client.create_multipart_upload(**self._object, **self._more)["UploadId"]

    def _put(self, number: int, content: bytes) -> "CompletedPartTypeDef":
        with _translated(self._path):
            answer = self._client.upload_part(**self._object, UploadId=self._upload_id, PartNumber=number, Body=content)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _complete(self, parts: list["CompletedPartTypeDef"]) -> None:
        with _translated(self._path):
            self._client.complete_multipart_upload(
                **self._object, UploadId=self._upload_id, MultipartUpload={"Parts": parts}
            )

    def _give_back(self) -> None:
        try:
            self._client.abort_multipart_upload(**self._object, UploadId=self._upload_id)
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and _code(error) == _NO_UPLOAD:
                return
            log.warning("the parts of %s stay in the bucket until they are swept: %s", self._path, error)


class _Given(CredentialProvider):
    """The one place to look for credentials."""

    METHOD = CANONICAL_NAME = "given"

    def __init__(self, credentials: Credentials) -> None:
        super().__init__()
        self._credentials = credentials

    def load(self) -> Credentials:
        return self._credentials


def _client(settings: S3Settings, credentials: Credentials | None) -> "S3Client":
    on_aws = settings.endpoint_url is None or ".amazonaws.com" in settings.endpoint_url
    path_style = not on_aws if settings.path_style is None else settings.path_style
    session = botocore.session.get_session()
    if credentials is not None:
        session.register_component("credential_provider", CredentialResolver([_Given(credentials)]))
    return boto3.session.Session(botocore_session=session).client(
        "s3",
        endpoint_url=settings.endpoint_url,
        # Elsewhere a region is only part of the signature, and this one is what the others expect.
        region_name=settings.region or (None if on_aws else "us-east-1"),
        aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret_key,
        aws_session_token=settings.session_token,
        config=Config(
            signature_version=settings.signature_version,
            # "auto" would sign URLs for the global host name, which only the oldest regions answer under.
            s3={"addressing_style": "path" if path_style or "." in settings.bucket else "virtual"},
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            connect_timeout=settings.timeout,
            read_timeout=settings.timeout,
            max_pool_connections=settings.max_connections,
            # The checksums that the library adds by itself are refused by what is not the newest S3.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if _code(error) in _NOT_FOUND:
            raise BlobNotFound(f"there is no blob {path} in storage") from error
        said = error.response.get("Error", {}).get("Message") or "no reason given"
        raise StorageUnavailable(f"S3 refuses {error.operation_name} of {path}: {_code(error)}, {said}") from error
    except (BotoCoreError, OSError) as error:
        raise StorageUnavailable(f"S3 does not answer for {path}: {error}") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
