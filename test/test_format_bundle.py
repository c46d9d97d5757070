"""The runtime bundle: its configuration, rule by rule, and runc and umoci, which have the last word.

OCI image-spec, conversion.md; OCI runtime-spec, config.md.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from formats.bundle import NoRuntimeConfig, RuntimeBundle
from formats.squashed import SquashedDockerImage
from formats.testing import CONFIG, FILES, MemoryRootfs, source_image
from formats.users import UserNotInImage
from test import layers
from test.clients import program, run
from test.merging import source_of
from util.oci import Platform
from util.streamlayerformat import StreamLayerMerger

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nbroken\nada:x:1000:100:Ada:/home/ada:/bin/sh\nodd:x:x:y::/:\n007:x:9:9::/:\n"
GROUP = b"root:x:0:\nusers:x:100:ada\nwheel:x:10:root,ada\naudio:x:29:ada,bob\nempty:x:30:\nodd:x:z:ada\n"
USERS: Mapping[str, bytes | None] = {"etc": None, "etc/passwd": PASSWD, "etc/group": GROUP}


def configured(run: Mapping[str, Any] | None = None, files: Mapping[str, bytes | None] = USERS, **changes: Any) -> Any:
    """Return the configuration of a bundle of an image that says `run`."""
    document = {"config": {"Cmd": ["true"], **(run or {})}, **changes.pop("document", {})}
    image, rootfs = source_image(document, **changes), MemoryRootfs(files, path_prefix=b"rootfs/")
    output = b"".join(RuntimeBundle().stream_generator(image, rootfs))
    with tarfile.open(fileobj=io.BytesIO(output)) as tar:
        first = tar.next()
        assert first is not None
        assert (first.name, first.mode) == ("config.json", 0o644)
        stream = tar.extractfile(first)
        assert stream is not None
        return json.load(stream)


# --- The process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ({"Entrypoint": ["/a", "b c"], "Cmd": ["d", ""]}, ["/a", "b c", "d", ""]),
        ({"Entrypoint": ["a"], "Cmd": None}, ["a"]),
        ({"Entrypoint": [], "Cmd": ["$(reboot)"]}, ["$(reboot)"]),
    ],
)
def test_the_command_is_the_entrypoint_and_then_cmd(said: Mapping[str, Any], arguments: list[str]) -> None:
    assert configured(said)["process"]["args"] == arguments


def test_an_image_that_says_no_command_is_refused() -> None:
    with pytest.raises(NoRuntimeConfig, match=r"config\.Entrypoint and config\.Cmd"):
        configured({"Cmd": None})


@pytest.mark.parametrize(
    ("said", "env"),
    [
        (["PATH=/bin", "A=1", "A=2", "B=x=y", "NOTHING"], ["PATH=/bin", "A=1", "A=2", "B=x=y", "NOTHING"]),
        (["A=1"], ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=1"]),
        (["PATH="], ["PATH="]),
        (["PATHS=1"], ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PATHS=1"]),
    ],
)
def test_the_environment_is_as_it_is_said_with_a_path_where_there_is_none(said: list[str], env: list[str]) -> None:
    assert configured({"Env": said})["process"]["env"] == env


def test_the_working_directory_is_as_it_is_said_or_the_root() -> None:
    assert configured({"WorkingDir": "/srv/a b"})["process"]["cwd"] == "/srv/a b"
    assert configured()["process"]["cwd"] == "/"


def test_a_relative_working_directory_is_refused() -> None:
    with pytest.raises(NoRuntimeConfig, match=r"config\.WorkingDir is 'srv'"):
        configured({"WorkingDir": "srv"})


# --- The user ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "user"),
    [
        pytest.param("", {"uid": 0, "gid": 0}, id="nobody said"),
        pytest.param("1000", {"uid": 1000, "gid": 100}, id="a number has its own group, and no further ones"),
        pytest.param("4711", {"uid": 4711, "gid": 0}, id="a number that is not in the image"),
        pytest.param("4711:4712", {"uid": 4711, "gid": 4712}, id="two numbers"),
        pytest.param("1000:30", {"uid": 1000, "gid": 30}, id="the group that is said wins"),
        pytest.param("007", {"uid": 7, "gid": 0}, id="digits are a number, never a name"),
        pytest.param("ada", {"uid": 1000, "gid": 100, "additionalGids": [10, 29]}, id="a name has further groups"),
        pytest.param("ada:", {"uid": 1000, "gid": 100, "additionalGids": [10, 29]}, id="a group that is not said"),
        pytest.param("root", {"uid": 0, "gid": 0, "additionalGids": [10]}, id="root by name"),
        pytest.param("ada:wheel", {"uid": 1000, "gid": 10}, id="two names"),
        pytest.param("ada:7", {"uid": 1000, "gid": 7}, id="a name and a number"),
        pytest.param("5:audio", {"uid": 5, "gid": 29}, id="a number and a name"),
        pytest.param(":audio", {"uid": 0, "gid": 29}, id="a group alone"),
        pytest.param("4294967294", {"uid": 4294967294, "gid": 0}, id="the last id there is"),
    ],
)
def test_the_user_is_a_number_or_looked_up_in_the_image(said: str, user: Mapping[str, Any]) -> None:
    assert configured({"User": said})["process"]["user"] == user


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("bob", "'bob'.*etc/passwd"),
        ("Ada", "'Ada'.*etc/passwd"),
        ("odd", "'odd'.*etc/passwd"),
        ("ada:bob", "'ada:bob'.*etc/group.*'bob'"),
        ("ada:odd", "etc/group.*'odd'"),
        ("-1", "'-1'"),
        ("4294967295", "4294967295"),
        ("0:99999999999", "99999999999"),
        ("٣", "'٣'"),
    ],
)
def test_a_user_who_is_not_in_the_image_is_refused_and_named(said: str, told: str) -> None:
    with pytest.raises(UserNotInImage, match=rf"config\.User is .*{told}"):
        configured({"User": said})


@pytest.mark.parametrize("files", [{}, {"etc": None, "etc/passwd": b"\xff\xfe:x:1:1\n\n:::\nroot:x\n"}])
def test_an_image_without_users_or_with_garbage_for_them_has_numbers_only(files: Mapping[str, bytes | None]) -> None:
    assert configured({"User": "3:4"}, files)["process"]["user"] == {"uid": 3, "gid": 4}
    with pytest.raises(UserNotInImage, match="root"):
        configured({"User": "root"}, files)


# --- Annotations ------------------------------------------------------------------------------------------------------


def test_what_the_image_says_of_itself_becomes_annotations() -> None:
    document = {
        "os": "linux",
        "architecture": "arm",
        "variant": "v6",
        "os.version": "5",
        "os.features": ["a", "b"],
        "author": "Ünal 🐳",
        "created": "2026-02-03T04:05:06.789Z",
    }
    said = {"StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Labels": {"a": "b"}}
    assert configured(said, document=document)["annotations"] == {
        "org.opencontainers.image.os": "linux",
        "org.opencontainers.image.architecture": "arm",
        "org.opencontainers.image.variant": "v6",
        "org.opencontainers.image.os.version": "5",
        "org.opencontainers.image.os.features": "a,b",
        "org.opencontainers.image.author": "Ünal 🐳",
        "org.opencontainers.image.created": "2026-02-03T04:05:06.789Z",
        "org.opencontainers.image.stopSignal": "SIGQUIT",
        "org.opencontainers.image.exposedPorts": "80/tcp,53/udp",
        "a": "b",
    }


def test_labels_win_over_what_is_only_implied() -> None:
    labels = {"org.opencontainers.image.os": "mine", "org.opencontainers.image.created": ""}
    annotations = configured({"Labels": labels}, document={"created": "2026-02-03T04:05:06Z"})["annotations"]
    assert annotations == {**labels, "org.opencontainers.image.architecture": "amd64"}


# --- Mounts -----------------------------------------------------------------------------------------------------------


def volumes(*said: str) -> list[str]:
    mounts = configured({"Volumes": {each: {} for each in said}})["mounts"]
    for mount in mounts[7:]:
        assert (mount["type"], mount["source"]) == ("tmpfs", "tmpfs")
        assert mount["options"] == ["rw", "nosuid", "nodev", "tmpcopyup", "mode=755", "uid=0", "gid=0"]
    return [mount["destination"] for mount in mounts[7:]]


def test_volumes_become_mounts_what_lies_in_another_after_it() -> None:
    assert volumes("/data/in", "/data", "/srv") == ["/data", "/data/in", "/srv"]


def test_a_volume_belongs_to_whom_the_image_s_folder_belongs() -> None:
    entries = [
        layers.directory(b"data", mode=0o2770, uid=1000, gid=100),
        layers.directory(b"srv/deep", mode=0o700, uid=7, gid=8),
        layers.symlink(b"linked", b"/data"),
        layers.file(b"file", b"x"),
    ]
    upper = [layers.directory(b"srv/deep", mode=0o750, uid=9, gid=10)]
    rootfs = StreamLayerMerger([source_of(layers.layer(*each)) for each in (entries, upper)], path_prefix=b"rootfs/")
    said = ("/absent", "/data", "/file", "/linked", "/srv", "/srv/deep")
    image = source_image({"config": {"Cmd": ["true"], "Volumes": {each: {} for each in said}}})
    with tarfile.open(fileobj=io.BytesIO(RuntimeBundle().head(image, rootfs) + bytes(1024))) as tar:
        stream = tar.extractfile("config.json")
        assert stream is not None
        mounts = json.load(stream)["mounts"][7:]
    assert {mount["destination"]: mount["options"][-3:] for mount in mounts} == {
        "/absent": ["mode=755", "uid=0", "gid=0"],
        "/data": ["mode=2770", "uid=1000", "gid=100"],
        "/file": ["mode=755", "uid=0", "gid=0"],
        "/linked": ["mode=2770", "uid=1000", "gid=100"],
        "/srv": ["mode=755", "uid=0", "gid=0"],
        "/srv/deep": ["mode=750", "uid=9", "gid=10"],
    }


def test_a_volume_is_mounted_once_wherever_it_is_written_and_not_over_what_is_mounted() -> None:
    assert volumes("/data/", "data", "//data/./", "/x/../data") == ["/data"]
    assert volumes("/proc", "/dev/shm/") == []


@pytest.mark.parametrize("said", ["/", "", "/.", "a/.."])
def test_a_volume_that_would_hide_the_whole_image_is_refused(said: str) -> None:
    with pytest.raises(NoRuntimeConfig, match=r"config\.Volumes has"):
        volumes("/data", said)


# --- The rest ---------------------------------------------------------------------------------------------------------


def test_what_the_image_does_not_say_is_what_runc_writes(tmp_path: Path) -> None:
    run("runc", "spec", "--bundle", str(tmp_path))
    default, made = json.loads((tmp_path / "config.json").read_text()), configured()
    assert made["mounts"] == default["mounts"]
    assert made["linux"] == default["linux"]
    same = ("capabilities", "rlimits", "noNewPrivileges", "cwd")
    assert {key: made["process"][key] for key in same} == {key: default["process"][key] for key in same}
    assert made["process"]["terminal"] is False
    assert made["root"] == {"path": "rootfs", "readonly": False}


@pytest.mark.parametrize("os", ["windows", "freebsd"])
def test_another_system_than_linux_is_refused(os: str) -> None:
    with pytest.raises(NoRuntimeConfig, match=f"os is {os}"):
        configured(platform=Platform(os, "amd64"))


# --- runc and umoci ---------------------------------------------------------------------------------------------------


def unpacked(folder: Path, config: Mapping[str, Any], files: Mapping[str, bytes | None], *modes: str) -> Path:
    """Unpack a bundle by tar, as its usage says, and return its folder. `modes` are arguments for chown and chmod."""
    rootfs = MemoryRootfs(files, path_prefix=b"rootfs/")
    folder.mkdir()
    archive = b"".join(RuntimeBundle().stream_generator(source_image(config), rootfs))
    run("tar", "-xp", "--numeric-owner", "-C", str(folder), stdin=archive)
    (folder / "rootfs" / "bin" / "busybox").chmod(0o755)
    return folder


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Give a function that runs the bundle of an image with busybox by runc, and returns what it writes."""
    shell = {**USERS, "bin": None, "bin/busybox": Path(program("busybox")).read_bytes(), "srv": None, "srv/a": b"1\n"}

    def start(said: Mapping[str, Any], files: Mapping[str, bytes | None] | None = None) -> str:
        bundle = unpacked(tmp_path / "bundle", {"config": said}, {**shell, **(files or {})})
        state = ["--root", str(tmp_path / "state")]
        return run("runc", *state, "run", "--bundle", str(bundle), f"test-{tmp_path.name}").decode()

    yield start
    assert not [*(tmp_path / "state").glob("*")]


