"""Platforms: which operating system and processor an image is for, and which of several images suits best.

The law: a platform is normalised when it is made, so that one platform is one value: `x86_64` is `amd64`, `aarch64` and
`arm64/v8` are `arm64`, `arm` is `arm/v7`. OCI image-spec, image-index.md, "platform"; the names and defaults are
containerd's. An image of a lower variant of the same architecture suits, the nearest first; one of another
architecture never does, though a processor may run both: who asks for `amd64` does not want a `386` userland.

Each part is a word of at most 64 letters, digits and `._+-`, as all that Go, containerd and Windows have are: it
becomes part of file names, lines and columns.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from util.problem import Malformed, Missing

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "armhf": "arm",
    "armel": "arm",
}
_WORD = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"
_SPELLING = re.compile(rf"({_WORD})(?:\(({_WORD})\))?/({_WORD})(?:/({_WORD}))?")
_IS_WORD = re.compile(_WORD)
_VERSION = re.compile(r"v?([0-9]{1,3})(?:\.([0-9]{1,3}))?")
# What runs on what: v9.0 of arm64 has all of v8.5; see "platform variants" in containerd.
_V9_IS_V8 = 5


def is_word(text: str) -> bool:
    """Tell whether an operating system, an architecture, a variant or a version may be called `text`."""
    return _IS_WORD.fullmatch(text) is not None


class InvalidPlatform(Malformed):
    """A text that should be a platform and is none."""

    code = "PLATFORM_INVALID"


class PlatformNotFound(Missing):
    """An image exists, but not for the platform asked for. `existing` holds those there are."""

    code = "PLATFORM_UNKNOWN"

    def __init__(self, wanted: "Platform", existing: Iterable["Platform"]) -> None:
        self.existing = tuple(dict.fromkeys(existing))
        there_are = ", ".join(map(str, self.existing)) or "images that do not say their platform"
        super().__init__(f"there is no image for {wanted}; there are: {there_are}")


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on, in the names that Go uses. `os_version` is Windows' own."""

    os: str
    architecture: str
    variant: str | None = None
    os_version: str | None = None

    def __post_init__(self) -> None:
        os, architecture = self.os.lower(), self.architecture.lower()
        variant = _normal_variant(architecture, (self.variant or "").lower())
        object.__setattr__(self, "os", "darwin" if os == "macos" else os)
        object.__setattr__(self, "architecture", _ARCHITECTURES.get(architecture, architecture))
        object.__setattr__(self, "variant", variant or None)
        object.__setattr__(self, "os_version", self.os_version or None)

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """Return the platform that `text` writes: `os/architecture[/variant]`, or `windows(10.0.20348)/amd64`.

        Raises InvalidPlatform.
        """
        match = _SPELLING.fullmatch(text)
        if match is None:
            raise InvalidPlatform(f"{text!r} is not a platform (write it as linux/amd64 or linux/arm/v7)")
        os, os_version, architecture, variant = match.groups()
        return cls(os, architecture, variant, os_version)

    def __str__(self) -> str:
        os = f"{self.os}({self.os_version})" if self.os_version else self.os
        return "/".join(filter(None, (os, self.architecture, self.variant)))

    def matches(self, wanted: "Platform") -> bool:
        """Tell whether an image of this platform suits who wants `wanted`: the same, or a lower variant of it."""
        return self.distance(wanted) is not None

    def distance(self, wanted: "Platform") -> int | None:
        """Return how far this platform is below `wanted`: 0 for the same, None where an image of it does not suit."""
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return None
        if wanted.os_version and not f"{self.os_version}.".startswith(f"{wanted.os_version}."):
            return None
        if self.variant == wanted.variant:
            return 0
        below, above = _level(self), _level(wanted)
        return above - below if below is not None and above is not None and below <= above else None


def _normal_variant(architecture: str, variant: str) -> str:
    match architecture:
        case "armhf":
            return "v7"
        case "armel":
            return "v6"
        case "i386":
            return ""
        case "arm":
            return f"v{variant}" if variant in {"5", "6", "7", "8"} else variant or "v7"
        case "arm64" | "aarch64":
            return "" if variant in {"8", "v8", "8.0", "v8.0"} else variant
        case "amd64" | "x86_64" | "x86-64":
            return "" if variant == "v1" else variant
        case _:
            return variant


def _level(platform: Platform) -> int | None:
    """Return where a variant stands among those of its architecture, None where they have no order that is known."""
    match = _VERSION.fullmatch(platform.variant or {"amd64": "v1", "arm64": "v8"}.get(platform.architecture, ""))
    if match is None or platform.architecture not in {"amd64", "arm", "arm64"}:
        return None
    major, minor = int(match[1]), int(match[2] or 0)
    if platform.architecture == "arm64" and major == 9:
        major, minor = 8, minor + _V9_IS_V8
    return major * 1000 + minor
