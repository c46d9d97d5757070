"""The page for operators on files: its S3 policy, its folders, its environment and its unit do what it says of them."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from endpoints.commands import cli
from endpoints.settings import Settings
from test.clients import program
from test.iam import GuardedS3, guarded_s3
from test.page import PAGE, beside, blocks, commands, replaced
from test.place import Place
from test.quayside import SECRET_KEY, Quay, quay, stored
from test.server import curl, served
from test.test_quay import Side

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "quay"
PREFIX = "registry"
QUAYS_ALONE = {"EXTERNAL_TLS_TERMINATION", "FEATURE_ACI_CONVERSION"}
"""The keys that the page names and that mean nothing to us."""


def s3(url: str, key: str, secret: str) -> "S3Client":
    return boto3.client(
        "s3", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1"
    )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedS3]:
    """Give an S3 that has Quay's storage under the names of the page."""
    with guarded_s3(tmp_path_factory.mktemp("s3")) as there:
        client = s3(there.url, "anybody", "anything")
        client.create_bucket(Bucket=BUCKET)
        for path, blob in stored().items():
            client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{path}", Body=blob)
        yield there


@pytest.fixture(scope="module")
def keys(guarded: GuardedS3) -> tuple[str, str]:
    """Give the keys of a user who may do what the page's policy says."""
    (policy,) = blocks("json")
    return guarded.user(policy)


# --- S3 ---------------------------------------------------------------------------------------------------------------


def environment_of(block: str) -> dict[str, str]:
    """Return what an EnvironmentFile of systemd says: names and values, quoted as in a shell."""
    return dict(word.partition("=")[::2] for word in shlex.split(block, comments=True))


@contextmanager
def installed(folder: Path, guarded: GuardedS3, keys: tuple[str, str]) -> Iterator[tuple[Quay, dict[str, str]]]:
    """Give a Quay, and the environment that who follows the page has, beside a `config.yaml` as Quay has it."""
    with quay("postgresql", folder) as there, beside(there) as reached:
        configuration = folder / "config.yaml"
        configuration.write_text(
            yaml.safe_dump(
                {
                    "AUTHENTICATION_TYPE": "Database",
                    "BUILDLOGS_REDIS": {"host": "redis", "port": 6379},
                    "DATABASE_SECRET_KEY": there.facts["database_secret_key"],
                    "DB_CONNECTION_ARGS": {"autorollback": True, "threadlocals": True},
                    "DB_URI": "postgresql://quay:quay@nowhere.invalid/quay",
                    "DISTRIBUTED_STORAGE_CONFIG": {"default": ["LocalStorage", {"storage_path": "/nowhere"}]},
                    "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS": [],
                    "DISTRIBUTED_STORAGE_PREFERENCE": ["default"],
                    "FEATURE_MAILING": False,
                    "PREFERRED_URL_SCHEME": "https",
                    "SECRET_KEY": SECRET_KEY,
                    "SERVER_HOSTNAME": "quay.example.com",
                    "SETUP_COMPLETE": True,
                    "USER_EVENTS_REDIS": {"host": "redis", "port": 6379},
                }
            )
        )
        (block,) = (each for each in blocks("sh") if "VERBS_CONFIG" in each)
        block = replaced(
            block,
            {
                "/etc/registry-verbs/config.yaml": str(configuration),
                "postgresql://quay_reader:change-me@db.example.com/quay": reached.uri,
                "postgresql://verbs:change-me-too@db.example.com/verbs": reached.more["VERBS_DB_URI"],
                "/var/lib/registry-verbs": str(folder / "var"),
                '"s3_region": "eu-central-1"': f'"endpoint_url": "{guarded.url}"',
                '"KEY"': f'"{keys[0]}"',
                '"SECRET"': f'"{keys[1]}"',
            },
        )
        yield reached, environment_of(block)