def test_runc_starts_the_program_as_the_image_says(started: Callable[..., str]) -> None:
    told = started(
        {
            "Entrypoint": ["busybox", "sh", "-c"],
            "Cmd": ['/bin/busybox id; /bin/busybox pwd; echo $GREETING; echo "$0"', "größer a b"],
            "Env": ["GREETING=a=b"],
            "WorkingDir": "/srv",
            "User": "ada",
        }
    )
    assert told.splitlines() == [
        "uid=1000(ada) gid=100(users) groups=10(wheel),29(audio)",
        "/srv",
        "a=b",
        "größer a b",
    ]


def test_what_is_written_to_a_volume_does_not_come_to_the_root_file_system(
    started: Callable[..., str], tmp_path: Path
) -> None:
    script = "/bin/busybox cat /srv/a; echo 2 > /srv/a; echo 3 > /srv/b; echo 4 > /kept; /bin/busybox ls /srv"
    told = started({"Cmd": ["/bin/busybox", "sh", "-c", script], "Volumes": {"/srv": {}, "/new": {}}})
    assert told.split() == ["1", "a", "b"]
    rootfs = tmp_path / "bundle" / "rootfs"
    assert (rootfs / "srv" / "a").read_bytes() == b"1\n"
    assert not (rootfs / "srv" / "b").exists()
    assert (rootfs / "kept").read_bytes() == b"4\n"


