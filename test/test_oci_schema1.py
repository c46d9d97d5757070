"""Docker's schema 1: layers turned round, empty ones dropped, and a configuration made from the v1 images."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from util.digest import Digest
from util.oci import (
    MANIFEST_V1,
    MANIFEST_V1_SIGNED,
    History,
    MalformedConfig,
    MalformedManifest,
    Platform,
    Schema1Manifest,
    parse_manifest,
    signed_payload,
)

IDS = [f"{at:064x}" for at in range(1, 5)]
BLOBS = [Digest.of(name) for name in (b"base", b"empty", b"top")]
V1: Sequence[Mapping[str, Any]] = (
    {
        "id": IDS[0],
        "created": "2015-01-01T00:00:00Z",
        "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop) ADD file in /"]},
        "Size": 1234,
    },
    {
        "id": IDS[1],
        "parent": IDS[0],
        "created": "2015-01-02T00:00:00Z",
        "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop) ENV A=1"]},
        "throwaway": True,
    },
    {
        "id": IDS[2],
        "parent": IDS[1],
        "created": "2015-01-03T00:00:00Z",
        "author": "Ada",
        "comment": "the top",
        "container_config": {"Cmd": None, "Env": ["NOT=THIS"]},
        "config": {"Cmd": ["/bin/greet"], "Env": ["A=1"], "User": "ada", "Labels": None},
        "architecture": "arm",
        "os": "linux",
        "docker_version": "1.9.1",
        "Size": 5,
        "parent_id": "x",
        "layer_id": "y",
    },
)


def manifest(
    v1: Sequence[Mapping[str, Any] | str] = V1, blobs: Sequence[Digest] = BLOBS, **changes: Any
) -> dict[str, Any]:
    """Return a manifest of the v1 images `v1`, given base first."""
    texts = [image if isinstance(image, str) else json.dumps(image) for image in v1]
    return {
        "schemaVersion": 1,
        "name": "acme/greet",
        "tag": "1.0",
        "architecture": "arm",
        "fsLayers": [{"blobSum": str(blob)} for blob in reversed(blobs)],
        "history": [{"v1Compatibility": text} for text in reversed(texts)],
        **changes,
    }


def parsed(document: Mapping[str, Any], media_type: str | None = None) -> Schema1Manifest:
    found = parse_manifest(json.dumps(document).encode(), media_type)
    assert isinstance(found, Schema1Manifest)
    return found


def signed(document: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return `document` as Docker wrote it, and as it signed it."""
    payload = json.dumps(document, indent=3).encode()
    tail = payload[payload.rindex(b"\n}") :]
    header = {
        "formatLength": len(payload) - len(tail),
        "formatTail": base64.urlsafe_b64encode(tail).decode().rstrip("="),
        "time": "2015-01-03T00:00:00Z",
    }
    protected = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
    signature = json.dumps([{"header": {"alg": "ES256"}, "signature": "c2ln", "protected": protected}])
    return payload[: -len(tail)] + b',\n   "signatures": ' + signature.encode() + b"\n}", payload


# --- Layers -----------------------------------------------------------------------------------------------------------


def test_layers_stand_base_first_without_the_empty_ones() -> None:
    assert parsed(manifest()).layers == (BLOBS[0], BLOBS[2])


def test_a_manifest_is_known_by_its_schema_and_signed_by_its_signatures() -> None:
    assert parsed(manifest()).media_type == MANIFEST_V1
    assert parsed(manifest(signatures=[])).media_type == MANIFEST_V1_SIGNED
    assert parsed(manifest(), MANIFEST_V1_SIGNED).media_type == MANIFEST_V1_SIGNED
    assert parsed(manifest(mediaType=MANIFEST_V1), MANIFEST_V1_SIGNED).layers == parsed(manifest()).layers


def test_the_same_layer_may_come_twice() -> None:
    assert parsed(manifest(blobs=[BLOBS[0]] * 3)).layers == (BLOBS[0], BLOBS[0])


def test_a_v1_image_that_is_repeated_counts_once() -> None:
    repeated = manifest([V1[0], V1[0], *V1[1:]], [BLOBS[0], BLOBS[0], *BLOBS[1:]])
    assert parsed(repeated) == parsed(manifest())


# --- The configuration ------------------------------------------------------------------------------------------------


