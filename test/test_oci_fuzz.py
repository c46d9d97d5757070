"""Documents with anything anywhere: each is a value that every format can take, or a Problem that says why not."""

import contextlib
import copy
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from formats import installed_formatters
from formats.tarimageformatter import TarImageFormatter
from formats.testing import CONFIG, MemoryRootfs, source_image
from test.test_oci import descriptor, image, index, manifest
from test.test_oci_schema1 import manifest as schema1
from util.oci import LAYER_OCI, ImageIndex, parse_manifest, signed_payload
from util.problem import Inexpressible, Problem

TEXTS = st.text(max_size=12) | st.sampled_from(
    ["\ud800", "/", "80-90/tcp", "a=b", "x:y", "sha256:00", LAYER_OCI, "0:0"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything in `value`, itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    document = copy.deepcopy(document)
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return document


def with_anything_anywhere(document: Any) -> st.SearchStrategy[Any]:
    return st.builds(changed, st.just(document), st.sampled_from(places(document)), ANYTHING)


@settings(max_examples=300)
@given(
    with_anything_anywhere(manifest(annotations={"a": "b"}))
    | with_anything_anywhere(index(image("linux/arm/v7", annotations={"a": "b"}), image("linux/amd64")))
    | with_anything_anywhere(schema1(signatures=[{"protected": "e30"}]))
)
@example(index(descriptor(LAYER_OCI, platform={"os": "", "architecture": "\ud800"})))
def test_a_manifest_is_a_value_or_a_problem(document: Any) -> None:
    content = json.dumps(document).encode()
    with contextlib.suppress(Problem):
        found = parse_manifest(content, None)
        if isinstance(found, ImageIndex):
            found.choose()
    with contextlib.suppress(Problem):
        signed_payload(content)


@settings(max_examples=300)
@given(with_anything_anywhere(dict(CONFIG)))
def test_an_image_is_formatted_exactly_or_refused_whatever_its_configuration_says(document: Any) -> None:
    try:
        sample = source_image(document)
    except Problem:
        return
    for formatter in installed_formatters().values():
        if not isinstance(formatter, TarImageFormatter):
            continue
        rootfs = MemoryRootfs(path_prefix=formatter.path_prefix, changes=formatter.changes(sample))
        try:
            size = formatter.size(sample, rootfs)
        except Inexpressible:
            continue
        assert sum(map(len, formatter.stream_generator(sample, rootfs))) == size