def test_with_the_page_s_environment_and_policy_everything_comes(
    guarded: GuardedS3, keys: tuple[str, str], tmp_path: Path
) -> None:
    before = {path for path in listed(guarded) if not path.startswith("verbs/")}
    with ExitStack() as stack:
        there, environment = stack.enter_context(installed(tmp_path, guarded, keys))
        stack.enter_context(guarded.guard())
        running = stack.enter_context(served(_Environment(tmp_path, environment)))
        side = Side(there, running.url)
        for verb in ("rootfs", "squash", "oci", "ext4"):  # the last goes up in parts
            first = side.image("acme/app:v2", "alice", verb)
            again = side.image("acme/app:v2", "alice", verb)
            assert first.status == again.status, verb
            assert first.status == 200, (verb, first.body)
            assert first.body == again.body
        assert side.image("hub/library/alpine:latest", "alice").error["code"] == "BLOB_NOT_FOUND"
        assert side.ask("/c1/rootfs/acme/open/latest").status == 200
        # Where it leads is not asked: moto cannot tell the rights of a URL that is signed.
        redirected = curl("-w", "%{http_code} %{redirect_url}", f"{running.url}/c1/rootfs/acme/open/latest").stdout
        status, url = redirected.decode().split()
        assert status == "302"
        assert url.startswith(f"{guarded.url}/{BUCKET}/{PREFIX}/verbs/derived/")
        assert keys[0] in url
        command = [sys.executable, "-c", "import app; app.main()", "gc"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    after = listed(guarded)
    assert {path for path in after if not path.startswith("verbs/")} == before
    assert [path for path in after if path.startswith("verbs/derived/")]


class _Environment(Place):
    """A place whose configuration is `more` and nothing else."""

    @property
    def configuration(self) -> dict[str, Any]:
        return dict(self.more)


def listed(guarded: GuardedS3) -> set[str]:
    pages = s3(guarded.url, "anybody", "anything").get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return {item["Key"].removeprefix(f"{PREFIX}/") for page in pages for item in page.get("Contents", [])}


OWN = f"{PREFIX}/verbs/x"
QUAYS = f"{PREFIX}/{next(iter(stored()))}"


def _parts(client: "S3Client") -> None:
    started = client.create_multipart_upload(Bucket=BUCKET, Key=OWN)["UploadId"]
    client.upload_part(Bucket=BUCKET, Key=OWN, UploadId=started, PartNumber=1, Body=b"x")
    client.list_parts(Bucket=BUCKET, Key=OWN, UploadId=started)
    client.abort_multipart_upload(Bucket=BUCKET, Key=OWN, UploadId=started)


@pytest.mark.parametrize(
    "does",
    [
        lambda client: client.put_object(Bucket=BUCKET, Key=OWN, Body=b"x"),
        lambda client: client.delete_object(Bucket=BUCKET, Key=OWN),
        lambda client: client.get_object(Bucket=BUCKET, Key=QUAYS),
        lambda client: client.head_object(Bucket=BUCKET, Key=QUAYS),
        lambda client: client.list_objects_v2(Bucket=BUCKET, Prefix=f"{PREFIX}/verbs/"),
        lambda client: client.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{PREFIX}/verbs/"),
        _parts,
    ],
    ids=["put", "delete", "get", "head", "list", "uploads", "parts"],
)
def test_the_policy_allows_what_is_needed(
    guarded: GuardedS3, keys: tuple[str, str], does: Callable[["S3Client"], object]
) -> None:
    with guarded.guard():
        does(s3(guarded.url, *keys))


@pytest.mark.parametrize(
    "does",
    [
        lambda client: client.put_object(Bucket=BUCKET, Key=QUAYS, Body=b"x"),
        lambda client: client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/verbsx", Body=b"x"),
        lambda client: client.put_object(Bucket=BUCKET, Key="elsewhere", Body=b"x"),
        lambda client: client.delete_object(Bucket=BUCKET, Key=QUAYS),
        lambda client: client.create_multipart_upload(Bucket=BUCKET, Key=QUAYS),
        lambda client: client.get_object(Bucket=BUCKET, Key="elsewhere"),
        lambda client: client.delete_bucket(Bucket=BUCKET),
    ],
    ids=["put", "put beside", "put elsewhere", "delete", "parts", "get elsewhere", "bucket"],
)
def test_the_policy_allows_nothing_of_quay_s(
    guarded: GuardedS3, keys: tuple[str, str], does: Callable[["S3Client"], object]
) -> None:
    with guarded.guard(), pytest.raises(ClientError, match="AccessDenied"):
        does(s3(guarded.url, *keys))


# --- A folder ---------------------------------------------------------------------------------------------------------

UNPRIVILEGED = ("--bounding-set=-dac_override,-dac_read_search",)
"""What setpriv makes of root: somebody whom the modes of files bind."""


@pytest.mark.parametrize("prepared", [True, False])
def test_in_a_folder_two_folders_are_enough(tmp_path: Path, prepared: bool) -> None:
    with quay("sqlite", tmp_path) as there:
        root = tmp_path / "storage"
        (line,) = (line for line in commands() if line.startswith("install -d"))
        if prepared:
            words = {"-o registry-verbs": "-o root", "/datastorage/registry": str(root)}
            subprocess.run(["sh", "-ec", replaced(line, words)], check=True)
        blobs = there.blobs()
        for folder in (root, *(each for each in root.rglob("*") if each.is_dir())):
            if folder.name not in ("verbs", ".parts"):
                folder.chmod(0o555)
        command = [sys.executable, "-c", "import app; app.main()", "prime", "acme/app:v1", "--verb", "rootfs"]
        environment = {"PATH": os.environ["PATH"], **there.place.configuration}
        done = subprocess.run(
            [program("setpriv"), *UNPRIVILEGED, *command], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) is prepared, done.stderr
        assert ("Permission denied" in done.stderr) is not prepared
        assert bool(list(root.glob("verbs/derived/*/*"))) is prepared
        assert there.blobs() == blobs


# --- The rest of the page ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """The page's unit of systemd."""

    text: str

    @property
    def command(self) -> list[str]:
        (line,) = re.findall(r"^ExecStart=(.*)$", self.text, re.MULTILINE)
        return shlex.split(line)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    (text,) = blocks("ini")
    command = Unit(text).command
    file = tmp_path / "registry-verbs.service"
    file.write_text(replaced(text, {command[0]: "/bin/true"}))  # it has to be there
    done = subprocess.run(
        [program("systemd-analyze"), "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    context = cli.make_context("registry-verbs", command[1:], obj=dict, resilient_parsing=True)
    serve = cli.commands[command[1]].make_context("serve", command[2:], parent=context)
    assert (serve.params["host"], serve.params["port"]) == ("192.0.2.10", 8080)


def test_the_page_names_commands_and_keys_that_there_are() -> None:
    page = PAGE.read_text()
    named = set(re.findall(r"`registry-verbs ([a-z-]+)", page))
    assert {"check", "worker"} <= named <= set(cli.commands)
    keys = set(re.findall(r"`([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)[`:=]", page))
    keys |= set(re.findall(r"\b(VERBS_[A-Z_]+)\b", page))
    assert keys - {"VERBS_CONFIG", *Settings.KEYS} <= QUAYS_ALONE
    assert {"DB_URI", "VERBS_DB_URI", "VERBS_PROXIES", "SECRET_KEY", "DATABASE_SECRET_KEY"} <= keys
