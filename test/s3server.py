"""An S3 on loopback, and clients of it. All servers of one process are one: they hold the same buckets."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import boto3
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@contextmanager
def s3_server() -> Iterator[str]:
    """Give the URL of an S3 that runs."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def s3_client(url: str) -> "S3Client":
    """Return a client of the S3 at `url`, which takes any keys."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )


class Bucket:
    """The bucket by a client of its own. `leftovers` are multipart uploads that were neither completed nor aborted."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.name = name
        self.client = s3_client(endpoint)
        self.client.create_bucket(Bucket=name)

    def put(self, path: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"datastorage/registry/{path}", Body=content)

    def get(self, path: str) -> bytes | None:
        try:
            answer = self.client.get_object(Bucket=self.name, Key=f"datastorage/registry/{path}")
        except self.client.exceptions.NoSuchKey:
            return None
        with closing(answer["Body"]) as body:
            content: bytes = body.read()
        return content

    def leftovers(self) -> list[str]:
        return [upload["Key"] for upload in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]

    def close(self) -> None:
        for item in self.client.list_objects_v2(Bucket=self.name).get("Contents", []):
            self.client.delete_object(Bucket=self.name, Key=item["Key"])
        self.client.delete_bucket(Bucket=self.name)
        self.client.close()
