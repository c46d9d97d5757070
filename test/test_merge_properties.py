"""Random stacks of layers: the merged tar lists what the model says, and keeps every promise that is made of it.

The same examples each time; `pytest --hypothesis-profile=explore` runs ten times as many, at random.
"""

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from test import layers, model
from test.layers import Dialect
from test.merging import dumped, index_of, merged, merger_of, source_of
from test.strategies import Stack, archives, dialects, entries, examples, stacks
from util import layerreader, tarheader
from util.compression import decompressed
from util.digest import Digest, DigestMismatch, Readable
from util.layerreader import read_layer_index
from util.problem import Malformed, Problem
from util.storedindex import restored_from
from util.streamlayerformat import LayerSource, StreamLayerMerger

path_prefixes = st.sampled_from([b"", b"rootfs/"])
compressions = st.sampled_from(
    [
        bytes,
        layers.gzipped,
        lambda tar: layers.gzip_members(tar, 600) or layers.gzipped(tar),
        layers.zstd_frame,
        lambda tar: layers.zstd_skippable(b"toc") + layers.zstd_frames(tar, 1000),
    ]
)


def sound(stack: Stack) -> Stack:
    """Return the stack without the entries that would be refused."""
    return model.mended(stack)[0]


@examples(500)
@given(stack=stacks(), dialect=dialects, path_prefix=path_prefixes)
def test_the_merged_tar_lists_what_the_model_says(stack: Stack, dialect: Dialect, path_prefix: bytes) -> None:
    stack = sound(stack)
    output = merged(archives(stack, dialect), path_prefix=path_prefix)
    expected = model.merged_listing(stack, path_prefix=path_prefix)
    assert model.differences(expected, model.listing_of_tar(output, path_prefix=path_prefix)) == []


@examples(500)
@given(stack=stacks())
def test_engine_and_model_agree_on_which_stacks_are_refused_and_why(stack: Stack) -> None:
    _, reasons = model.mended(stack)
    if reasons:
        with pytest.raises(Malformed) as refused:
            merger_of(archives(stack))
        assert type(refused.value).__name__ in reasons
    else:
        merger_of(archives(stack))


@examples(100)
@given(layer=st.lists(entries(), max_size=6), dialect=dialects, size=st.integers(1, 1500))
def test_every_chunking_of_a_layer_gives_the_same_index(layer: list[layers.Entry], dialect: Dialect, size: int) -> None:
    archive = layers.layer(*sound([layer])[0], dialect=dialect)
    whole = index_of(archive)
    assert whole.size == len(archive)
    assert whole.diff_id == Digest.of(archive)
    assert dumped(index_of(layers.in_chunks(archive, size))) == dumped(whole)
    assert dumped(restored_from(dumped(whole), layer="sha256:of-a-test")) == dumped(whole)


