"""OCI runtime bundles: `config.json`, and the root file system under `rootfs`.

The law: what the image says is converted as OCI image-spec, conversion.md, has it, and nothing of it is changed; what
it does not say is what `runc spec` writes, but without a terminal, and with a root file system that can be written to,
as images expect. The configuration comes first, and is written for people, who will change it.

A volume is a tmpfs with what the image has there (`tmpcopyup`), so that nothing of it goes to the root file system.
"""

import json
import posixpath
from collections.abc import Mapping
from typing import Any, ClassVar

from formats.tarimageformatter import Rootfs, SourceImage, TarImageFormatter
from formats.users import user_of
from util.compression import Compression
from util.digest import Digest
from util.problem import Inexpressible

SPECIFICATION = "1.0.2"
"""Of the runtime; every later 1.x reads it."""

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_OPEN_FILES = 1024
_KERNEL = ["nosuid", "noexec", "nodev"]
_MOUNTS: Mapping[str, Mapping[str, Any]] = {
    "/proc": {"type": "proc", "source": "proc"},
    "/dev": {"type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
    "/dev/pts": {
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    "/dev/shm": {"type": "tmpfs", "source": "shm", "options": [*_KERNEL, "mode=1777", "size=65536k"]},  # noqa: S108 in the container
    "/dev/mqueue": {"type": "mqueue", "source": "mqueue", "options": _KERNEL},
    "/sys": {"type": "sysfs", "source": "sysfs", "options": [*_KERNEL, "ro"]},
    "/sys/fs/cgroup": {"type": "cgroup", "source": "cgroup", "options": [*_KERNEL, "relatime", "ro"]},
}
_LINUX: Mapping[str, Any] = {
    "resources": {"devices": [{"allow": False, "access": "rwm"}]},
    "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
    "maskedPaths": [
        "/proc/acpi",
        "/proc/asound",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/sys/firmware",
        "/proc/scsi",
    ],
    "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
}


class NoRuntimeConfig(Inexpressible):
    """An image of which no runtime configuration can be made; the text names the field."""

    code = "RUNTIME_CONFIG_INEXPRESSIBLE"


class RuntimeBundle(TarImageFormatter):
    """`bundle`: what runc, crun and every other OCI runtime runs."""

    verb: ClassVar[str] = "bundle"
    revision: ClassVar[int] = 1
    media_type: ClassVar[str] = "application/x-tar"
    file_extension: ClassVar[str] = ".tar"
    summary: ClassVar[str] = "an OCI runtime bundle, for runc and crun"
    usage: ClassVar[str] = (
        "mkdir bundle && curl -fL {url} | tar -xp --numeric-owner -C bundle && runc run --bundle bundle NAME"
    )
    default_compression: ClassVar[Compression] = Compression.NONE
    path_prefix: ClassVar[bytes] = b"rootfs/"

    def check(self, image: SourceImage, rootfs: Rootfs) -> None:
        """Raise NoRuntimeConfig or UserNotInImage."""
        _config(image, rootfs)

    def head(self, image: SourceImage, rootfs: Rootfs) -> bytes:
        """Return the configuration's entry."""
        config = json.dumps(_config(image, rootfs), indent=2, ensure_ascii=False)
        return self.tar_file("config.json", config.encode() + b"\n")

    def tail(self, image: SourceImage, rootfs: Rootfs, diff_id: Digest) -> bytes:
        """Return nothing: the archive's end is the root file system's."""
        return b""


def _config(image: SourceImage, rootfs: Rootfs) -> Mapping[str, Any]:
    if image.platform.os != "linux":
        raise NoRuntimeConfig(f"the image's os is {image.platform.os}; bundles are made of images for linux")
    mounts = {**_MOUNTS, **_volumes(image, rootfs)}
    return {
        "ociVersion": SPECIFICATION,
        "process": _process(image, rootfs),
        "root": {"path": "rootfs", "readonly": False},
        "mounts": [{"destination": path, **mount} for path, mount in mounts.items()],
        "annotations": _annotations(image),
        "linux": _LINUX,
    }


def _process(image: SourceImage, rootfs: Rootfs) -> Mapping[str, Any]:
    config = image.config
    arguments = [*config.entrypoint, *config.cmd]
    if not arguments:
        raise NoRuntimeConfig("config.Entrypoint and config.Cmd are empty, and a bundle has to say what it runs")
    if not (config.working_dir or "/").startswith("/"):
        raise NoRuntimeConfig(f"config.WorkingDir is {config.working_dir!r}, and a bundle's has to be absolute")
    user = user_of(config.user, rootfs)
    further = {"additionalGids": list(user.groups)} if user.groups else {}
    own_path = any(variable.startswith("PATH=") for variable in config.env)
    return {
        "terminal": False,
        "user": {"uid": user.uid, "gid": user.gid, **further},
        "args": arguments,
        "env": [*config.env] if own_path else [_PATH, *config.env],
        "cwd": config.working_dir or "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted", "ambient"), _CAPABILITIES),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": _OPEN_FILES, "soft": _OPEN_FILES}],
        "noNewPrivileges": True,
    }


def _volumes(image: SourceImage, rootfs: Rootfs) -> Mapping[str, Mapping[str, Any]]:
    """Return a mount for each volume, what lies below another one after it."""
    paths = {volume: posixpath.normpath(f"/{volume.lstrip('/')}") for volume in image.config.volumes}
    for volume, path in paths.items():
        if path == "/":
            raise NoRuntimeConfig(f"config.Volumes has {volume!r}, and nothing can be mounted over the whole image")
    return {path: _volume(path, rootfs) for path in sorted(set(paths.values())) if path not in _MOUNTS}


def _volume(path: str, rootfs: Rootfs) -> Mapping[str, Any]:
    """Return a mount that is, to whoever the program runs as, what the image has there."""
    mode, uid, gid = rootfs.folder(path.encode()[1:]) or (0o755, 0, 0)
    options = ["rw", "nosuid", "nodev", "tmpcopyup", f"mode={mode:o}", f"uid={uid}", f"gid={gid}"]
    return {"type": "tmpfs", "source": "tmpfs", "options": options}


def _annotations(image: SourceImage) -> Mapping[str, str]:
    """Return what the image says of itself, under the names that conversion.md gives; its labels win."""
    config = image.config
    said = config.document
    features = said.get("os.features")
    implicit = {
        "os": said.get("os") or image.platform.os,
        "architecture": said.get("architecture") or image.platform.architecture,
        "variant": said.get("variant"),
        "os.version": said.get("os.version"),
        "os.features": ",".join(map(str, features)) if isinstance(features, list) else None,
        "author": config.author,
        "created": config.created,
        "stopSignal": config.stop_signal,
        "exposedPorts": ",".join(config.exposed_ports),
    }
    named = {f"org.opencontainers.image.{name}": text for name, text in implicit.items() if text}
    return {**named, **config.labels}
