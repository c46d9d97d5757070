"""The ACI's manifest, field by field: one test for each row of what Docker's configuration becomes in appc's words."""

import io
import json
import re
import tarfile
from collections.abc import Mapping
from typing import Any

import pytest

from formats.aci import NOTE, ACIImage, platform_of_appc
from formats.appc import AppcPlatformNotFound, NoAppcName, NoAppcPlatform, appc_of_platform
from formats.testing import CONFIG, FILES, MemoryRootfs, source_image
from util.oci import Platform

IDENTIFIER = r"[a-z0-9]+([-._~/][a-z0-9]+)*"


def manifest(
    run: Mapping[str, Any] | None = None, *, files: Mapping[str, bytes | None] = FILES, **changes: Any
) -> dict[str, Any]:
    """Return the manifest of an image that is run as `run` says; with None, of the suite's own."""
    config = CONFIG if run is None else {**CONFIG, "config": {"Cmd": ["true"], **run}}
    image = source_image({**config, **changes.pop("document", {})}, **changes)
    output = b"".join(ACIImage().stream_generator(image, MemoryRootfs(files, path_prefix=b"rootfs/")))
    with tarfile.open(fileobj=io.BytesIO(output)) as tar:
        content = tar.extractfile("manifest")
        assert content is not None
        return dict(json.load(content))


def app(run: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return dict(manifest(run, **changes)["app"])


def named(entries: list[Mapping[str, str]]) -> dict[str, str]:
    names = [entry["name"] for entry in entries]
    assert len(set(names)) == len(names)
    return {entry["name"]: entry["value"] for entry in entries}


def annotations(run: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, str]:
    found = named(manifest(run, **changes)["annotations"])
    assert all(found.values())
    assert not [name for name in found if not re.fullmatch(IDENTIFIER, name)]
    return found


# --- The archive ------------------------------------------------------------------------------------------------------


def test_the_manifest_stands_first_and_the_root_file_system_after_it() -> None:
    output = b"".join(ACIImage().stream_generator(source_image(), MemoryRootfs(path_prefix=b"rootfs/")))
    with tarfile.open(fileobj=io.BytesIO(output)) as tar:
        first, second, *others = tar.getmembers()
    assert (first.name, first.type, first.mode, first.mtime) == ("manifest", tarfile.REGTYPE, 0o644, 0)
    assert (second.name, second.type) == ("rootfs", tarfile.DIRTYPE)
    assert others
    assert all(member.name.startswith("rootfs/") for member in others)


# --- acVersion, name, labels ------------------------------------------------------------------------------------------


def test_kind_and_version_are_those_of_the_last_specification() -> None:
    assert (manifest()["acKind"], manifest()["acVersion"]) == ("ImageManifest", "0.8.11")


def test_the_name_is_host_namespace_and_repository_without_the_port() -> None:
    assert manifest()["name"] == "registry.example.com/acme/greet"
    assert manifest(host="Registry.Example.com", repository="a/b_c")["name"] == "registry.example.com/acme/a/b_c"
    assert manifest(host="localhost")["name"] == "localhost/acme/greet"


@pytest.mark.parametrize(
    "path", [("Acme", "greet"), ("acme", "gr__eet"), ("acme", "greet-"), ("ac me", "x"), ("é", "x")]
)
def test_a_name_that_would_have_to_be_changed_is_refused_and_named(path: tuple[str, str]) -> None:
    with pytest.raises(NoAppcName, match=re.escape("/".join(path))):
        manifest(namespace=path[0], repository=path[1])


def test_a_host_that_no_identifier_can_hold_is_refused() -> None:
    with pytest.raises(NoAppcName, match=r"\[::1\]"):
        manifest(host="[::1]:5000")


def test_the_version_is_the_tag() -> None:
    assert named(manifest(tag="2.0-rc.1")["labels"])["version"] == "2.0-rc.1"
    assert named(manifest(tag="sha256:ab")["labels"])["version"] == "sha256:ab"


@pytest.mark.parametrize(
    ("docker", "appc"),
    [
        ("linux/amd64", ("linux", "amd64")),
        ("linux/x86_64", ("linux", "amd64")),
        ("linux/386", ("linux", "i386")),
        ("linux/arm64", ("linux", "aarch64")),
        ("linux/arm64/v8", ("linux", "aarch64")),
        ("linux/arm", ("linux", "armv7l")),
        ("linux/arm/v7", ("linux", "armv7l")),
        ("linux/arm/v6", ("linux", "armv6l")),
        ("linux/ppc64", ("linux", "ppc64")),
        ("linux/ppc64le", ("linux", "ppc64le")),
        ("linux/s390x", ("linux", "s390x")),
        ("freebsd/amd64", ("freebsd", "amd64")),
        ("freebsd/386", ("freebsd", "i386")),
        ("freebsd/arm/v6", ("freebsd", "arm")),
        ("freebsd/arm/v7", ("freebsd", "arm")),
        ("darwin/amd64", ("darwin", "x86_64")),
        ("darwin/386", ("darwin", "i386")),
    ],
)
def test_os_and_arch_are_appc_s_own_names_there_and_back(docker: str, appc: tuple[str, str]) -> None:
    platform = Platform.parse(docker)
    labels = named(manifest(platform=platform)["labels"])
    assert (labels["os"], labels["arch"]) == appc == appc_of_platform(platform)
    assert platform.matches(platform_of_appc(*appc))


@pytest.mark.parametrize(
    "platform",
    [
        "linux/riscv64",
        "linux/arm/v5",
        "linux/arm64/v9",
        "linux/amd64/v3",
        "linux/mips64le",
        "windows/amd64",
        "darwin/arm64",
    ],
)
def test_a_platform_without_a_name_is_refused_and_never_called_like_the_server_s_own(platform: str) -> None:
    with pytest.raises(NoAppcPlatform, match=platform):
        manifest(platform=Platform.parse(platform))


@pytest.mark.parametrize("names", [("linux", "aarch64_be"), ("linux", "arm64"), ("linux", ""), ("plan9", "amd64")])
def test_an_arch_that_appc_does_not_know_is_refused_with_those_it_does(names: tuple[str, str]) -> None:
    with pytest.raises(AppcPlatformNotFound, match="linux/aarch64"):
        platform_of_appc(*names)


# --- app --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [{"Cmd": None}, {"Cmd": [], "Entrypoint": [], "Env": ["A=b"]}])
def test_there_is_no_app_where_there_is_nothing_to_run(run: Mapping[str, Any]) -> None:
    assert "app" not in manifest(run)


def test_exec_is_entrypoint_and_cmd_as_they_are_never_a_shell() -> None:
    assert app()["exec"] == ["/usr/bin/greet", "--loud", "world"]
    assert app({"Cmd": ["python3", "-c", "print('a b')"]})["exec"] == ["python3", "-c", "print('a b')"]
    assert app({"Cmd": "/bin/very-old"})["exec"] == ["/bin/very-old"]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", ("0", "0")),
        ("root", ("root", "0")),
        ("ada", ("ada", "100")),
        ("1000", ("1000", "100")),
        ("ada:", ("ada", "100")),
        ("ada:staff", ("ada", "staff")),
        ("1000:50", ("1000", "50")),
        (":50", ("0", "50")),
        ("nobody", ("nobody", "nobody")),
        ("4711", ("4711", "4711")),
    ],
)
def test_the_group_that_is_not_said_is_the_user_s_own_in_the_image(user: str, expected: tuple[str, str]) -> None:
    run = app({"User": user})
    assert (run["user"], run["group"]) == expected


