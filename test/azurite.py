"""Azurite, Microsoft's own emulator of Azure Storage, on loopback. From npm; one account, one container, in memory."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from azure.storage.blob import ContainerClient

from test.clients import program
from test.waiting import eventually

ACCOUNT = "registry"
KEY = "aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMmh1bnRlcjI="
CONTAINER = "blobs"


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Give the URL of an account that runs, and keeps its log in `folder`."""
    log = folder / "azurite.log"
    command = [program("azurite-blob"), "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]
    command += ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    with log.open("wb") as output:
        environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=environment)
    try:

        def listening() -> str | None:
            assert process.poll() is None, log.read_text()
            told = re.search(r"successfully listens on (http://127\.0\.0\.1:\d+)", log.read_text())
            return told and told[1]

        url = f"{eventually(listening)}/{ACCOUNT}"
        with azure_client(url) as client:
            client.create_container()
        yield url
    finally:
        process.terminate()
        process.wait()


def azure_client(url: str) -> ContainerClient:
    """Return a client of the container in the account at `url`; whoever takes it closes it."""
    return ContainerClient(url, CONTAINER, credential={"account_name": ACCOUNT, "account_key": KEY})
