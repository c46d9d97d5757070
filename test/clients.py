"""The programs that we did not write and that the tests ask for their opinion. One that is missing is a failure."""

import shutil
import subprocess

import pytest

PACKAGES = {
    "bsdtar": "libarchive-tools",
    "gzip": "gzip",
    "tar": "tar",
    "umoci": "umoci",
    "zstd": "zstd",
}


def run(program: str, *arguments: str | bytes, stdin: bytes = b"", cwd: str | None = None) -> bytes:
    """Return what `program` writes, in the C locale. Fails the test where it is missing or exits with an error."""
    path = shutil.which(program)
    if path is None:
        pytest.fail(f"{program} is not installed (Debian package {PACKAGES[program]})")
    environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}
    done = subprocess.run([path, *arguments], input=stdin, cwd=cwd, env=environment, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{program} {arguments!r} exits with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout
