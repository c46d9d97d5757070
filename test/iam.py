"""An S3 on loopback that asks for rights: moto in a process of its own, with users and policies as IAM has them."""

import json
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3

from test.databases import free_port
from test.waiting import eventually


@dataclass(frozen=True)
class GuardedS3:
    """An S3 whose requests are let pass by everybody, until `guard`."""

    url: str

    def user(self, policy: str) -> tuple[str, str]:
        """Return the access key and the secret key of a new user who may do what `policy` says, and no more."""
        iam = boto3.client(
            "iam", endpoint_url=self.url, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
        )
        name = uuid.uuid4().hex
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Have every request asked for its rights meanwhile."""
        self._passing("0")
        try:
            yield
        finally:
            self._passing("inf")

    def _passing(self, count: str) -> None:
        headers = {"Content-Type": "text/plain"}  # else it is taken for a form
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", count.encode(), headers, method="POST")
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["status"] == "ok"


@contextmanager
def guarded_s3(folder: Path) -> Iterator[GuardedS3]:
    """Give an S3 that runs; its log is in `folder`."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = folder / "s3.log"
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:

            def answers() -> bool:
                assert process.poll() is None, log.read_text()
                return b"Running on" in log.read_bytes()

            eventually(answers)
            yield GuardedS3(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
