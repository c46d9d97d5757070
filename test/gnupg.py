"""Keys for tests, made by the real gpg, and programs that stand in its place and fail."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endpoints.settings import SigningKey
from test.clients import program


@dataclass(frozen=True)
class Key:
    """A key of the real gpg, in files under `folder`."""

    folder: Path
    name: str
    fingerprint: str

    @property
    def private(self) -> Path:
        return self.folder / f"{self.name}-private.gpg"

    @property
    def public(self) -> Path:
        return self.folder / f"{self.name}-public.gpg"

    @property
    def setting(self) -> SigningKey:
        return SigningKey(self.name, str(self.private), str(self.public))

    @property
    def configuration(self) -> Mapping[str, Any]:
        return {
            "SIGNING_ENGINE": "gpg2",
            "GPG2_PRIVATE_KEY_NAME": self.name,
            "GPG2_PRIVATE_KEY_FILENAME": str(self.private),
            "GPG2_PUBLIC_KEY_FILENAME": str(self.public),
        }


def make_key(folder: Path, name: str, *, algorithm: str = "ed25519", passphrase: str = "") -> Key:
    """Return a new key for signing, called `name`, whose files are in `folder`."""
    with _home() as home:
        how = ["--pinentry-mode", "loopback", "--passphrase", passphrase]
        _gpg(home, *how, "--quick-gen-key", name, algorithm, "sign", "never")
        listed = _gpg(home, "--with-colons", "--list-secret-keys")
        fingerprint = next(line.split(b":")[9] for line in listed.splitlines() if line.startswith(b"fpr:"))
        key = Key(folder, name, fingerprint.decode())
        key.private.write_bytes(_gpg(home, *how, "--armor", "--export-secret-keys"))
        key.public.write_bytes(_gpg(home, "--armor", "--export"))
    return key


def verified(content: bytes, signature: bytes, public: bytes) -> str:
    """Return the fingerprint of the key that made `signature` of `content`, by the real gpg.

    Fails where it does not verify by `public`.
    """
    with _home() as home:
        _gpg(home, "--import", stdin=public)
        path = Path(home, "signature")
        path.write_bytes(signature)
        said = _gpg(home, "--trust-model", "always", "--status-fd", "1", "--verify", str(path), "-", stdin=content)
    return next(line.split()[2] for line in said.decode().splitlines() if " VALIDSIG " in line)


def stand_in(folder: Path, script: str) -> str:
    """Return a program that does what `script` says in place of gpg."""
    path = folder / "gpg-that-fails"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@contextmanager
def _home() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gpg", ignore_cleanup_errors=True) as home:
        os.chmod(home, 0o700)
        try:
            yield home
        finally:
            subprocess.run([program("gpgconf"), "--homedir", home, "--kill", "all"], check=False, capture_output=True)


def _gpg(home: str, *arguments: str, stdin: bytes = b"") -> bytes:
    command = [program("gpg"), "--homedir", home, "--batch", "--yes", "--no-tty", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
