"""Manifests and image indexes: what is an image, what is none, what is broken, and which image suits a platform."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from util.digest import Digest
from util.oci import (
    CONFIG_OCI,
    CONFIG_V2,
    INDEX_OCI,
    LAYER_OCI,
    LAYER_OCI_GZIP,
    LAYER_OCI_ZSTD,
    LAYER_V2,
    LAYER_V2_GZIP,
    LAYER_V2_ZSTD,
    LIST_V2,
    MANIFEST_OCI,
    MANIFEST_V1,
    MANIFEST_V2,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    DocumentTooLarge,
    ImageIndex,
    MalformedManifest,
    Manifest,
    NestedIndex,
    NotAnImage,
    Platform,
    PlatformNotFound,
    UnsupportedLayer,
    parse_manifest,
)

A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))


def descriptor(media_type: str, digest: Digest = A, size: int = 7, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": size, **more}


def manifest(**changes: Any) -> dict[str, Any]:
    """Return an OCI manifest of two layers; a change to None takes the field out."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_OCI,
        "config": descriptor(CONFIG_OCI),
        "layers": [descriptor(LAYER_OCI_GZIP, B, 11), descriptor(LAYER_OCI_ZSTD, C, 13)],
    }
    return {key: value for key, value in (document | changes).items() if value is not None}


def index(*entries: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": INDEX_OCI, "manifests": list(entries), **changes}


def parsed(document: Mapping[str, Any], media_type: str | None = None) -> Any:
    return parse_manifest(json.dumps(document).encode(), media_type)


# --- Manifests --------------------------------------------------------------------------------------------------------


def test_a_manifest_is_its_configuration_and_its_layers_base_first() -> None:
    assert parsed(manifest(annotations={"a": "b"})) == Manifest(
        MANIFEST_OCI,
        Descriptor(CONFIG_OCI, A, 7),
        (Descriptor(LAYER_OCI_GZIP, B, 11), Descriptor(LAYER_OCI_ZSTD, C, 13)),
        {"a": "b"},
    )


@pytest.mark.parametrize("layer", [LAYER_OCI, LAYER_OCI_GZIP, LAYER_OCI_ZSTD, LAYER_V2, LAYER_V2_GZIP, LAYER_V2_ZSTD])
@pytest.mark.parametrize(("media_type", "config"), [(MANIFEST_OCI, CONFIG_OCI), (MANIFEST_V2, CONFIG_V2)])
def test_layers_are_tar_archives_plain_gzip_or_zstd_in_oci_and_docker(media_type: str, config: str, layer: str) -> None:
    found = parsed(manifest(mediaType=media_type, config=descriptor(config), layers=[descriptor(layer)]))
    assert (found.media_type, found.layers[0].media_type) == (media_type, layer)


def test_an_image_without_layers_is_an_image() -> None:
    assert parsed(manifest(layers=[])).layers == ()


def test_a_manifest_without_a_schema_version_is_one() -> None:
    assert parsed(manifest(schemaVersion=None)) == parsed(manifest())


def test_null_is_as_absent() -> None:
    document = {**manifest(), "annotations": None, "artifactType": None, "subject": None, "mediaType": None}
    assert parsed(document) == parsed(manifest())
    layer = descriptor(LAYER_OCI, annotations=None, urls=None, platform=None, artifactType=None)
    assert parsed(manifest(layers=[layer])).layers == (Descriptor(LAYER_OCI, A, 7),)


@pytest.mark.parametrize(
    "served", [None, "", "application/json", "application/octet-stream", "text/plain; charset=utf-8"]
)
def test_a_document_tells_its_own_type_where_nobody_else_does(served: str | None) -> None:
    assert parsed(manifest(mediaType=MANIFEST_V2, config=descriptor(CONFIG_V2)), served).media_type == MANIFEST_V2
    assert parsed(manifest(mediaType=None), served).media_type == MANIFEST_OCI
    assert parsed(index(mediaType=None), served).media_type == INDEX_OCI


def test_a_document_that_does_not_tell_its_type_is_what_it_was_pushed_as() -> None:
    assert parsed(manifest(mediaType=None), f"{MANIFEST_OCI}; charset=utf-8").media_type == MANIFEST_OCI
    assert parsed(index(mediaType=None), LIST_V2).media_type == LIST_V2


@pytest.mark.parametrize("config", ["", "application/octet-stream", "application/json", "text/html"])
def test_docker_images_of_2016_have_odd_types_for_their_configuration(config: str) -> None:
    document = manifest(mediaType=MANIFEST_V2, config=descriptor(config), layers=[descriptor(LAYER_V2_GZIP)])
    assert parsed(document).config.digest == A
    with pytest.raises(NotAnImage):
        parsed(manifest(config=descriptor(config)))


@pytest.mark.parametrize(
    ("document", "served"),
    [
        (manifest(), INDEX_OCI),
        (manifest(), MANIFEST_V2),
        (index(), MANIFEST_OCI),
        (manifest(mediaType=None), LIST_V2),
        (index(mediaType=None), MANIFEST_V2),
        (manifest(mediaType=None), MANIFEST_V1),
        ({"schemaVersion": 1}, MANIFEST_V2),
        (manifest(manifests=[]), None),
        (index(config={}), None),
    ],
)
def test_a_document_with_two_meanings_is_refused(document: Mapping[str, Any], served: str | None) -> None:
    with pytest.raises(MalformedManifest):
        parsed(document, served)


# --- What is no image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        "application/vnd.cncf.helm.config.v1+json",
        "application/vnd.wasm.config.v0+json",
        "application/vnd.oci.empty.v1+json",
        "application/vnd.docker.plugin.v1+json",
        "application/vnd.unknown.config.v1+json",
    ],
)
def test_an_artifact_is_no_image_and_its_type_is_named(config: str) -> None:
    with pytest.raises(NotAnImage, match=config.replace("+", r"\+")):
        parsed(manifest(config=descriptor(config)))