def test_umoci_converts_the_image_in_the_same_way(tmp_path: Path) -> None:
    document = {**CONFIG, "config": {**CONFIG["config"], "Volumes": None, "Healthcheck": None}}
    groups = GROUP.replace(b"odd:x:z:ada\n", b"")  # they take a gid that is no number for 0
    files = {**FILES, "etc/group": groups, "bin/busybox": b""}
    ours = json.loads((unpacked(tmp_path / "ours", document, files) / "config.json").read_text())
    archive = tmp_path / "squashed.tar"
    archive.write_bytes(b"".join(SquashedDockerImage().stream_generator(source_image(document), MemoryRootfs(files))))
    run("skopeo", "copy", "-q", f"docker-archive:{archive}", f"oci:{tmp_path}/layout:latest")
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:latest", f"{tmp_path}/theirs")
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert ours["process"]["args"] == theirs["process"]["args"]
    assert ours["process"]["cwd"] == theirs["process"]["cwd"]
    own, other = ours["process"]["user"], theirs["process"]["user"]
    assert (own["uid"], own["gid"]) == (other["uid"], other["gid"])
    assert {own["gid"], *own["additionalGids"]} == {*other["additionalGids"]}  # theirs names the group itself too
    assert set(ours["process"]["env"]) <= set(theirs["process"]["env"])
    ports = "org.opencontainers.image.exposedPorts"
    assert sorted(ours["annotations"].pop(ports).split(",")) == sorted(theirs["annotations"].pop(ports).split(","))
    assert ours["annotations"] == theirs["annotations"]
