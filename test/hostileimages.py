"""Images that mean harm: layers and documents of a few hundred bytes to some megabytes, and what has to come of each.

The tars are made in pieces, as they are compressed, because many are far larger than what is pushed. As in
test/layers.py, nothing here comes from the project. What they attack: memory (names, attributes, links, maps,
whiteouts, duplicates), time (symlinks, hard links, replaced directories), output (records that each entry gets), and
readers of documents.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import zstandard

from test import layers
from test.images import CONFIG, LAYER, MANIFEST
from test.layers import END, directory, file, hardlink, header, pax_block, pax_header, symlink, written

Tar = Callable[[], Iterator[bytes]]

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Hostile:
    """One image. `code` is that of the error that answers it, None where it is served with at most `most` bytes.

    `config` is what its configuration says beside the layers, or all of it as bytes.
    """

    name: str
    tars: Sequence[Tar]
    code: str | None = None
    verb: str = "rootfs"
    config: Mapping[str, Any] | bytes = field(default_factory=dict)
    most: int = 64 * _MIB
    times: int = 1
    """How often the manifest lists the layers."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Blob:
    """What is pushed, and the digest of what it is uncompressed."""

    content: bytes
    diff_id: str

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"


def packed(tar: Tar) -> Blob:
    """Return the layer as it is pushed: one zstd frame."""
    hasher = hashlib.sha256()
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    parts = []
    for piece in tar():
        hasher.update(piece)
        parts.append(compressor.compress(piece))
    parts.append(compressor.flush())
    return Blob(b"".join(parts), f"sha256:{hasher.hexdigest()}")


def config_of(image: Hostile, blobs: Sequence[Blob]) -> bytes:
    if isinstance(image.config, bytes):
        return image.config
    diff_ids = [blob.diff_id for blob in blobs] * image.times
    document: dict[str, Any] = {"os": "linux", "architecture": "amd64"}
    rootfs = {"rootfs": {"type": "layers", "diff_ids": diff_ids}}
    return json.dumps({**document, **rootfs, **image.config}).encode()


def manifest_of(image: Hostile, blobs: Sequence[Blob], config: bytes) -> bytes:
    layers = [
        {"mediaType": f"{LAYER}+zstd", "digest": blob.digest, "size": len(blob.content)} for blob in blobs
    ] * image.times
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    described = {"mediaType": CONFIG, "digest": digest, "size": len(config)}
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}).encode()


# --- Entries ----------------------------------------------------------------------------------------------------------


def tar(*parts: layers.Entry | bytes) -> Tar:
    return lambda: iter([layers.layer(*parts)])


def each(make: Callable[[int], layers.Entry | bytes], times: int, *before: layers.Entry | bytes) -> Tar:
    """Return a tar of `before` and then of what `make` makes of each number below `times`."""

    def pieces() -> Iterator[bytes]:
        yield layers.layer(*before, end=b"")
        waiting, size = [], 0
        for at in range(times):
            made = make(at)
            waiting.append(made if isinstance(made, bytes) else written(made))
            size += len(waiting[-1])
            if size >= 256 * _KIB:
                yield b"".join(waiting)
                waiting, size = [], 0
        yield b"".join((*waiting, END))

    return pieces


def many(times: int, form: bytes = b"f%07d") -> Tar:
    """Return a tar of so many empty files, made faster than `each` would."""
    blank = header(form % 0)
    base = sum(blank) - sum(blank[148:156]) + 8 * 32 - sum(form % 0)

    def one(at: int) -> bytes:
        name = form % at
        return name + blank[len(name) : 148] + b"%06o\0 " % (base + sum(name)) + blank[156:]

    return each(one, times)


