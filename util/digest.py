"""Content digests: the name of a blob by its bytes.

The law: a digest is parsed once, at the door, and is a value from then on. Two digests are never mixed: `digest`
names a blob's bytes as they are stored, `diff_id` the uncompressed tar of a layer.
OCI image-spec, descriptor.md, "Digests".
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from util.problem import Damaged, Malformed

_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128, "blake3": 64}
ALGORITHMS = tuple(_HEX_LENGTH)
"""The algorithms that are supported, by the names that digests have them by."""

_DIGEST = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([0-9a-f]+)")


class InvalidDigest(Malformed):
    """A text that should be a digest and is none."""

    code = "DIGEST_INVALID"


class DigestMismatch(Damaged):
    """Bytes that do not have the digest, or the length, by which they were asked for."""

    code = "DIGEST_MISMATCH"


class Hasher(Protocol):
    """A hash that is being worked out."""

    def update(self, data: bytes, /) -> object:
        """Take in `data`, after all that came before."""

    def hexdigest(self) -> str:
        """Return the hash of all bytes so far, in lower-case hexadecimal."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm and a lower-case hexadecimal hash, e.g. `sha256:e3b0…`."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Return the digest that `text` writes. Raises InvalidDigest, also for an algorithm that is not supported."""
        match = _DIGEST.fullmatch(text)
        if match is None or _HEX_LENGTH.get(match[1]) != len(match[2]):
            supported = ", ".join(ALGORITHMS)
            raise InvalidDigest(f"{text!r} is not a digest (supported: {supported}, in lower-case hexadecimal)")
        return cls(match[1], match[2])

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> "Digest":
        """Return the digest of `content`. Raises InvalidDigest for an algorithm that is not supported."""
        fresh = hasher(algorithm)
        fresh.update(content)
        return cls(algorithm, fresh.hexdigest())

    def hasher(self) -> Hasher:
        """Return a fresh hash of this digest's algorithm."""
        return hasher(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def hasher(algorithm: str) -> Hasher:
    """Return a fresh hash. Raises InvalidDigest for an algorithm that is not supported."""
    if algorithm not in _HEX_LENGTH:
        raise InvalidDigest(f"{algorithm!r} is no supported algorithm of digests; there are: {', '.join(ALGORITHMS)}")
    if algorithm == "blake3":
        from blake3 import blake3  # what most never ask for is imported by who does

        return blake3()
    return hashlib.new(algorithm)


class Readable(Protocol):
    """A stream of bytes that is only read: what storage opens, a file, a response."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes, none at the end."""

    def close(self) -> None:
        """Release what the stream holds. Idempotent."""


def verified(
    chunks: Iterable[bytes], digest: Digest, *, size: int | None = None, what: str = "blob"
) -> Iterator[bytes]:
    """Pass `chunks` on, and raise DigestMismatch at their end unless they have `digest` and `size` (bytes).

    More than `size` bytes are refused as soon as they come. `what` is how the error calls the bytes.
    """
    hasher, length = digest.hasher(), 0
    for chunk in chunks:
        length += len(chunk)
        if size is not None and length > size:
            raise DigestMismatch(f"{what} {digest} is longer than its {size} bytes")
        hasher.update(chunk)
        yield chunk
    if size is not None and length != size:
        raise DigestMismatch(f"{what} {digest} should have {size} bytes and has {length}")
    if hasher.hexdigest() != digest.hex:
        raise DigestMismatch(f"{what} {digest} holds other bytes: they have {digest.algorithm}:{hasher.hexdigest()}")