def test_an_artifact_type_makes_an_artifact() -> None:
    with pytest.raises(NotAnImage, match=r"application/x\.sbom"):
        parsed(manifest(artifactType="application/x.sbom"))
    assert parsed(manifest(artifactType=CONFIG_OCI)).layers


@pytest.mark.parametrize(
    "layer",
    ["application/vnd.dev.cosign.simplesigning.v1+json", "application/vnd.in-toto+json", "application/wasm", ""],
)
def test_a_signature_that_looks_like_an_image_is_none(layer: str) -> None:
    with pytest.raises(NotAnImage, match=(layer or "unknown").replace("+", r"\+")):
        parsed(manifest(layers=[descriptor(LAYER_OCI), descriptor(layer, B)]))


@pytest.mark.parametrize("served", ["application/vnd.oci.artifact.manifest.v1+json", "application/pdf"])
def test_a_document_of_an_unknown_type_is_no_image(served: str) -> None:
    with pytest.raises(NotAnImage, match=served.replace("+", r"\+")):
        parsed(manifest(mediaType=None), served)
    with pytest.raises(NotAnImage, match=served.replace("+", r"\+")):
        parsed(manifest(mediaType=served))


@pytest.mark.parametrize(
    ("layer", "fact"),
    [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "foreign"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "foreign"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("application/vnd.oci.image.layer.nydus.blob.v1", "nydus"),
        ("application/vnd.oci.image.layer.v1.tar+lz4", "lz4"),
    ],
)
def test_a_layer_that_cannot_be_read_is_named(layer: str, fact: str) -> None:
    with pytest.raises(UnsupportedLayer, match=rf"{B}.*{fact}"):
        parsed(manifest(layers=[descriptor(LAYER_OCI), descriptor(layer, B)]))


