"""The contract of every format: what is made of an image, as one file.

The law: a format with its options is a pure function of a SourceImage and a Rootfs. It reads no clock, no database and
no setting, and the same two give the same bytes. Whatever it cannot express it refuses before the first byte. What else
decides the bytes is told: `revision` for the format itself, which goes up with every change of them, or old ones are
served from storage for ever; `chosen` for its options; `program` for what it has done by somebody else's program.

There are two kinds. Of one the length is known before the first byte, and any part can be made alone: a
TarImageFormatter (tarimageformatter.py), or a format that lays out its file by itself (ext4.py). Of the other only
making it tells, because a program does that: a ProgramFormatter (programformatter.py).

A package adds a verb by naming a class in the entry point group `registry_verbs.formats`, under the class's `verb`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol, Self

from util.compression import Compression
from util.digest import Digest
from util.oci import ImageConfig, Platform
from util.packedlayer import PackedLayer
from util.problem import Problem
from util.rootfschanges import RootfsChanges
from util.written import Written


@dataclass(frozen=True, slots=True)
class SourceImage:
    """All that a format may know of the image.

    `host` may carry a port. `tag` is what the image was asked for by: a tag, or a manifest's digest (`sha256:…`).
    `image_id` is 64 hexadecimal digits, the same for the same derived image: it stands wherever a format wants an id.
    `layer` is what the root file system is as one packed layer, for a format that `packs`, as soon as that is known.
    """

    host: str
    url_scheme: str
    namespace: str
    repository: str
    tag: str
    manifest_digest: Digest
    platform: Platform
    config: ImageConfig
    layer_count: int
    image_id: str
    layer: PackedLayer | None = None

    @property
    def path(self) -> str:
        """Namespace and repository."""
        return f"{self.namespace}/{self.repository}"

    @property
    def reference(self) -> str:
        """The image's full name, as it is pulled by: `host/namespace/repository:tag`, or `…@sha256:…`."""
        return f"{self.host}/{self.path}{'@' if ':' in self.tag else ':'}{self.tag}"


class Rootfs(Protocol):
    """The root file system of the image: all its layers merged into one tar. Its names carry the `path_prefix`."""

    @property
    def size(self) -> int:
        """How many bytes the generator will yield: a whole tar, its end of archive included."""

    @property
    def diff_id(self) -> Digest:
        """The digest of what was yielded. Raises NotComputed before the generator has ended."""

    def get_generator(self) -> Iterator[bytes]:
        """Yield the tar. Closing the generator closes every layer."""

    def get_range(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes of the tar from `offset`. Layers without a byte in it are not opened."""

    def entries(self) -> Iterator[Written]:
        """Yield what the tar holds, in its order, and where each payload lies in it. Reads no layer."""

    def kept_file(self, path: bytes) -> bytes | None:
        """Return the content of `etc/passwd` or `etc/group`, None where the image has none. No prefix in `path`."""

    def folder(self, path: bytes) -> tuple[int, int, int] | None:
        """Return mode, owner and group of the directory that `path` leads to, None where it leads to none.

        `path` is relative to the root, without prefix; symlinks are followed inside the root.
        """


class InvalidOption(Problem):
    """An option that a format does not have, or a value of one that is not allowed; the text names what is."""

    code = "OPTION_INVALID"


class Formatter(ABC):
    """A format. Instances hold nothing but their options; one serves many requests at once."""

    verb: ClassVar[str]
    """What it is asked for by, in the URL and on the command line: lower-case letters, digits, dashes."""
    revision: ClassVar[int]
    """Goes up with any change of output bytes; part of a derived image's key."""
    media_type: ClassVar[str]
    """Of the uncompressed output."""
    file_extension: ClassVar[str]
    """With its dot. To `.tar` a compression's own is added."""
    summary: ClassVar[str]
    """One line for people."""
    usage: ClassVar[str]
    """One line to copy, with `{url}` where the address belongs."""
    default_compression: ClassVar[Compression]
    packs: ClassVar[bool] = False
    """Whether the compression that is asked for is that of the layer in it, and the file itself is never wrapped.

    `size` is None then as long as `image.layer` is, and `stream` is asked for only afterwards.
    """
    path_prefix: ClassVar[bytes] = b""
    """Stands before every name of the root file system: `rootfs/`, or nothing."""
    options: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """What whoever asks may choose: names as in a URL's query, none of ours, and what each means in one line."""

    @property
    def unavailable(self) -> str | None:
        """Why it cannot be made on this machine, None where it can."""
        return None

    @property
    def program(self) -> str | None:
        """What else than `revision` decides the bytes: a program and its version; part of a derived image's key."""
        return None

    @property
    def chosen(self) -> Mapping[str, str]:
        """The options that are not as they are by default, each value in one form; part of a derived image's key."""
        return {}

    def with_options(self, values: Mapping[str, str]) -> Self:
        """Return the format as `values` want it, itself for none.

        Raises InvalidOption, naming option, value and what is allowed. Who has options overrides this and calls it.
        """
        for name, value in values.items():
            if name not in self.options:
                allowed = ", ".join(self.options) or "none"
                raise InvalidOption(f"{self.verb} has no option {name!r}, which is {value!r}; allowed: {allowed}")
        return self

    def check(self, image: SourceImage, rootfs: Rootfs) -> None:  # noqa: B027 - most formats have words for all images
        """Raise Inexpressible, naming the field, for an image that the format has no words for. Reads no layer."""

    def changes(self, image: SourceImage) -> RootfsChanges | None:
        """Return what is changed in the root file system, which `check` and all others get with it. Raises nothing."""
        return None

    @abstractmethod
    def size(self, image: SourceImage, rootfs: Rootfs) -> int | None:
        """Return the exact length of the stream in bytes, None where only making it tells.

        Reads no layer. Raises what `check` raises.
        """

    @abstractmethod
    def stream(self, image: SourceImage, rootfs: Rootfs, *, folder: str) -> Iterator[bytes]:
        """Return the stream. Closing it closes the layers, and leaves nothing.

        What `check` raises is raised here; no layer is opened before the first byte is asked for. `folder` is for files
        as large as the stream, and need not be there yet.
        """

    def needs_all(self, image: SourceImage, rootfs: Rootfs, offset: int, length: int) -> bool:
        """Tell whether a part costs as much as the whole."""
        return True

    def range_generator(self, image: SourceImage, rootfs: Rootfs, offset: int, length: int) -> Iterator[bytes]:
        """Return `length` bytes of the stream from `offset`, where `size` is known. Closing it closes the layers.

        Of the layers that is read which it takes, and all where `needs_all`. Raises what `check` raises, and ValueError
        where the stream has no such bytes, before a layer is opened.
        """
        raise ValueError(f"{self.verb} is made as a whole")