def deep(size: int) -> bytes:
    """Return a name of `size` bytes that has as many components as there can be."""
    return (b"a/" * (size // 2 + 1))[: size - 1] + b"a"


def attribute(size: int, at: int = 0) -> bytes:
    """Return an extended header with one attribute, another for each number."""
    return pax_header([(b"SCHILY.xattr.user.x", b"%08d" % at + b"v" * (size - 8))])


def extended(at: int, *records: tuple[bytes, bytes]) -> bytes:
    return pax_header(records) + header(b"f%06d" % at)


def sparse(name: bytes, pieces: int, shift: int = 0) -> bytes:
    """Return a sparse file of so many pieces of a byte, its map in a record."""
    numbers = b",".join(b"%d,1" % (2 * at + shift) for at in range(pieces))
    records = [
        (b"GNU.sparse.major", b"0"),
        (b"GNU.sparse.minor", b"1"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.size", b"%d" % (2 * pieces + shift)),
        (b"GNU.sparse.numblocks", b"%d" % pieces),
        (b"GNU.sparse.map", numbers),
    ]
    return pax_header(records) + header(b"sparse", size=pieces) + layers.padded(b"1" * pieces)


def sparse_in_lines(map_: bytes) -> bytes:
    """Return a sparse file whose map, as given, stands before its data."""
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")]
    return pax_header(records) + header(b"holes", size=len(map_)) + layers.padded(map_)


def hole(at: int, size: int) -> bytes:
    return pax_header([(b"GNU.sparse.map", b""), (b"GNU.sparse.size", b"%d" % size)]) + header(b"hole%d" % at)


def chain(links: int, size: int = 4000) -> list[layers.Entry]:
    """Return symlinks: `s0` leads to `d` by way of all others, each with as many steps as fit `size` bytes."""
    there = b"./" * ((size - 16) // 2)
    targets = [*(b"s%d" % at for at in range(1, links)), b"d"]
    return [directory(b"d"), *(symlink(b"s%d" % at, there + target) for at, target in enumerate(targets))]


def longer(times: int) -> list[layers.Entry]:
    """Return directories and symlinks by which a name of 20 bytes is one of `times` times 3,000."""
    entries: list[layers.Entry] = []
    here = b""
    for at in range(times):
        step = b"/".join(b"%d%s" % (at, b"x" * 200) for _ in range(14))
        entries.append(symlink(here + b"s", step))
        here += b"s/"
    return entries


def replaced(at: int) -> bytes:
    """Return a directory, by what is in it, and the file that replaces both."""
    return written(file(b"r%06d/x" % at)) + written(file(b"r%06d" % at))


def raised(times: int) -> Tar:
    """Return hard links in a deep directory, each to a file that stands before the one that the last was to.

    The files' own names are replaced, so each is written at its place, and all directories above it with it.
    """
    folder = deep(1600)

    def make(at: int) -> bytes:
        entry = hardlink(folder + b"/h%d" % at, b"t%d" % (times - 1 - at))
        return written(entry) + written(directory(b"t%d/" % (times - 1 - at)))

    targets = [file(b"t%d" % at, b"1") for at in range(times)]
    return each(make, times, *targets)


# --- Layers -----------------------------------------------------------------------------------------------------------

METADATA, TOO_LARGE, OUTPUT, COMPLEX = (
    "LAYER_METADATA_TOO_LARGE",
    "LAYER_TOO_LARGE",
    "IMAGE_OUTPUT_TOO_LARGE",
    "IMAGE_TOO_COMPLEX",
)
MALFORMED, CONFIG_INVALID, USER = "LAYER_HEADER_MALFORMED", "CONFIG_INVALID", "USER_UNKNOWN"
_ONE = tar(file(b"etc/hostname", b"here\n"))
_DEEP_RECORD = [(b"path", deep(40_000))]
_MIB_NAME = b"n" * 900_000


def _layers() -> Iterator[Hostile]:
    def bad(name: str, *tars: Tar, code: str = METADATA, **more: Any) -> Hostile:
        return Hostile(name, tars, code, **more)

    def served(name: str, *tars: Tar, **more: Any) -> Hostile:
        return Hostile(name, tars, **more)

    # Names
    yield bad("name-deep-40k", tar(pax_header(_DEEP_RECORD) + header(b"a")))
    yield bad("name-deep-80k-gnu", tar(layers.gnu_long(b"L", deep(80_000)) + header(b"a", magic=layers.GNU_MAGIC)))
    yield bad("name-deep-1M", tar(pax_header([(b"path", deep(900_000))]) + header(b"a")))
    yield bad("name-deep-2M", tar(pax_header([(b"path", deep(2_000_000))]) + header(b"a")))
    yield bad("name-4097", tar(pax_header([(b"path", b"n" * 4097)]) + header(b"a")))
    yield served("name-4096", tar(pax_header([(b"path", (b"n" * 255 + b"/") * 16)]) + header(b"a", kind=b"5")))
    yield bad("name-1025-components", tar(pax_header([(b"path", deep(2049))]) + header(b"a")))
    yield served("name-1024-components", tar(pax_header([(b"path", deep(2047))]) + header(b"a")))
    yield bad("name-dots", tar(pax_header([(b"path", b"./" * 20_000 + b"a")]) + header(b"a")))
    yield bad("name-ups", tar(pax_header([(b"path", b"a/../" * 20_000 + b"a")]) + header(b"a")))
    yield bad("names-deep-each-its-own", each(lambda at: file(b"%d/" % at + deep(2000)), 5000))
    yield bad("names-in-ustar-each-its-own", each(lambda at: header(deep(90), prefix=b"%d/" % at + deep(140)), 60_000))
    yield bad("names-long", each(lambda at: file((b"%08d" % at + b"n" * 247 + b"/") * 15 + b"f"), 80_000))
    yield bad("name-with-a-nul", tar(sparse(b"a\0b", 2)), code=MALFORMED)
    yield bad("entries-too-many", many(2_000_001), code=TOO_LARGE)
    yield bad("entries-too-many-of-an-image", many(1_000_001), many(1_000_001, b"g%07d"), code=TOO_LARGE)
    yield served("entries-200000", many(200_000), most=128 * _MIB)

    # Links
    yield bad("link-40k", tar(pax_header([(b"linkpath", deep(40_000))]) + header(b"s", kind=b"2")))
    yield bad("link-hard-40k", tar(pax_header([(b"linkpath", deep(40_000))]) + header(b"h", kind=b"1")))
    yield bad(
        "links-900k-gnu",
        each(lambda at: layers.gnu_long(b"K", _MIB_NAME) + header(b"s%d" % at, kind=b"2", magic=layers.GNU_MAGIC), 600),
    )
    yield bad("links-4k", each(lambda at: symlink(b"s%d" % at, b"%08d" % at + b"t" * 4000), 80_000))
    yield bad("links-hard", each(lambda at: hardlink(b"h%d" % at, b"f"), 600_000, file(b"f", b"1")))

    # Records
    yield bad("global-900k", each(lambda at: file(b"f%d" % at), 1000, _global(900_000)))
    yield bad("globals-of-20-times-60k", each(lambda at: file(b"f%d" % at), 1000, *[_global(60_000)] * 20))
    yield bad("globals-tiny", tar(pax_block(b"6 a=b\n" * 20_000, kind=b"g") + header(b"a")))
    yield bad("global-60k-in-each-entry", each(lambda at: file(b"f%d" % at), 1000, _global(60_000)), code=OUTPUT)
    yield served("global-60k-in-two-entries", tar(_global(60_000), file(b"a"), file(b"b")))
    yield bad(
        "globals-merged-with-records",
        each(lambda at: extended(at, (b"mtime", b"%d.5" % at)), 60_000, _globals(500)),
    )
    yield bad("attributes-900k", each(lambda at: attribute(900_000) + header(b"f%d" % at), 600))
    yield bad("attributes-60k-all-different", each(lambda at: attribute(60_000, at) + header(b"f%d" % at), 6000))
    yield served("attributes-60k-all-the-same", each(lambda at: attribute(60_000) + header(b"f%d" % at), 500))
    yield bad("records-60000-of-an-entry", tar(extended(0, *((b"k%d" % at, b"v") for at in range(60_000)))))
    yield bad(
        "records-of-each-entry",
        each(lambda at: extended(at, *((b"k%d" % each, b"%d" % at) for each in range(600))), 8000),
    )
    times = each(lambda at: extended(at, (b"mtime", b"%d.123456789" % at)), 50_000)
    yield served("mtimes-exact", times, most=128 * _MIB)
    yield bad("record-of-any-length", tar(pax_block(b"99999999999999999999 path=a\n") + header(b"a")), code=MALFORMED)
    yield bad("record-number", tar(extended(0, (b"uid", b"9" * 5000))), code=MALFORMED)
    yield bad("record-time", tar(extended(0, (b"mtime", b"9" * 5000))), code=MALFORMED)
    yield served("record-time-small", tar(extended(0, (b"mtime", b"1" * 18 + b"." + b"1" * 40 + b"e-99"))))

    # Kept files, duplicates, whiteouts
    passwd = file(b"etc/passwd", b"x" * _MIB)
    yield bad("passwd-400-times", each(lambda _: passwd, 400))
    yield bad("duplicates-2000", each(lambda at: attribute(5000, at) + header(b"f"), 2000))
    yield served("duplicates-900", each(lambda at: attribute(5000, at) + header(b"f"), 900))
    yield bad("whiteouts-500001", each(_whiteout, 500_001))
    yield bad("whiteouts-long", each(lambda at: layers.whiteout(b"%08d" % at + b"n" * 4000), 80_000))
    yield served("whiteouts-deep", each(lambda at: layers.whiteout(b"%d/" % at + deep(2000)), 500))
    yield served("leftovers-below-leftovers", each(lambda at: file(b".wh..wh.plnk/%d/" % at + deep(1900)), 5000))

    # Sparse files
    yield bad("sparse-of-100000-pieces", tar(sparse(b"s", 70_000)))
    yield bad("sparse-maps", each(lambda at: sparse(b"s%d" % at, 50_000, at), 60))
    yield bad("sparse-number-without-end", each(lambda _: sparse_in_lines(b"1" * 900_000), 200), code=MALFORMED)
    yield bad("sparse-count", tar(sparse_in_lines(b"99999999999999999999\n")), code=MALFORMED)
    yield bad("sparse-of-an-exabyte", tar(hole(0, 1 << 60)), code=TOO_LARGE)
    yield bad("sparse-of-twenty-terabytes", each(lambda at: hole(at, 100 << 30), 200), code=TOO_LARGE)
    yield served("sparse-of-100M", tar(hole(0, 100 * _MIB)), most=101 * _MIB)
    yield served("zeros-after-the-end", lambda: iter([layers.layer(file(b"a")), *[bytes(_MIB)] * 2000]))

    # Symlinks
    below = [file(b"s0/f%d" % at) for at in range(1500)]
    yield served("symlinks-39-of-4k", tar(*chain(39), *below))
    yield bad("symlinks-41", tar(*chain(41), *below), code="LAYER_SYMLINK_LOOP")
    yield bad(
        "symlinks-in-a-ring", tar(symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/f")), code="LAYER_SYMLINK_LOOP"
    )
    yield bad("symlinks-each-parent-its-own", each(lambda at: file(b"s0/%d/f" % at), 3000, *chain(39)), code=COMPLEX)
    yield bad(
        "symlinks-replaced-again-and-again",
        each(
            lambda at: written(symlink(b"x%d" % (at % 900), b"s0")) + written(file(b"s0/%d" % at)), 20_000, *chain(39)
        ),
        code=COMPLEX,
    )
    yield bad(
        "whiteouts-below-symlinks",
        tar(*chain(39)),
        each(lambda at: layers.whiteout(b"s0/%d/f" % at), 3000),
        code=COMPLEX,
    )
    yield served("whiteouts-below-one-symlink", tar(*chain(39)), each(lambda at: layers.whiteout(b"s0/f%d" % at), 3000))
    yield bad("symlinks-to-longer-and-longer", tar(*longer(30), file(b"s/" * 30 + b"f")))
    yield bad("entries-moved-far", each(lambda at: file(b"s/f%d" % at), 100_000, *longer(1)))

    # Trees
    base = many(100_000)
    yield served("directories-replaced", base, each(replaced, 20_000))
    yield served("hard-links-that-raise-directories", raised(3000))
    yield served("layers-1000-times", _ONE, times=1000)
    yield served("layers-1000-times-opaque", tar(layers.opaque(b""), file(b"a")), times=1000)
    yield served("deep-as-ext4", tar(file(deep(1999), b"1")), verb="ext4", most=256 * _MIB)
    yield served("deep-as-squash", tar(file(deep(1999), b"1")), verb="squash")


def _global(size: int) -> bytes:
    return pax_header([(b"SCHILY.xattr.user.g", b"g" * size)], kind=b"g")


def _globals(count: int) -> bytes:
    return pax_header([(b"k%d" % at, b"v") for at in range(count)], kind=b"g")


def _replaced_symlink(at: int) -> bytes:
    return written(symlink(b"x%d" % (at % 900), b"s0")) + written(file(b"s0/%d" % at))


def _whiteout(at: int) -> bytes:
    return header(b".wh.%d" % at)


# --- Documents --------------------------------------------------------------------------------------------------------


def _documents() -> Iterator[Hostile]:
    def bad(name: str, config: Mapping[str, Any] | bytes, code: str = CONFIG_INVALID, **more: Any) -> Hostile:
        return Hostile(name, [more.pop("tar", _ONE)], code, config=config, **more)

    def ran(**values: Any) -> dict[str, Any]:
        return {"config": {"Entrypoint": ["/bin/true"], **values}}

    yield bad("os-escapes", {"os": "linux\x1b]0;forged\x07"})
    yield bad("os-lines", {"os": "linux\n" + "0" * 64 + "  complete"})
    yield bad("os-blanks", {"os": "linux  squash of x"})
    yield bad("os-surrogate", b'{"os": "\\ud800", "architecture": "amd64"}')
    yield bad("architecture-escapes", {"architecture": "amd64\x9b31m"})
    yield bad("architecture-turned-round", {"architecture": "\u202eamd64"})
    yield bad("variant-lines", {"variant": "v8\r\nX-Forged: 1"})
    yield bad("os-version-long", {"os.version": "1" * 100_000})
    yield bad("nested", b'{"os":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    yield bad("number", b'{"os": "linux", "x": ' + b"9" * 5000 + b"}")
    yield bad("number-infinite", b'{"os": "linux", "x": 1e999}')
    yield bad("no-object", b"[]")
    yield bad("no-utf-8", b'{"os": "\xff"}')
    yield bad("large", b'{"x": "' + b"x" * (5 * _MIB) + b'"}', "DOCUMENT_TOO_LARGE")
    yield bad("user-digits", ran(User="9" * 5000), USER, verb="bundle")
    yield bad("user-group-digits", ran(User="1:" + "9" * 5000), USER, verb="bundle")
    yield bad("user-long", ran(User="u" * 1_000_000), USER, verb="bundle")
    yield bad(
        "user-of-passwd-digits",
        ran(User="me"),
        USER,
        verb="bundle",
        tar=tar(file(b"etc/passwd", b"me:x:" + b"9" * 5000 + b":0::/:/bin/sh\n")),
    )
    yield Hostile("user-zeros", [_ONE], verb="bundle", config=ran(User="0" * 5000 + "7"))
    yield bad(
        "volumes-through-symlinks",
        ran(Volumes={f"/s0/{at}/v": {} for at in range(3000)}),
        COMPLEX,
        verb="bundle",
        tar=tar(*chain(39)),
    )
    odd: dict[str, Any] = {f"/{chr(0x4E00 + at % 20_000)}{chr(0x4E00 + at // 20_000)}": {} for at in range(100_000)}
    yield Hostile("volumes-of-one-name", [_ONE], verb="aci", config=ran(Volumes=odd))
    yield Hostile("variables-100000", [_ONE], verb="aci", config=ran(Env=[f"{at}=x" for at in range(100_000)]))
    yield Hostile("ports-100000", [_ONE], verb="aci", config=ran(ExposedPorts={f"x{at}": {} for at in range(100_000)}))
    yield Hostile("created", [_ONE], verb="incus", config={"created": "9" * 5000 + "-01-01T00:00:00Z"})
    yield Hostile("history-100000", [_ONE], config={"history": [{"empty_layer": True}] * 100_000})


IMAGES: Sequence[Hostile] = (*_layers(), *_documents())
