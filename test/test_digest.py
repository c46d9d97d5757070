"""Digests: every algorithm that is supported, and texts that are none."""

import hashlib

import pytest

from util.digest import ALGORITHMS, Digest, DigestMismatch, InvalidDigest, hasher, verified

KNOWN = {
    "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "sha384": hashlib.sha384(b"abc").hexdigest(),
    "sha512": hashlib.sha512(b"abc").hexdigest(),
    "blake3": "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
}


def test_every_algorithm_has_a_known_answer() -> None:
    assert set(KNOWN) == set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_is_read_worked_out_and_written(algorithm: str) -> None:
    digest = Digest.parse(f"{algorithm}:{KNOWN[algorithm]}")
    assert digest == Digest.of(b"abc", algorithm)
    assert str(digest) == f"{algorithm}:{KNOWN[algorithm]}"
    piecewise = digest.hasher()
    for piece in (b"a", b"", b"bc"):
        piecewise.update(piece)
    assert piecewise.hexdigest() == digest.hex
    assert b"".join(verified([b"a", b"bc"], digest, size=3)) == b"abc"
    with pytest.raises(DigestMismatch):
        list(verified([b"abd"], digest))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "sha256:",
        "sha256:abc",
        "md5:900150983cd24fb0d6963f7d28e17f72",
        f"blake3:{'0' * 63}",
        f"sha256:{'A' * 64}",
        f"sha256:{'0' * 64}\n",
        f"sha512:{'0' * 64}",
        f"SHA256:{'0' * 64}",
    ],
)
def test_what_is_no_digest_is_refused_with_what_is_one(text: str) -> None:
    with pytest.raises(InvalidDigest, match="supported: sha256, sha384, sha512, blake3"):
        Digest.parse(text)


@pytest.mark.parametrize("algorithm", ["", "md5", "shake_128", "SHA256"])
def test_an_algorithm_that_is_not_supported_is_refused(algorithm: str) -> None:
    with pytest.raises(InvalidDigest, match="there are: sha256"):
        hasher(algorithm)
    with pytest.raises(InvalidDigest, match="there are: sha256"):
        Digest.of(b"", algorithm)
