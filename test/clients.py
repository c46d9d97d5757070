"""The programs that we did not write and that the tests ask for their opinion. One that is missing is a failure."""

import os
import shutil
import subprocess

import pytest

PACKAGES = {
    "actool": "appc-spec",
    "aria2c": "aria2",
    "azurite-blob": "azurite, of npm",
    "bsdtar": "libarchive-tools",
    "busybox": "busybox-static",
    "containerd": "containerd",
    "ctr": "containerd",
    "curl": "curl",
    "debugfs": "e2fsprogs",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "dumpe2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "gpg": "gnupg",
    "gpgconf": "gnupg",
    "gzip": "gzip",
    "ldapmodify": "ldap-utils",
    "ldapwhoami": "ldap-utils",
    "lxc": "lxd-client",
    "lxd": "lxd",
    "memcached": "memcached",
    "mksquashfs": "squashfs-tools",
    "nginx": "nginx-light",
    "openssl": "openssl",
    "podman": "podman",
    "rdsquashfs": "squashfs-tools-ng",
    "resize2fs": "e2fsprogs",
    "runc": "runc",
    "setpriv": "util-linux",
    "skopeo": "skopeo",
    "slapadd": "slapd",
    "slapd": "slapd",
    "systemd-analyze": "systemd",
    "swift-account-server": "swift-account",
    "swift-container-server": "swift-container",
    "swift-object-server": "swift-object",
    "swift-proxy-server": "swift-proxy",
    "swift-ring-builder": "swift",
    "systemd-import": "systemd-container",
    "systemd-nspawn": "systemd-container",
    "systemd-pull": "systemd-container",
    "tar": "tar",
    "tar2sqfs": "squashfs-tools-ng",
    "umoci": "umoci",
    "unsquashfs": "squashfs-tools",
    "unshare": "util-linux",
    "wget": "wget",
    "zstd": "zstd",
}


def program(name: str) -> str:
    """Return where `name` is. Fails the test where it is missing."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/lib/systemd")
    if path is None:
        pytest.fail(f"{name} is not installed (Debian package {PACKAGES[name]})")
    return path


def run(name: str, *arguments: str | bytes, stdin: bytes = b"", complaint: bytes | None = None) -> bytes:
    """Return what the program `name` writes, in the C.UTF-8 locale.

    Fails the test where the program is missing or exits with an error; exit status 1 will do when all that it complains
    of is `complaint`.
    """
    path = program(name)
    environment = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}
    done = subprocess.run([path, *arguments], input=stdin, env=environment, capture_output=True, check=False)
    complaints = done.stderr.splitlines()[:-1]  # the last line says that there were some
    tolerated = complaint is not None and done.returncode == 1 and all(complaint in line for line in complaints)
    if done.returncode != 0 and not tolerated:
        pytest.fail(f"{name} {arguments!r} exits with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout
