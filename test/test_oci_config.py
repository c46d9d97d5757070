"""The image configuration: every field, what stands in for what is absent, and what is broken."""

import hashlib
import json
from typing import Any

import pytest

from util.digest import Digest
from util.oci import DocumentTooLarge, History, ImageConfig, MalformedConfig, Platform, chain_id

A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))


def parsed(document: Any) -> ImageConfig:
    return ImageConfig.parse(json.dumps(document).encode())


def test_every_field_is_read() -> None:
    document = {
        "created": "2026-02-03T04:05:06Z",
        "author": "Ada",
        "os": "linux",
        "architecture": "arm",
        "variant": "v6",
        "config": {
            "User": "ada:staff",
            "Env": ["A=1"],
            "Entrypoint": ["/bin/sh"],
            "Cmd": ["-c", "true"],
            "WorkingDir": "/srv",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Volumes": {"/b": {}, "/a": {}},
            "Labels": {"k": "v"},
            "StopSignal": "SIGTERM",
            "Healthcheck": {"Test": ["NONE"]},
        },
        "rootfs": {"type": "layers", "diff_ids": [str(A), str(B)]},
        "history": [
            {"created": "2026-02-03T04:05:06Z", "created_by": "ADD", "author": "Ada", "comment": "first"},
            {"empty_layer": True},
        ],
        "x-of-others": [1],
    }
    assert parsed(document) == ImageConfig(
        platform=Platform("linux", "arm", "v6"),
        document=document,
        created="2026-02-03T04:05:06Z",
        author="Ada",
        diff_ids=(A, B),
        history=(History("2026-02-03T04:05:06Z", "ADD", "Ada", "first"), History(empty_layer=True)),
        user="ada:staff",
        env=("A=1",),
        entrypoint=("/bin/sh",),
        cmd=("-c", "true"),
        working_dir="/srv",
        exposed_ports=("80/tcp", "53/udp"),
        volumes=("/b", "/a"),
        labels={"k": "v"},
        stop_signal="SIGTERM",
        healthcheck={"Test": ["NONE"]},
    )


TOP = ("created", "author", "os", "architecture", "variant", "os.version", "config", "rootfs", "history")
RUN = (
    "User Env Entrypoint Cmd WorkingDir ExposedPorts PortSpecs Volumes Labels StopSignal Healthcheck".split()  # noqa: SIM905
)


def test_null_everywhere_is_as_nothing_at_all() -> None:
    nothing = ImageConfig(Platform("linux", "amd64"), {})
    for document in (
        {},
        dict.fromkeys(TOP),
        {"config": dict.fromkeys(RUN), "rootfs": {"type": None, "diff_ids": None}},
    ):
        found = parsed(document)
        assert found.document == document
        assert (
            ImageConfig(**{name: getattr(found, name) for name in ImageConfig.__slots__} | {"document": {}}) == nothing
        )


def test_null_in_a_list_or_a_map_of_texts_is_an_empty_text() -> None:
    found = parsed({"config": {"Env": ["A=1", None], "Labels": {"a": None}}})
    assert (found.env, found.labels) == (("A=1", ""), {"a": ""})


def test_very_old_images_have_one_string_for_a_command_and_lists_for_sets() -> None:
    found = parsed({"config": {"Cmd": "/bin/sh", "Entrypoint": "/init", "Volumes": ["/a"], "PortSpecs": ["80"]}})
    assert (found.cmd, found.entrypoint) == (("/bin/sh",), ("/init",))
    assert (found.volumes, found.exposed_ports) == (("/a",), ("80",))