class Dripping(BytesIO):
    """A stream whose reads come short, as a network's do."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size, 700) if size is not None and size > 0 else 700)


@examples(100)
@given(stack=stacks(), path_prefix=path_prefixes, compress=compressions)
def test_the_output_is_the_same_however_layers_are_compressed_read_and_indexed(
    stack: Stack, path_prefix: bytes, compress: Callable[[bytes], bytes]
) -> None:
    tars = archives(sound(stack))
    expected = merged(tars, path_prefix=path_prefix)

    def source(blob: bytes) -> LayerSource:
        digest = Digest.of(blob)
        index = read_layer_index(decompressed(Dripping(blob)), layer=str(digest))
        return LayerSource(digest, len(blob), restored_from(dumped(index), layer=str(digest)), lambda: Dripping(blob))

    merger = StreamLayerMerger([source(compress(tar)) for tar in tars], path_prefix=path_prefix)
    assert merger.size == len(expected)
    assert b"".join(merger.get_generator()) == expected
    assert merger.diff_id == Digest("sha256", hashlib.sha256(expected).hexdigest())


@examples(50)
@given(stack=stacks(), path_prefix=path_prefixes)
def test_a_merger_can_stream_twice_and_gives_the_same_bytes(stack: Stack, path_prefix: bytes) -> None:
    sources = [source_of(blob) for blob in archives(sound(stack))]
    first = b"".join(StreamLayerMerger(sources, path_prefix=path_prefix).get_generator())
    assert b"".join(StreamLayerMerger(sources, path_prefix=path_prefix).get_generator()) == first


@examples(100)
@given(stack=stacks())
def test_merging_what_was_merged_changes_nothing(stack: Stack) -> None:
    once = merged(archives(sound(stack)))
    assert model.differences(model.listing_of_tar(once), model.listing_of_tar(merged([once]))) == []


@examples(60)
@given(stack=stacks(), at=st.integers(0, 4))
def test_empty_layers_change_nothing(stack: Stack, at: int) -> None:
    tars = archives(sound(stack))
    assert merged([*tars[:at], layers.END, *tars[at:], b""]) == merged(tars)


@examples(60)
@given(lower=stacks(), upper=stacks())
def test_layers_may_be_merged_in_two_steps(lower: Stack, upper: Stack) -> None:
    stack = sound(lower + upper)
    below, above = stack[: len(lower)], stack[len(lower) :]
    squashed = merged(archives(below))
    assert model.listing_of_tar(merged([squashed, *archives(above)])) == model.listing_of_tar(merged(archives(stack)))


def large_stack(chance: random.Random) -> Stack:
    """Return layers of thousands of entries, most of which nothing happens to, as in real images."""
    folders = [b"/".join(b"%x" % chance.randrange(6) for _ in range(chance.randrange(1, 5))) for _ in range(150)]
    names = [chance.choice(folders) + b"/f%d" % chance.randrange(4000) for _ in range(3000)]
    stack: Stack = []
    for _ in range(4):
        layer: list[layers.Entry] = []
        for name in chance.sample(names, 1200):
            match chance.randrange(40):
                case 0:
                    layer.append(layers.whiteout(name))
                case 1:
                    layer.append(layers.hardlink(name, chance.choice(names)))
                case 2:
                    layer.append(layers.symlink(name, chance.choice((chance.choice(names), b"../x", b"/0/1"))))
                case 3:
                    layer.append(layers.directory(name, mode=0o700))
                case 4:
                    layer.append(layers.file(name, xattrs={b"user.x": b"1"}, mtime_ns=chance.randrange(10**18)))
                case 5 if chance.randrange(10) == 0:
                    layer.append(layers.opaque(chance.choice(folders)))
                case 6 if chance.randrange(10) == 0:
                    layer.append(layers.file(name, chance.randbytes(chance.choice((1 << 20, 3_000_001)))))
                case 7:
                    layer.append(layers.file(name[:3] + b"n" * 120 + name, b"long"))
                case _:
                    layer.append(layers.file(name, b"%d" % len(layer) * chance.choice((0, 1, 300, 1000, 9000))))
        stack.append([layers.directory(folder) for folder in sorted(folders)] + layer)
    return sound(stack)


@pytest.mark.parametrize("seed", range(2))
def test_large_layers_merge_to_what_the_model_says(seed: int) -> None:
    stack = large_stack(random.Random(seed))
    blobs = [layers.gzipped(tar) if at % 2 else tar for at, tar in enumerate(archives(stack))]
    for path_prefix in (b"", b"rootfs/"):
        output = merged(blobs, path_prefix=path_prefix)
        expected = model.merged_listing(stack, path_prefix=path_prefix)
        assert model.differences(expected, model.listing_of_tar(output, path_prefix=path_prefix)) == []


SECOND_PROCESS = """
import hashlib, sys
from test.merging import merged
blobs = [open(name, "rb").read() for name in sys.argv[2:]]
print(hashlib.sha256(merged(blobs, path_prefix=sys.argv[1].encode())).hexdigest())
"""


@pytest.mark.parametrize("path_prefix", [b"", b"rootfs/"], ids=["bare", "rootfs"])
def test_a_second_process_gives_the_same_bytes(tmp_path: Path, path_prefix: bytes) -> None:
    stack = [
        [layers.directory(b"d%d" % at, mode=0o700 + at) for at in range(50)]
        + [layers.file(b"d%d/f%d" % (at % 50, at), b"%d" % at) for at in range(500)]
        + [layers.hardlink(b"d%d/l%d" % (at % 40, at), b"d%d/f%d" % (at % 50, at)) for at in range(200)],
        [layers.whiteout(b"d%d/f%d" % (at % 50, at)) for at in range(0, 500, 3)]
        + [layers.symlink(b"s%d" % at, b"d%d" % at) for at in range(20)],
        [layers.file(b"s%d/new" % at, b"%d" % at, xattrs={b"user.x": b"1", b"user.y": b"2"}) for at in range(20)]
        + [layers.opaque(b"d7")],
    ]
    blobs = archives(stack)
    names = [str(tmp_path / f"{at}.tar") for at in range(len(blobs))]
    for name, blob in zip(names, blobs, strict=True):
        Path(name).write_bytes(blob)
    expected = hashlib.sha256(merged(blobs, path_prefix=path_prefix)).hexdigest()
    root = Path(__file__).parent.parent
    for seed in ("0", "4711"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", SECOND_PROCESS, path_prefix.decode(), *names]
        found = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == expected


@examples(200)
@given(stack=stacks(), dialect=dialects, path_prefix=path_prefixes, data=st.data())
def test_a_range_is_a_slice_of_the_whole(
    stack: Stack, dialect: Dialect, path_prefix: bytes, data: st.DataObject
) -> None:
    merger = merger_of(archives(sound(stack), dialect), path_prefix=path_prefix)
    whole = b"".join(merger.get_generator())
    for _ in range(5):
        begin = data.draw(st.integers(0, len(whole)))
        length = data.draw(st.integers(0, len(whole) - begin + 10))
        assert b"".join(merger.get_range(begin, length)) == whole[begin : begin + length]


def test_a_range_opens_the_layers_that_it_lies_in_and_no_others() -> None:
    opened: list[int] = []

    def counted(number: int, source: LayerSource) -> LayerSource:
        def opener() -> Readable:
            opened.append(number)
            return source.open()

        return LayerSource(source.digest, source.size, source.index, opener)

    blobs = [layers.layer(layers.file(b"%d" % number, bytes(10_000))) for number in range(4)]
    merger = StreamLayerMerger([counted(number, source_of(blob)) for number, blob in enumerate(blobs)])
    whole = b"".join(merger.get_generator())
    opened.clear()
    begin = whole.index(b"2\0\0\0")
    assert b"".join(merger.get_range(begin + 100, 5000)) == whole[begin + 100 : begin + 5100]
    assert opened == [2]


@pytest.mark.parametrize(("begin", "length"), [(1500, 1 << 20), (0, 1), (1024, 512), (20_000, 700_000)])
def test_a_range_tells_of_wrong_bytes_in_a_layer_it_lies_in_before_it_and_after(begin: int, length: int) -> None:
    blob = layers.layer(layers.file(b"a", b"1"), layers.file(b"b", bytes(1 << 20)), layers.file(b"c", b"2"))
    source = source_of(blob)
    for place in (512, len(blob) - 1024 - 512):
        wrong = bytearray(blob)
        wrong[place] = ord("x")
        layer = LayerSource(source.digest, source.size, source.index, partial(BytesIO, bytes(wrong)))
        with pytest.raises(DigestMismatch):
            list(StreamLayerMerger([layer]).get_range(begin, length))


@examples(300)
@given(layer=st.lists(entries(), max_size=8), dialect=dialects, size=st.sampled_from([512, 700, 1536, 1 << 20]))
def test_common_headers_are_read_as_uncommon_ones_are(layer: list[layers.Entry], dialect: Dialect, size: int) -> None:
    tar = layers.layer(*layer, dialect=dialect)
    pieces = [tar[at : at + size] for at in range(0, len(tar), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerreader._Reader, "_common", lambda _: None)
        expected = outcome_of(pieces)
    assert outcome_of(pieces) == expected


@examples(400)
@given(
    layer=st.lists(entries(), min_size=1, max_size=4),
    changes=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 511), st.integers(0, 255), st.booleans()), max_size=3
    ),
)
def test_damaged_headers_are_found_on_either_way(
    layer: list[layers.Entry], changes: list[tuple[int, int, int, bool]]
) -> None:
    tar = bytearray(layers.layer(*layer, dialect="pax"))
    for block, at, value, mended in changes:
        begin = block * 512 % len(tar)
        tar[begin + at] = value
        if mended:
            tar[begin + 148 : begin + 156] = b"%06o\0 " % tarheader.checksum(bytes(tar[begin : begin + 512]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerreader._Reader, "_common", lambda _: None)
        expected = outcome_of([bytes(tar)])
    assert outcome_of([bytes(tar)]) == expected


def outcome_of(pieces: list[bytes]) -> bytes | str:
    try:
        return dumped(index_of(pieces))
    except Problem as problem:
        return str(problem)
