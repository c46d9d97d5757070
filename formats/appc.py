"""App Container's words for what Docker's have: names, platforms, ports, mount points.

The law: what has no word is refused or left out, never guessed. App Container specification 0.8.11, types.md and
aci.md; the platforms are those of its schema/types/labels.go, the names of ports and volumes docker2aci's.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from util.oci import Platform
from util.problem import Inexpressible, Missing

_IDENTIFIER = re.compile(r"[a-z0-9]+(?:[-._~/][a-z0-9]+)*")
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")
_PORT_OF_A_HOST = re.compile(r":[0-9]+$")
_EXPOSED = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_LAST_PORT = 65535

_PLATFORMS = {
    ("linux", "amd64"): Platform("linux", "amd64"),
    ("linux", "i386"): Platform("linux", "386"),
    ("linux", "aarch64"): Platform("linux", "arm64"),
    ("linux", "armv6l"): Platform("linux", "arm", "v6"),
    ("linux", "armv7l"): Platform("linux", "arm", "v7"),
    ("linux", "ppc64"): Platform("linux", "ppc64"),
    ("linux", "ppc64le"): Platform("linux", "ppc64le"),
    ("linux", "s390x"): Platform("linux", "s390x"),
    ("freebsd", "amd64"): Platform("freebsd", "amd64"),
    ("freebsd", "i386"): Platform("freebsd", "386"),
    ("freebsd", "arm"): Platform("freebsd", "arm", "v7"),
    ("darwin", "x86_64"): Platform("darwin", "amd64"),
    ("darwin", "i386"): Platform("darwin", "386"),
}
_NAMES = {platform: names for names, platform in _PLATFORMS.items()} | {
    Platform("freebsd", "arm", variant): ("freebsd", "arm") for variant in ("v5", "v6")
}


class NoAppcName(Inexpressible):
    """An image whose name is no App Container identifier, so that discovery could never ask for it."""

    code = "APPC_NAME_INEXPRESSIBLE"


class NoAppcPlatform(Inexpressible):
    """A platform that App Container has no name for."""

    code = "APPC_PLATFORM_INEXPRESSIBLE"


class AppcPlatformNotFound(Missing):
    """A platform asked for by a name that App Container does not give to any platform known here."""

    code = "PLATFORM_UNKNOWN"


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """`count` ports from `port` on."""

    port: int
    protocol: str
    count: int = 1

    @property
    def name(self) -> str:
        last = f"-{self.port + self.count - 1}" if self.count > 1 else ""
        return f"{self.port}{last}-{self.protocol}"


def platform_of_appc(os: str, arch: str) -> Platform:
    """Return the platform that App Container calls `os` and `arch`. Raises AppcPlatformNotFound, listing its names."""
    platform = _PLATFORMS.get((os, arch))
    if platform is None:
        known = ", ".join("/".join(names) for names in _PLATFORMS)
        raise AppcPlatformNotFound(
            f"{os}/{arch} is no platform of App Container's that is known here; those are {known}"
        )
    return platform


def appc_of_platform(platform: Platform) -> tuple[str, str]:
    """Return what App Container calls the platform: os and arch. Raises NoAppcPlatform."""
    names = _NAMES.get(Platform(platform.os, platform.architecture, platform.variant))
    if names is None:
        raise NoAppcPlatform(f"App Container has no name for the platform {platform}")
    return names


def identifier(host: str, path: str) -> str:
    """Return the image's name: `host/path`, which is the URL that discovery asks for it. Raises NoAppcName.

    The port goes, for an identifier has none; the host is in lower case, as hosts are the same in either. A path that
    would have to be changed is refused: discovery wants the name back that it asked for.
    """
    name = f"{prefix_of(host)}/{path}"
    if not _IDENTIFIER.fullmatch(name):
        raise NoAppcName(
            f"{name!r} cannot be the name of an App Container Image: it takes lower-case letters and digits, "
            "with one of - . _ ~ / between them"
        )
    return name


def prefix_of(host: str) -> str:
    """Return what the names of all images of `host` begin with, which may carry a port."""
    return _PORT_OF_A_HOST.sub("", host).lower()


def port(exposed: str) -> Port | None:
    """Return the ports that an `ExposedPorts` entry means (`80`, `53/udp`, `8000-8010/tcp`), None for anything else."""
    match = _EXPOSED.fullmatch(exposed)
    if match is None:
        return None
    first = int(match[1])
    last = int(match[2] or first)
    return Port(first, (match[3] or "tcp").lower(), last - first + 1) if 1 <= first <= last <= _LAST_PORT else None


def mount_points(volumes: Iterable[str]) -> list[tuple[str, str]]:
    """Return a name and an absolute path for each volume, in the order of the paths. No name comes twice."""
    paths = sorted({posixpath.normpath(f"/{volume.lstrip('/')}") for volume in volumes if volume})
    named: dict[str, str] = {}
    tried: Counter[str] = Counter()
    for path in paths:
        short = name = _NOT_IN_A_NAME.sub("-", f"volume{path.lower()}").strip("-")
        while name in named:  # all numbers that were tried before are taken
            tried[short] += 1
            name = f"{short}-{tried[short]}"
        named[name] = path
    return list(named.items())