@pytest.mark.parametrize("passwd", [b"ada\n", b"ada:x:1000\n", b"ada:x:1000:abc::\n", b"\xff\xfe:\n", b""])
def test_a_passwd_that_does_not_tell_is_as_none(passwd: bytes) -> None:
    run = app({"User": "ada"}, files={"etc": None, "etc/passwd": passwd})
    assert (run["user"], run["group"]) == ("ada", "ada")
    assert app({"User": "ada"}, files={})["group"] == "ada"


def test_an_environment_value_may_hold_an_equals_sign_and_the_last_of_two_wins_in_the_first_s_place() -> None:
    run = app({"Env": ["A=1", "B=x=y", "A=2", "EMPTY="]})
    assert run["environment"] == [
        {"name": "A", "value": "2"},
        {"name": "B", "value": "x=y"},
        {"name": "EMPTY", "value": ""},
    ]


def test_environment_variables_that_appc_cannot_name_are_left_out_with_a_note() -> None:
    run = {"Env": ["NO_VALUE", "=C:=C:\\", "1A=x", "ü=x", "a.b-c=ok", ""]}
    assert named(app(run)["environment"]) == {"a.b-c": "ok"}
    assert annotations(run)[NOTE] == (
        "environment variable 'NO_VALUE', environment variable '', environment variable '1A', environment variable 'ü'"
    )


@pytest.mark.parametrize(("working_dir", "expected"), [("/srv", "/srv"), ("srv/x", "/srv/x"), ("", None), (None, None)])
def test_the_working_directory_is_absolute_or_not_there(working_dir: str | None, expected: str | None) -> None:
    assert app({"WorkingDir": working_dir}).get("workingDirectory") == expected


