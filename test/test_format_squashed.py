"""The squashed archive: its documents against what moby's and podman's readers ask of them."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from typing import Any

import pytest

from formats.dockerreference import NoDockerReference
from formats.squashed import SquashedDockerImage
from formats.testing import CONFIG, MemoryRootfs, source_image


class Archive:
    """A squashed archive, read by Python's tarfile. `config` is the image's before it was squashed."""

    def __init__(self, config: Mapping[str, Any] = CONFIG, **changes: Any) -> None:
        self.rootfs = MemoryRootfs()
        self.image = source_image(config, **changes)
        output = b"".join(SquashedDockerImage().stream_generator(self.image, self.rootfs))
        with tarfile.open(fileobj=io.BytesIO(output)) as tar:
            self.members = tar.getmembers()
            self.files = {each.name: tar.extractfile(each).read() for each in self.members if each.isfile()}  # type: ignore[union-attr]
        [self.manifest] = json.loads(self.files["manifest.json"])
        self.config: dict[str, Any] = json.loads(self.files[self.manifest["Config"]])


# --- Order and documents ----------------------------------------------------------------------------------------------


def test_the_layer_comes_before_the_documents_that_carry_its_digest() -> None:
    archive = Archive()
    folder = archive.image.image_id
    assert [each.name for each in archive.members] == [
        folder,
        f"{folder}/VERSION",
        f"{folder}/json",
        f"{folder}/layer.tar",
        archive.manifest["Config"],
        "manifest.json",
        "repositories",
    ]
    assert archive.files[f"{folder}/layer.tar"] == archive.rootfs.content
    assert {each.mtime for each in archive.members} == {0}


def test_the_layer_s_header_holds_however_large_it_is() -> None:
    class Large(MemoryRootfs):
        @property
        def size(self) -> int:
            return 20 << 30

    head = SquashedDockerImage().head(source_image(), Large())
    with tarfile.open(fileobj=io.BytesIO(head + bytes(1024))) as tar:
        *_, layer = [tar.next() for _ in range(4)]
    assert layer is not None
    assert (layer.name.rpartition("/")[2], layer.size) == ("layer.tar", 20 << 30)


def test_the_manifest_names_what_is_there() -> None:
    archive = Archive()
    assert archive.manifest == {
        "Config": hashlib.sha256(archive.files[archive.manifest["Config"]]).hexdigest() + ".json",
        "RepoTags": ["registry.example.com:8443/acme/greet:1.0.squash"],
        "Layers": [f"{archive.image.image_id}/layer.tar"],
    }


def test_the_diff_id_is_that_of_the_bytes() -> None:
    archive = Archive()
    diff_id = hashlib.sha256(archive.rootfs.content).hexdigest()
    assert archive.config["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}


@pytest.mark.parametrize("history", [CONFIG["history"], [], None, [{"created_by": "a"}] * 120])
def test_there_are_as_many_entries_with_a_layer_as_layers_and_the_others_stay_to_be_read(history: Any) -> None:
    archive = Archive({**CONFIG, "history": history})
    entries = archive.config["history"]
    assert [entry.get("empty_layer", False) for entry in entries] == [True] * len(history or ()) + [False]
    assert [entry.get("created_by") for entry in entries[:-1]] == [entry["created_by"] for entry in history or ()]
    assert entries[-1] == {
        "created": CONFIG["created"],
        "created_by": "squash registry.example.com:8443/acme/greet:1.0",
        "comment": f"2 layers of {archive.image.manifest_digest} in one",
    }


def test_the_configuration_is_kept_in_every_field() -> None:
    config = {
        **CONFIG,
        "docker_version": "20.10",
        "x-of-ours": {"deep": [1, 2.5, None]},
        "container_config": {"Cmd": None},
    }
    archive = Archive(config)
    layered = {"rootfs": None, "history": None}
    assert {**archive.config, **layered} == {**config, **layered}
    assert archive.config["config"] == CONFIG["config"]


def test_what_very_old_images_leave_out_is_added() -> None:
    archive = Archive({"architecture": None, "config": None})
    assert (archive.config["os"], archive.config["architecture"]) == ("linux", "amd64")
    assert Archive({**CONFIG, "os": "windows", "architecture": "x86_64"}).config["architecture"] == "x86_64"


def test_readers_of_2015_find_what_they_look_for() -> None:
    archive = Archive()
    folder = archive.image.image_id
    assert archive.files[f"{folder}/VERSION"] == b"1.0"
    assert json.loads(archive.files["repositories"]) == {"registry.example.com:8443/acme/greet": {"1.0.squash": folder}}
    v1 = json.loads(archive.files[f"{folder}/json"])
    assert v1 == {key: value for key, value in CONFIG.items() if key not in ("rootfs", "history")} | {"id": folder}


def test_an_image_without_layers_has_one_that_is_empty() -> None:
    image = source_image({"rootfs": {"type": "layers", "diff_ids": []}}, layer_count=0)
    output = b"".join(SquashedDockerImage().stream_generator(image, MemoryRootfs({})))
    with tarfile.open(fileobj=io.BytesIO(output)) as tar:
        assert tar.getmember(f"{image.image_id}/layer.tar").size == 1024


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"host": "localhost:5000"}, "localhost:5000/acme/greet:1.0.squash"),
        ({"host": "10.0.0.1"}, "10.0.0.1/acme/greet:1.0.squash"),
        ({"repository": "a/b.c/d__e--f"}, "registry.example.com:8443/acme/a/b.c/d__e--f:1.0.squash"),
        ({"tag": "t" * 121}, f"registry.example.com:8443/acme/greet:{'t' * 121}.squash"),
        ({"tag": f"sha256:{'0f' * 32}"}, f"registry.example.com:8443/acme/greet:sha256-{'0f' * 32}.squash"),
        ({"tag": f"sha512:{'0f' * 64}"}, f"registry.example.com:8443/acme/greet:sha512-{'0f' * 32}.squash"),
    ],
)
def test_the_image_is_named_host_namespace_repository_and_tag_squash(changes: Mapping[str, Any], expected: str) -> None:
    assert Archive(**changes).manifest["RepoTags"] == [expected]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"host": "registry_1"}, "registry_1"),
        ({"host": "-registry.example.com"}, "-registry.example.com"),
        ({"host": "registry.example.com:https"}, "registry.example.com:https"),
        ({"namespace": "Acme"}, "Acme/greet"),
        ({"repository": "a___b"}, "acme/a___b"),
        ({"repository": "r" * 255}, "r" * 255),
        ({"tag": "t" * 122}, "t" * 122),
        ({"tag": "1.0+git"}, "1.0+git"),
        ({"tag": "-1"}, "-1"),
    ],
)
def test_a_name_that_docker_would_refuse_is_refused_and_named(changes: Mapping[str, Any], named: str) -> None:
    with pytest.raises(NoDockerReference, match=re.escape(named)):
        SquashedDockerImage().check(source_image(**changes), MemoryRootfs())