# --- What is broken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (manifest(config=None), "config is missing"),
        (manifest(config=[]), "config should be an object and is an array"),
        (manifest(layers={}), "layers should be an array and is an object"),
        (manifest(layers=[None]), r"layers\[0\] should be an object and is null"),
        (manifest(layers=[descriptor(LAYER_OCI), {}]), r"layers\[1\]\.size is missing"),
        (manifest(layers=[descriptor(LAYER_OCI, size=-1)]), r"layers\[0\]\.size is out of range: -1"),
        (manifest(layers=[descriptor(LAYER_OCI, size=1 << 63)]), r"layers\[0\]\.size is out of range"),
        (
            manifest(layers=[{**descriptor(LAYER_OCI), "size": "7"}]),
            r"layers\[0\]\.size should be an integer and is a string",
        ),
        (manifest(layers=[{**descriptor(LAYER_OCI), "size": True}]), r"size should be an integer and is true"),
        (manifest(layers=[{**descriptor(LAYER_OCI), "size": 7.0}]), r"size should be an integer and is a number"),
        (manifest(config={**descriptor(CONFIG_OCI), "digest": "sha256:xyz"}), r"config\.digest is wrong: 'sha256:xyz'"),
        (manifest(config={**descriptor(CONFIG_OCI), "digest": None}), r"config\.digest is missing"),
        (
            manifest(config={**descriptor(CONFIG_OCI), "mediaType": 7}),
            r"config\.mediaType should be a string and is a number",
        ),
        (manifest(annotations=["a"]), "annotations should be an object and is an array"),
        (manifest(annotations={"a": 1}), r"annotations\.a should be a string and is a number"),
        (manifest(mediaType=2), "mediaType should be a string and is a number"),
        (manifest(schemaVersion=3), "schemaVersion is 3"),
        (manifest(schemaVersion="2"), "schemaVersion should be an integer"),
        (
            index(descriptor(MANIFEST_OCI, platform="linux")),
            r"manifests\[0\]\.platform should be an object and is a string",
        ),
        (index(descriptor(MANIFEST_OCI, platform={"os": 1})), r"manifests\[0\]\.platform\.os should be a string"),
    ],
)
def test_a_broken_field_is_named_by_its_path(document: Mapping[str, Any], complaint: str) -> None:
    with pytest.raises(MalformedManifest, match=complaint):
        parsed(document)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{\0}\0",
        b"\xef\xbb\xbf{}",
        b'{"a": "\xff"}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}",
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b"{} {}",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_document_is_malformed_and_never_anything_else(content: bytes) -> None:
    with pytest.raises(MalformedManifest, match="the manifest is malformed"):
        parse_manifest(content, None)


def test_a_document_larger_than_any_in_use_is_refused_unread() -> None:
    with pytest.raises(DocumentTooLarge, match=str(MAX_DOCUMENT_SIZE + 1)):
        parse_manifest(b"x" * (MAX_DOCUMENT_SIZE + 1), None)


def test_a_document_may_be_as_large_as_is_allowed() -> None:
    content = json.dumps(manifest()).encode()
    assert parse_manifest(content.ljust(MAX_DOCUMENT_SIZE), None) == parse_manifest(content, None)


def test_half_a_character_is_replaced_as_others_do() -> None:
    content = json.dumps(manifest(annotations={"a": "x\ud83dy", "\udc00": "😀"})).encode()
    found = parse_manifest(content, None)
    assert isinstance(found, Manifest)
    assert found.annotations == {"a": "x\ufffdy", "\ufffd": "😀"}


# --- Image indexes ----------------------------------------------------------------------------------------------------


def image(platform: str | None, digest: Digest = A, **more: Any) -> dict[str, Any]:
    """Return an index's entry for an image."""
    told = None
    if platform:
        told = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
    return descriptor(MANIFEST_OCI, digest, platform=told, **more)


def chosen(entries: Sequence[Mapping[str, Any]], wanted: str | None) -> Digest:
    found = parsed(index(*entries))
    assert isinstance(found, ImageIndex)
    return found.choose(Platform.parse(wanted) if wanted else None).digest


ATTESTATION = image("unknown/unknown", C, annotations={"vnd.docker.reference.type": "attestation-manifest"})


def test_the_image_of_the_wanted_platform_is_chosen_wherever_it_stands() -> None:
    entries = [image("linux/arm64", A), image("linux/amd64", B), image("windows/amd64", C)]
    assert [chosen(entries, each) for each in ("linux/arm64", "linux/amd64", "windows/amd64")] == [A, B, C]


def test_no_wish_means_linux_on_amd64() -> None:
    assert chosen([image("linux/arm64", A), image("linux/amd64", B)], None) == B


def test_no_wish_means_the_only_image_there_is() -> None:
    assert chosen([image("linux/s390x", A), ATTESTATION], None) == A


def test_no_wish_among_several_others_is_answered_with_what_there_is() -> None:
    with pytest.raises(
        PlatformNotFound, match=r"no image for linux/amd64; there are: linux/arm64, linux/s390x"
    ) as found:
        chosen([image("linux/arm64", A), image("linux/s390x", B), ATTESTATION], None)
    assert found.value.existing == (Platform("linux", "arm64"), Platform("linux", "s390x"))