def test_ports_are_named_by_number_and_protocol_and_a_range_is_a_count() -> None:
    exposed = ["6379/tcp", "53/udp", "53/TCP", "80", "8000-8010/tcp", "9000/sctp"]
    ports = app({"ExposedPorts": {port: {} for port in exposed}})["ports"]
    assert [(each["name"], each["port"], each["protocol"], each["count"]) for each in ports] == [
        ("53-tcp", 53, "tcp", 1),
        ("53-udp", 53, "udp", 1),
        ("80-tcp", 80, "tcp", 1),
        ("6379-tcp", 6379, "tcp", 1),
        ("8000-8010-tcp", 8000, "tcp", 11),
        ("9000-sctp", 9000, "sctp", 1),
    ]
    assert {each["socketActivated"] for each in ports} == {False}


def test_ports_that_are_none_are_left_out_with_a_note() -> None:
    run: dict[str, Any] = {
        "ExposedPorts": {"80/tcp": {}, "80": {}, "90-80": {}, "0": {}, "70000": {}, "8080:80": {}, "http": {}, "٣": {}}
    }
    assert [each["name"] for each in app(run)["ports"]] == ["80-tcp"]
    note = "port '0', port '70000', port '8080:80', port '90-80', port 'http', port '٣'"
    assert annotations(run)[NOTE] == note


def test_the_port_specs_of_old_images_stand_in_for_exposed_ports() -> None:
    assert [each["name"] for each in app({"PortSpecs": ["8080"], "ExposedPorts": None})["ports"]] == ["8080-tcp"]


def test_mount_points_are_named_after_their_paths_and_no_name_comes_twice() -> None:
    volumes = ["/var/lib/x", "/a", "/A", "/a-1", "/", "data", "/data/", "/é", "/v2.1//log", ""]
    points = app({"Volumes": {volume: {} for volume in volumes}})["mountPoints"]
    assert [(each["name"], each["path"]) for each in points] == [
        ("volume", "/"),
        ("volume-a", "/A"),
        ("volume-a-1", "/a"),
        ("volume-a-1-1", "/a-1"),
        ("volume-data", "/data"),
        ("volume-v2-1-log", "/v2.1/log"),
        ("volume-var-lib-x", "/var/lib/x"),
        ("volume-1", "/é"),
    ]
    assert {each["readOnly"] for each in points} == {False}


def test_mount_points_do_not_depend_on_the_order_of_the_document() -> None:
    volumes = ["/b", "/A", "/a"]
    assert app({"Volumes": dict.fromkeys(volumes)}) == app({"Volumes": dict.fromkeys(reversed(volumes))})


def test_labels_are_user_labels() -> None:
    assert app()["userLabels"] == {"org.example.purpose": "to be formatted"}
    assert "userLabels" not in app({"Labels": None})


def test_there_are_no_isolators_and_no_dependencies() -> None:
    assert "isolators" not in app({"Memory": 1 << 20, "CpuShares": 2, "Cpuset": "0,1"})
    assert not {"dependencies", "pathWhitelist"} & manifest().keys()


# --- annotations ------------------------------------------------------------------------------------------------------


def test_annotations_stand_at_the_top_where_readers_look() -> None:
    assert annotations(document={"comment": "made by hand"}) == {
        "created": "2026-02-03T04:05:06.789Z",
        "authors": "Ada <ada@example.com>",
        "homepage": "https://registry.example.com:8443/acme/greet:1.0",
        "docker-comment": "made by hand",
        "appc.io/docker/originalname": "registry.example.com:8443/acme/greet:1.0",
        "appc.io/docker/registryurl": "registry.example.com:8443",
        "appc.io/docker/repository": "acme/greet",
        "appc.io/docker/tag": "1.0",
        "appc.io/docker/imageid": source_image().image_id,
        "appc.io/docker/manifesthash": str(source_image().manifest_digest),
        "appc.io/docker/entrypoint": '["/usr/bin/greet", "--loud"]',
        "appc.io/docker/cmd": '["world"]',
    }
    assert "annotations" not in app()


def test_annotations_that_would_be_empty_are_not_there() -> None:
    found = annotations(document={"author": "", "created": None, "config": None, "comment": 7})
    assert not {"authors", "created", "docker-comment", "appc.io/docker/cmd", NOTE} & found.keys()


@pytest.mark.parametrize(
    "created", ["2026-02-03T04:05:06Z", "1970-01-01T00:00:00Z", "2026-02-03T04:05:06.000000001+05:30"]
)
def test_a_creation_date_is_kept_as_written(created: str) -> None:
    assert annotations(document={"created": created})["created"] == created


@pytest.mark.parametrize(
    "created", ["", "yesterday", "2026-02-03", "2026-02-30T00:00:00Z", "2026-02-03 04:05:06Z", "0001-01-01T00:00:00Z"]
)
def test_a_creation_date_that_is_none_is_left_out(created: str) -> None:
    assert "created" not in annotations(document={"created": created})
