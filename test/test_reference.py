"""The merged tar, unpacked by GNU tar and by bsdtar, is what umoci unpacks from the layers, and what the model says.

umoci 0.4.7 is the reference as far as it goes. Where it departs from the image-spec or refuses, a test here shows how,
so that one sees when it no longer does; everywhere else all four must agree, entry by entry: type, mode, owner, time to
the nanosecond, xattrs, link structure, content, device numbers. All this needs root.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from test import clients, layers, model
from test.layers import Entry, directory, fifo, file, hardlink, opaque, symlink, whiteout
from test.merging import merged
from test.strategies import Stack, examples, stacks
from util.digest import Digest

Layer = Sequence[Entry | bytes]


# --- The clients ------------------------------------------------------------------------------------------------------


def write_layout(folder: Path, tars: Sequence[bytes]) -> None:
    """Write an OCI image layout whose tag `latest` has these layers, base first, each compressed by gzip."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, media_type: str) -> dict[str, Any]:
        digest = Digest.of(content)
        (blobs / digest.hex).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": str(digest), "size": len(content)}

    def put_json(document: dict[str, Any], media_type: str) -> dict[str, Any]:
        return put(json.dumps(document).encode(), media_type)

    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in tars]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put_json(config, "config.v1+json"),
        "layers": [put(layers.gzipped(tar), "layer.v1.tar+gzip") for tar in tars],
    }
    tag = {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
    index = {"schemaVersion": 2, "manifests": [put_json(manifest, "manifest.v1+json") | tag]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def unpacked_by_umoci(tars: Sequence[bytes], folder: Path) -> model.Listing:
    write_layout(folder / "layout", tars)
    clients.run("umoci", "raw", "unpack", "--image", f"{folder / 'layout'}:latest", str(folder / "rootfs"))
    return model.listing_of_folder(os.fsencode(folder / "rootfs"))


def unpacked_by_tar(archive: bytes, folder: Path) -> model.Listing:
    folder.mkdir()
    options = ("--xattrs", "--xattrs-include=*", "--numeric-owner", "--delay-directory-restore", "-xpf", "-")
    clients.run("tar", *options, "-C", str(folder), stdin=archive)
    return model.listing_of_folder(os.fsencode(folder))


def unpacked_by_bsdtar(archive: bytes, folder: Path) -> model.Listing:
    folder.mkdir()
    options = ("--numeric-owner", "-xpf", "-", "-C", str(folder))
    clients.run("bsdtar", *options, stdin=archive, complaint=b"can't be converted from UTF-8")  # and unpacks it rightly
    return model.listing_of_folder(os.fsencode(folder))


def without_root(listing: model.Listing) -> model.Listing:
    return {path: listed for path, listed in listing.items() if path != b"."}


def times_that_bsdtar_gets_wrong(listing: model.Listing) -> set[bytes]:
    """Return the names whose times bsdtar 3.6.2 does not restore: the root's, and those with a fraction before 1970."""
    return {b"."} | {path for path, listed in listing.items() if listed.mtime_ns < 0 and listed.mtime_ns % 10**9}


def without_times(listing: model.Listing, paths: set[bytes]) -> model.Listing:
    return {path: replace(listed, mtime_ns=0) if path in paths else listed for path, listed in listing.items()}


def as_umoci_leaves_it(listing: model.Listing, implied: set[bytes]) -> model.Listing:
    """Return `listing` without what umoci leaves to chance or drops.

    These are time, mode and owner of folders that no layer describes, and xattrs without a value.
    """
    return {
        path: replace(
            replace(listed, mode=0, uid=0, gid=0, mtime_ns=0) if path in implied else listed,
            xattrs=tuple((key, value) for key, value in listed.xattrs if value),
        )
        for path, listed in listing.items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    assert os.geteuid() == 0, "unpacking owners and devices needs root"
    mask = os.umask(0o022)
    yield tmp_path
    os.umask(mask)


def assert_all_agree(stack: Sequence[Sequence[Entry]], folder: Path, *, umoci: bool = True) -> None:
    """Assert that the merged tar of a stack, unpacked, is what the model says and what umoci makes of the layers."""
    tars = [layers.layer(*entries) for entries in stack]
    tree = model.unpacked(stack)
    expected = model.as_on_disk(tree.listing())
    rooted = (lambda listing: listing) if tree.named_root else without_root
    output = merged(tars)
    by_tar, by_bsdtar = unpacked_by_tar(output, folder / "tar"), unpacked_by_bsdtar(output, folder / "bsdtar")
    assert model.differences(rooted(expected), rooted(by_tar)) == []
    wrong = times_that_bsdtar_gets_wrong(expected)
    assert model.differences(without_times(rooted(expected), wrong), without_times(rooted(by_bsdtar), wrong)) == []
    if umoci:
        left = as_umoci_leaves_it(rooted(unpacked_by_umoci(tars, folder / "umoci")), tree.implied())
        assert model.differences(as_umoci_leaves_it(rooted(expected), tree.implied()), left) == []


# --- Images as they are -----------------------------------------------------------------------------------------------

TIME = 1_600_000_000_123_456_789
CAPABILITY = {b"security.capability": b"\x01\0\0\x02\0\x04\0\0" + bytes(12)}


def debian() -> list[Entry]:
    """Return a small base image whose /bin and /lib are merged into /usr."""
    return [
        directory(b"./", mtime_ns=TIME),
        symlink(b"./bin", b"usr/bin", mtime_ns=TIME),
        symlink(b"./lib", b"usr/lib", mtime_ns=TIME),
        symlink(b"./lib64", b"/usr/lib64", mtime_ns=TIME),
        *(directory(b"./" + name + b"/", mtime_ns=TIME) for name in (b"dev", b"etc", b"usr", b"usr/bin", b"usr/lib")),
        *(
            directory(b"./" + name + b"/", mtime_ns=TIME)
            for name in (b"usr/lib64", b"usr/share", b"usr/share/doc", b"var")
        ),
        directory(b"./tmp/", mode=0o1777, mtime_ns=TIME),
        directory(b"./srv/", mode=0o700, mtime_ns=TIME),
        directory(b"./var/mail/", mode=0o2775, gid=8, mtime_ns=TIME),
        file(b"./etc/passwd", b"root:x:0:0:root:/srv:/bin/sh\n", mtime_ns=TIME),
        file(b"./etc/shadow", b"root:*:1::::::\n", mode=0o640, gid=42, mtime_ns=TIME),
        file(b"./usr/bin/perl", b"#!perl" * 300, mode=0o755, mtime_ns=TIME),
        hardlink(b"./usr/bin/perl5.36.0", b"./usr/bin/perl"),
        file(b"./usr/bin/su", b"su", mode=0o4755, mtime_ns=TIME),
        file(b"./usr/bin/ping", b"ping", mode=0o755, mtime_ns=TIME, xattrs=CAPABILITY),
        file(b"./usr/lib/libc.so.6", b"libc" * 1000, mode=0o755, mtime_ns=TIME),
        symlink(b"./usr/lib/libc.so", b"libc.so.6", mtime_ns=TIME),
        file(b"./usr/lib64/ld.so", b"ld", mode=0o755, mtime_ns=TIME),
        file(b"./usr/share/doc/copyright", b"(c)", mtime_ns=TIME),
        symlink(b"./usr/share/doc/old", b"copyright", mtime_ns=TIME),
        layers.character_device(b"./dev/null", 1, 3, mode=0o666, mtime_ns=TIME),
        layers.block_device(b"./dev/sda", 8, 0, mode=0o660, mtime_ns=TIME),
        fifo(b"./dev/initctl", mode=0o600, mtime_ns=TIME),
    ]


IMAGES: dict[str, list[list[Entry]]] = {
    "base alone": [debian()],
    "usrmerge": [
        debian(),
        [
            file(b"lib/libfoo.so", b"foo", mtime_ns=TIME),
            file(b"bin/foo", b"foo", mode=0o755, mtime_ns=TIME),
            directory(b"lib/foo/", mode=0o750, mtime_ns=TIME),
            file(b"lib/foo/plugin.so", b"plugin", mtime_ns=TIME),
            file(b"lib64/ld-2.so", b"ld", mtime_ns=TIME),
            hardlink(b"bin/foo2", b"bin/foo"),
            hardlink(b"bin/libc", b"lib/libc.so.6"),
        ],
        [whiteout(b"usr/lib/libfoo.so"), file(b"usr/lib/foo/plugin.so", b"newer", mtime_ns=TIME)],
    ],
    "packages removed": [
        debian(),
        [
            whiteout(b"usr/share/doc"),
            whiteout(b"usr/bin/perl"),
            whiteout(b"dev/sda"),
            whiteout(b"usr/lib/libc.so"),
            whiteout(b"lib64"),
            directory(b"etc/", mtime_ns=TIME + 1),
            file(b"etc/passwd", b"nobody\n", mtime_ns=TIME + 1),
        ],
    ],
    "opaque folders": [
        debian(),
        [
            directory(b"usr/share/", mtime_ns=TIME + 5),
            opaque(b"usr/share"),
            directory(b"usr/share/doc/", mode=0o711, mtime_ns=TIME + 5),
            file(b"usr/share/doc/new", b"new", mtime_ns=TIME),
            opaque(b"var"),
            opaque(b"absent"),
        ],
        [file(b"var/mail", b"now a file", mtime_ns=TIME), opaque(b"usr/bin")],
    ],
    "hard links across layers": [
        debian(),
        [hardlink(b"usr/bin/a-link-before-its-target", b"usr/bin/perl"), hardlink(b"etc/passwd-", b"etc/passwd")],
        [whiteout(b"usr/bin/perl"), file(b"etc/passwd", b"changed", mtime_ns=TIME)],
        [hardlink(b"usr/lib/perl", b"usr/bin/perl5.36.0"), whiteout(b"usr/bin/a-link-before-its-target")],
        [hardlink(b"usr/lib/link to a symlink", b"usr/lib/libc.so"), hardlink(b"dev/null2", b"dev/null")],
    ],
    "one thing over another": [
        debian(),
        [
            file(b"usr/share", b"a file over a folder", mtime_ns=TIME),
            symlink(b"var", b"usr/lib", mtime_ns=TIME),
            directory(b"etc/passwd/", mode=0o700, mtime_ns=TIME),
            file(b"etc/passwd/inside", b"1", mtime_ns=TIME),
            symlink(b"usr/bin/perl", b"perl5.36.0", mtime_ns=TIME),
            fifo(b"tmp", mtime_ns=TIME),
            hardlink(b"root", b"usr/bin/su"),
            file(b"dev/null", b"no device", mtime_ns=TIME),
        ],
        [file(b"var/through-the-new-symlink", b"1", mtime_ns=TIME), directory(b"usr/share/", mtime_ns=TIME)],
    ],
    "a folder over a symlink, as Docker writes it": [
        debian(),
        [directory(b"lib/", mode=0o755, mtime_ns=TIME), opaque(b"lib"), file(b"lib/own", b"1", mtime_ns=TIME)],
    ],
    "made anew in the layer that deletes it": [
        debian(),
        [
            whiteout(b"usr/share"),
            directory(b"usr/share/", mode=0o700, mtime_ns=TIME),
            file(b"usr/share/new", b"1", mtime_ns=TIME),
            whiteout(b"etc/passwd"),
            file(b"etc/passwd", b"new", mtime_ns=TIME),
        ],
    ],
    "parents that no layer has": [
        [file(b"a/b/c/d", b"1", mtime_ns=TIME)],
        [file(b"a/x/y", b"2"), symlink(b"s", b"n/e/w")],
        [file(b"s/f")],
    ],
    "odd metadata": [
        [
            file(b"huge ids", uid=2**31 - 1, gid=2**32 - 2, mtime_ns=TIME),
            file(b"before 1970", mtime_ns=-1_500_000_000),
            file(b"far future", mtime_ns=8**11 * 10**9 + 5),
            file(b"all bits", mode=0o7777),
            file(b"no bits", mode=0),
            directory(b"sticky", mode=0o7777, mtime_ns=-1),
            file(b"xattrs", b"1", xattrs={b"user.binary": bytes(range(256)), b"trusted.empty": b""}),
            file(b"an xattr of lines", b"1", xattrs={b"user.lines": b"a\nb=c\n12 path=evil\n"}),
            directory(b"xattrs.d", xattrs={b"user.x": b"1", b"trusted.y": b"\0"}),
            symlink(b"xattrs.l", b"nowhere", xattrs={b"trusted.y": b"\xff"}, uid=5, gid=6, mtime_ns=TIME),
            layers.character_device(b"large numbers", 4095, (1 << 20) - 1),
        ],
        [directory(b"xattrs.d", mode=0o700, xattrs={b"user.z": b"2"}), file(b"xattrs", b"2")],
    ],
    "odd names": [
        [
            file(b"\xff\xfe\x80", b"1"),
            file("ünïcode/☃".encode(), b"2"),
            file(b"n" * 255, b"3"),
            file(b"/".join([b"p" * 60] * 12), b"4"),
            file(b" ", b"5"),
            file(b"a\nb", b"6"),
            file(b"-rf", b"7"),
            file(b"back\\slash*?[x]", b"8"),
            file(b"//double//slash", b"9"),
            file(b"x/../y/./z", b"10"),
            symlink(b"long", b"t" * 300),
            hardlink(b"l" * 200, b"n" * 255),
        ],
        [whiteout(b"\xff\xfe\x80"), file(b"/n" + b"n" * 254, b"new")],
    ],
    "twice in one layer, children first": [
        [
            file(b"d/e/f", b"1"),
            directory(b"d/e", mode=0o700, mtime_ns=TIME),
            directory(b"d", mode=0o711, mtime_ns=TIME),
            file(b"d/e/f", b"2", mtime_ns=TIME),
            file(b"x", b"1"),
            hardlink(b"x2", b"x"),
            symlink(b"x", b"x2", mtime_ns=TIME),
        ],
    ],
}  # fmt: skip


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_umoci_gnu_tar_bsdtar_and_the_model_agree_on_images(image: list[list[Entry]], folder: Path) -> None:
    assert_all_agree(image, folder)


def fit_for_umoci(stack: Stack) -> Stack:
    """Return a sound stack, written so that umoci does with it what the image-spec says.

    umoci applies whiteouts where they stand, so here they come first; one that reaches through a symlink or a file is
    left out, since that may be replaced in the same layer. What aufs left over is left out too: umoci unpacks it. No
    parent is missing: where umoci makes one, the folder around it loses its time.
    """

    def is_plain(tree: model.Tree, path: model.Path, entry: Entry) -> bool:
        try:
            return tree.place_of_folder(path[:-1], entry) == path[:-1]
        except model.Refused:
            return False

    fit: Stack = []
    for entries in stack:
        tree = model.unpacked(fit)
        whiteouts, others = model.sorted_out(entries)
        layer = [entry for entry, path in whiteouts if is_plain(tree, path, entry)]
        tree.apply(layer)
        for entry, path in others:
            place = tree.place_of_folder(path[:-1], entry)
            assert place is not None
            missing = [place[:length] for length in range(1, len(place) + 1) if tree.at(place[:length]) is None]
            for parent in (directory(b"/".join(parent), mtime_ns=TIME) for parent in missing):
                tree.add(parent, model.normalised(parent, parent.name))
                layer.append(parent)
            try:
                tree.add(entry, path)
            except model.Refused:
                continue
            layer.append(entry)
        fit.append(layer)
    return fit


@examples(30)
@given(stack=stacks())
def test_umoci_gnu_tar_bsdtar_and_the_model_agree_on_random_stacks(stack: Stack) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mask = os.umask(0o022)
        assert_all_agree(fit_for_umoci(model.mended(stack)[0]), Path(folder))
        os.umask(mask)


@pytest.mark.parametrize("program", [unpacked_by_tar, unpacked_by_bsdtar], ids=["tar", "bsdtar"])
def test_the_merged_tar_with_a_prefix_unpacks_below_the_prefix(program: Any, folder: Path) -> None:
    stack = [debian(), IMAGES["usrmerge"][1], IMAGES["hard links across layers"][2]]
    output = merged([layers.layer(*entries) for entries in stack], path_prefix=b"rootfs/")
    program(output, folder / "all")
    found = model.listing_of_folder(os.fsencode(folder / "all" / "rootfs"))
    assert os.listdir(folder / "all") == ["rootfs"]
    assert model.differences(model.as_on_disk(model.unpacked(stack).listing()), found) == []


def test_the_layers_of_one_image_may_be_compressed_in_different_ways(folder: Path) -> None:
    stack = IMAGES["hard links across layers"]
    tars = [layers.layer(*entries) for entries in stack]
    ways: list[Callable[[bytes], bytes]] = [
        layers.gzipped,
        layers.zstd_frame,
        bytes,
        lambda tar: layers.gzip_members(tar, 1000),
        layers.zstd_frame,
    ]
    assert merged([way(tar) for way, tar in zip(ways, tars, strict=True)]) == merged(tars)


# --- Where umoci departs ----------------------------------------------------------------------------------------------


def test_umoci_lets_a_whiteouts_place_in_its_layer_matter_and_the_image_spec_does_not(folder: Path) -> None:
    """A whiteout after an entry, of that entry's folder: all of the lower folder is gone, not its content alone."""
    stack = [
        [directory(b"d", mode=0o700, mtime_ns=TIME), file(b"d/old", mtime_ns=TIME)],
        [file(b"d/new", b"1", mtime_ns=TIME), whiteout(b"d")],
    ]
    assert_all_agree(stack, folder, umoci=False)
    found = unpacked_by_umoci([layers.layer(*entries) for entries in stack], folder / "umoci")
    expected = model.unpacked(stack).listing()
    assert found.keys() == expected.keys()
    assert (found[b"d"].mode, expected[b"d"].mode) == (0o700, 0o755)


def test_umoci_follows_a_symlink_for_an_opaque_whiteout_that_comes_before_the_folder_that_replaces_it(
    folder: Path,
) -> None:
    stack = [
        [symlink(b"lib", b"usr"), directory(b"usr"), file(b"usr/x")],
        [opaque(b"lib"), directory(b"lib/"), file(b"lib/y")],
    ]
    assert_all_agree(stack, folder, umoci=False)
    assert b"usr/x" in model.unpacked(stack).listing()
    assert b"usr/x" not in unpacked_by_umoci([layers.layer(*entries) for entries in stack], folder / "umoci")


def test_umoci_unpacks_what_aufs_left_over(folder: Path) -> None:
    stack = [[file(b"f"), file(b".wh..wh.plnk/1.2", b"junk"), file(b".wh..wh.aufs")]]
    assert_all_agree(stack, folder, umoci=False)
    assert set(model.unpacked(stack).listing()) == {b".", b"f"}
    assert b".wh..wh.plnk/1.2" in unpacked_by_umoci([layers.layer(*stack[0])], folder / "umoci")


def test_umoci_takes_a_name_that_leaves_the_root_for_one_inside_it(folder: Path) -> None:
    assert b"evil" in unpacked_by_umoci([layers.layer(file(b"../../evil"))], folder / "umoci")
    with pytest.raises(model.Refused, match="PathLeavesRoot"):
        model.unpacked([[file(b"../../evil")]])


@pytest.mark.parametrize(
    "part",
    [
        layers.pax_header([(b"comment", b"0" * 40)], kind=b"g") + layers.written(file(b"f", b"1")),
        layers.old_gnu_sparse(b"f", 1, [(0, b"1")]),
        layers.header(b"f", kind=b"7", size=1) + layers.padded(b"1"),
    ],
    ids=["pax global header", "old GNU sparse file", "contiguous file"],
)
def test_umoci_refuses_what_gnu_tar_and_we_read(part: bytes, folder: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="umoci"):
        unpacked_by_umoci([layers.layer(part)], folder / "umoci")
    output = merged([layers.layer(part)])
    assert unpacked_by_tar(output, folder / "merged")[b"f"].content == b"1"
    assert unpacked_by_tar(layers.layer(part), folder / "layer")[b"f"].content == b"1"