def test_a_platform_that_is_not_there_is_answered_with_those_that_are_even_if_it_is_one() -> None:
    with pytest.raises(PlatformNotFound, match=r"no image for linux/arm64; there are: linux/amd64$"):
        chosen([image("linux/amd64"), image("linux/amd64", B)], "linux/arm64")


def test_of_two_images_of_one_platform_the_first_is_chosen() -> None:
    assert chosen([image("linux/amd64", A), image("linux/amd64", B)], "linux/amd64") == A


def test_attestations_and_other_artifacts_are_never_chosen() -> None:
    silent_attestation = descriptor(MANIFEST_OCI, C, annotations={"vnd.docker.reference.type": "attestation-manifest"})
    artifact = image("linux/amd64", C, artifactType="application/x.sbom")
    foreign = descriptor("application/x.signature", C, platform={"os": "linux", "architecture": "amd64"})
    entries = [ATTESTATION, silent_attestation, artifact, foreign, image("linux/amd64", A)]
    assert chosen(entries, None) == chosen(entries, "linux/amd64") == A
    with pytest.raises(PlatformNotFound):
        chosen(entries, "unknown/unknown")


@pytest.mark.parametrize(
    ("variants", "wanted", "expected"),
    [
        (("v6", "v7"), "linux/arm/v7", "v7"),
        (("v7", "v6"), "linux/arm/v6", "v6"),
        (("v5", "v6"), "linux/arm/v7", "v6"),
        (("v5", "v6", "v7"), "linux/arm/v8", "v7"),
        (("v5", "v6", "v7", "v8"), "linux/arm", "v7"),
        (("v6", None), "linux/arm", None),
    ],
)
def test_the_exact_variant_comes_before_the_nearest_lower_one(
    variants: Sequence[str | None], wanted: str, expected: str | None
) -> None:
    digests = {variant: Digest.of(str(variant).encode()) for variant in variants}
    entries = [image("/".join(filter(None, ("linux/arm", each))), digests[each]) for each in variants]
    assert chosen(entries, wanted) == digests[expected]


def test_a_higher_variant_does_not_run() -> None:
    with pytest.raises(PlatformNotFound, match="there are: linux/arm/v7, linux/amd64/v3"):
        chosen([image("linux/arm/v7"), image("linux/amd64/v3")], "linux/arm/v6")


def test_an_image_that_does_not_say_its_platform_is_tried_where_it_is_the_only_one_left() -> None:
    assert chosen([image(None, A)], None) == chosen([image(None, A)], "linux/arm64") == A
    assert chosen([image("linux/amd64", B), image(None, A)], "linux/arm64") == A
    assert chosen([image(None, A), image("linux/arm64", B)], "linux/arm64") == B
    with pytest.raises(PlatformNotFound, match="images that do not say their platform"):
        chosen([image(None, A), image(None, B)], "linux/arm64")


def test_half_a_platform_is_none() -> None:
    assert (
        parsed(index(descriptor(MANIFEST_OCI, platform={"os": "linux", "architecture": ""}))).manifests[0].platform
        is None
    )


@pytest.mark.parametrize("wanted", [None, "linux/arm64"])
def test_an_index_in_an_index_is_told_of_where_it_might_hold_the_image(wanted: str | None) -> None:
    nested = descriptor(INDEX_OCI, B)
    with pytest.raises(NestedIndex, match="inside the index"):
        chosen([nested], wanted)
    assert chosen([nested, image("linux/amd64", A)], "linux/amd64") == A
    assert chosen([nested, image("linux/amd64", A)], None) == A


@pytest.mark.parametrize("entries", [[], [ATTESTATION], [descriptor("application/x.sbom")]])
def test_an_index_without_images_is_no_image(entries: Sequence[Mapping[str, Any]]) -> None:
    with pytest.raises(NotAnImage, match="no container image in it"):
        chosen(entries, None)


def test_an_index_s_entry_is_read_in_full() -> None:
    told = {"os": "windows", "architecture": "amd64", "os.version": "10.0.20348.1"}
    [entry] = parsed(
        index(descriptor(MANIFEST_V2, platform=told, annotations={"a": "b"}), annotations={"c": "d"})
    ).manifests
    assert entry == Descriptor(MANIFEST_V2, A, 7, Platform("windows", "amd64", None, "10.0.20348.1"), {"a": "b"})