def test_the_configuration_is_the_top_image_s_without_what_speaks_of_its_place() -> None:
    config = parsed(manifest()).config
    assert config.platform == Platform("linux", "arm", "v7")
    assert (config.user, config.env, config.cmd, config.author) == ("ada", ("A=1",), ("/bin/greet",), "Ada")
    assert config.created == "2015-01-03T00:00:00Z"
    kept = {
        "created",
        "author",
        "comment",
        "container_config",
        "config",
        "architecture",
        "os",
        "docker_version",
        "history",
    }
    assert config.document.keys() == kept
    assert config.diff_ids == ()


def test_the_history_is_made_of_the_v1_images() -> None:
    assert parsed(manifest()).config.history == (
        History("2015-01-01T00:00:00Z", "/bin/sh -c #(nop) ADD file in /"),
        History("2015-01-02T00:00:00Z", "/bin/sh -c #(nop) ENV A=1", empty_layer=True),
        History("2015-01-03T00:00:00Z", None, "Ada", "the top"),
    )


def test_a_v1_image_that_says_nothing_is_linux_on_amd64() -> None:
    config = parsed(manifest([{"id": IDS[0]}], BLOBS[:1])).config
    assert (config.platform, config.history) == (Platform("linux", "amd64"), (History(),))


def test_a_rootfs_in_a_v1_image_is_not_believed() -> None:
    config = parsed(manifest([{"id": IDS[0], "rootfs": {"diff_ids": [str(BLOBS[1])]}}], BLOBS[:1])).config
    assert config.diff_ids == ()


# --- What is broken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (manifest(blobs=BLOBS[:2]), "history has 3 entries, and fsLayers 2"),
        (manifest([], []), "fsLayers is empty"),
        (manifest(fsLayers=None), "history has 3 entries, and fsLayers 0"),
        (manifest(fsLayers=[{"blobSum": "x"}] * 3), r"fsLayers\[2\]\.blobSum is wrong: 'x'"),
        (manifest(history=[{}] * 3), r"history\[2\]\.v1Compatibility is missing"),
        (manifest(["{", *V1[1:]]), r"the v1 image in the manifest's history\[2\] is malformed: Expecting"),
        (manifest(["[]", *V1[1:]]), r"history\[2\] is malformed: it should be an object and is an array"),
        (manifest([{}, *V1[1:]]), r"history\[2\] is malformed: id is missing"),
        (manifest([{**V1[0], "throwaway": 1}, *V1[1:]]), r"throwaway should be true or false and is a number"),
        (manifest([{**V1[0], "parent": IDS[3]}, *V1[1:]]), f"has the image {IDS[0]} on {IDS[3]}, not on nothing"),
        (manifest([V1[0], V1[2]], BLOBS[:2]), f"has the image {IDS[2]} on {IDS[1]}, not on {IDS[0]}"),
        (manifest([*V1[:2], {**V1[0], "parent": IDS[1]}]), f"has the image {IDS[0]} in two places"),
        (
            manifest([{**V1[0], "container_config": []}, *V1[1:]]),
            "container_config should be an object and is an array",
        ),
    ],
)
def test_a_broken_manifest_is_malformed(document: Mapping[str, Any], complaint: str) -> None:
    with pytest.raises(MalformedManifest, match=complaint):
        parsed(document)


def test_a_broken_configuration_is_told_of_as_one() -> None:
    with pytest.raises(MalformedConfig, match=r"config\.User should be a string"):
        parsed(manifest([*V1[:2], {**V1[2], "config": {"User": 7}}]))


# --- What is signed ---------------------------------------------------------------------------------------------------


def test_the_digest_of_a_signed_manifest_is_of_what_was_signed() -> None:
    content, payload = signed(manifest())
    assert signed_payload(content) == payload
    assert parse_manifest(content, MANIFEST_V1_SIGNED) == parsed(manifest(), MANIFEST_V1_SIGNED)


def test_without_signatures_everything_is_what_the_digest_is_of() -> None:
    content = json.dumps(manifest()).encode()
    assert signed_payload(content) == content


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ({"formatTail": "fQ"}, "formatLength is missing"),
        ({"formatLength": 1 << 40, "formatTail": "fQ"}, "formatLength reaches past the manifest's end"),
        ({"formatLength": 1}, "formatTail is missing"),
        ({"formatLength": 1, "formatTail": "a"}, "formatTail is not in base64url"),
        ({"formatLength": 1, "formatTail": "é"}, "formatTail is not in base64url"),
    ],
)
def test_a_broken_signature_is_malformed(header: Mapping[str, Any], complaint: str) -> None:
    protected = base64.urlsafe_b64encode(json.dumps(header).encode()).decode()
    with pytest.raises(MalformedManifest, match=complaint):
        signed_payload(json.dumps(manifest(signatures=[{"protected": protected}])).encode())