def test_the_platform_is_normalised_and_the_document_is_not() -> None:
    found = parsed({"os": "linux", "architecture": "aarch64", "variant": "v8"})
    assert found.platform == Platform("linux", "arm64")
    assert found.document["architecture"] == "aarch64"
    assert parsed({"os": "windows", "os.version": "10.0.1"}).platform == Platform("windows", "amd64", None, "10.0.1")


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([], "it should be an object and is an array"),
        ({"created": 7}, "created should be a string and is a number"),
        ({"os": ["linux"]}, "os should be a string and is an array"),
        ({"config": "sh"}, "config should be an object and is a string"),
        ({"config": {"Env": {"A": "1"}}}, r"config\.Env should be an array and is an object"),
        ({"config": {"Env": ["A=1", 2]}}, r"config\.Env\[1\] should be a string and is a number"),
        ({"config": {"Cmd": [["sh"]]}}, r"config\.Cmd\[0\] should be a string and is an array"),
        ({"config": {"User": 1000}}, r"config\.User should be a string and is a number"),
        ({"config": {"Volumes": "/a"}}, r"config\.Volumes should be an object and is a string"),
        ({"config": {"ExposedPorts": [80]}}, r"config\.ExposedPorts\[0\] should be a string and is a number"),
        ({"config": {"Labels": ["a=b"]}}, r"config\.Labels should be an object and is an array"),
        ({"config": {"Labels": {"a": {}}}}, r"config\.Labels\.a should be a string and is an object"),
        ({"config": {"Healthcheck": ["CMD"]}}, r"config\.Healthcheck should be an object and is an array"),
        ({"rootfs": {"diff_ids": [str(A), "b"]}}, r"rootfs\.diff_ids\[1\] is wrong: 'b' is not a digest"),
        ({"rootfs": {"type": "tarballs"}}, r"rootfs\.type is 'tarballs'"),
        ({"rootfs": []}, "rootfs should be an object and is an array"),
        ({"history": {}}, "history should be an array and is an object"),
        ({"history": [{"empty_layer": "yes"}]}, r"history\[0\]\.empty_layer should be true or false and is a string"),
        ({"history": [{}, {"created_by": False}]}, r"history\[1\]\.created_by should be a string and is false"),
    ],
)
def test_a_broken_field_is_named_by_its_path(document: Any, complaint: str) -> None:
    with pytest.raises(MalformedConfig, match=f"the configuration is malformed: {complaint}"):
        parsed(document)


@pytest.mark.parametrize("content", [b"", b"<html>", b'{"a": NaN}', b"[" * 100_000, b'{"a":' * 100_000, b"\xff"])
def test_what_is_no_document_is_malformed_and_never_anything_else(content: bytes) -> None:
    with pytest.raises(MalformedConfig):
        ImageConfig.parse(content)


def test_a_configuration_of_more_than_four_megabytes_is_refused() -> None:
    with pytest.raises(DocumentTooLarge, match="configuration"):
        ImageConfig.parse(b" " * (4 << 20) + b"{}")


def test_whatever_is_accepted_can_be_written_again() -> None:
    deep: Any = "\ud800"
    for _ in range(62):
        deep = [deep]
    found = parsed({"x": deep, "y": 12345678901234567890123, "z": 1.5e300})
    assert json.loads(json.dumps(found.document, ensure_ascii=False).encode()) == found.document


@pytest.mark.parametrize("layers", [[], ["one"], ["one", "two", "three"]])
def test_there_is_a_diff_id_for_every_layer_and_no_more(layers: list[str]) -> None:
    config = parsed({"rootfs": {"type": "layers", "diff_ids": [str(A), str(A)]}})
    assert config.diff_ids_of(["one", "two"]) == (A, A)
    with pytest.raises(
        MalformedConfig, match=rf"rootfs\.diff_ids has 2 entries, and the manifest {len(layers)} layers"
    ):
        config.diff_ids_of(layers)


def test_a_chain_id_is_that_of_the_specification() -> None:
    def sha256(text: str) -> str:
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    assert chain_id([A]) == A
    assert str(chain_id([A, B])) == sha256(f"{A} {B}")
    assert str(chain_id([A, B, C])) == sha256(f"{sha256(f'{A} {B}')} {C}")
