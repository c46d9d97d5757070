"""Container images made of what this machine has: nothing is downloaded, and they are as untidy as real ones.

The law: an image is an OCI layout in a folder, written in one pass and there as a whole or not at all. Layers are
written with Python's own tarfile, not with the project's code, which is measured and shown with them.
"""

import gzip
import hashlib
import io
import itertools
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from isal import isal_zlib

GZIP = 31
"""What zlib calls a window of 32 KiB with a gzip header."""

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
CREATED = "2024-02-29T12:00:00Z"
ROOTS = tuple(dict.fromkeys(map(os.path.realpath, (sys.base_prefix, sys.prefix, "/usr"))))
"""Where this machine keeps many files."""


class Deflater(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def quick() -> Deflater:
    """Compress fast: for images that somebody waits for."""
    deflater: Deflater = isal_zlib.compressobj(1, isal_zlib.DEFLATED, GZIP)
    return deflater


def usual() -> Deflater:
    """Compress as most builders of images do: for images that are measured."""
    return zlib.compressobj(6, zlib.DEFLATED, GZIP)


class LayerWriter:
    """One layer, a gzip of a tar, on its way into `folder`. Entries stand in the order of the calls."""

    def __init__(self, folder: Path, made_by: str, deflater: Callable[[], Deflater]) -> None:
        self.made_by = made_by
        self.names: list[str] = []
        self._path = folder / f"layer-{id(self):x}"
        self._file = self._path.open("wb")
        self._deflater = deflater()
        self._blob_hash, self._tar_hash = hashlib.sha256(), hashlib.sha256()
        self.digest = self.diff_id = ""
        self.size = 0

    def _write(self, chunk: bytes) -> None:
        self._tar_hash.update(chunk)
        self._put(self._deflater.compress(chunk))

    def _put(self, chunk: bytes) -> None:
        self._blob_hash.update(chunk)
        self.size += self._file.write(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write(bytes(2 * tarfile.BLOCKSIZE))
            self._put(self._deflater.flush())
            self.digest = f"sha256:{self._blob_hash.hexdigest()}"
            self.diff_id = f"sha256:{self._tar_hash.hexdigest()}"
        self._file.close()
        if kind is None:
            blobs = self._path.parent / "blobs" / "sha256"
            self._path.replace(blobs / self.digest.removeprefix("sha256:"))
        else:
            self._path.unlink()

    def _add(
        self, name: str, kind: bytes, mode: int, content: Iterable[bytes] = (), size: int = 0, **more: Any
    ) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, 1_709_208_000
        for field, value in more.items():
            setattr(entry, field, value)
        self.names.append(name)
        self._write(entry.tobuf(tarfile.PAX_FORMAT))
        for chunk in content:
            self._write(chunk)
        self._write(bytes(-size % tarfile.BLOCKSIZE))

    def directory(self, name: str, mode: int = 0o755, **more: Any) -> None:
        self._add(name, tarfile.DIRTYPE, mode, **more)

    def file(self, name: str, content: bytes, mode: int = 0o644, **more: Any) -> None:
        self._add(name, tarfile.REGTYPE, mode, [content], len(content), **more)

    def long_file(self, name: str, content: Iterable[bytes], size: int) -> None:
        """Add a file whose `content` is `size` bytes together."""
        self._add(name, tarfile.REGTYPE, 0o644, content, size)

    def symlink(self, name: str, target: str, **more: Any) -> None:
        self._add(name, tarfile.SYMTYPE, 0o777, linkname=target, **more)

    def hardlink(self, name: str, target: str) -> None:
        self._add(name, tarfile.LNKTYPE, 0o644, linkname=target)

    def whiteout(self, name: str) -> None:
        """Delete `name`, which a lower layer has."""
        path = PurePosixPath(name)
        self.file(str(path.with_name(f".wh.{path.name}")), b"")

    def opaque(self, name: str) -> None:
        """Delete what lower layers have in the directory `name`."""
        self.file(f"{name}/.wh..wh..opq", b"")

    def copy(self, found: "Found", name: str) -> None:
        """Add what was found on this machine under another name; a file that has gone meanwhile is left out."""
        attributes = {"uid": found.uid, "gid": found.gid, "mtime": int(found.mtime)}
        if stat.S_ISLNK(found.mode):
            self.symlink(name, os.readlink(found.path), **attributes)
        elif stat.S_ISDIR(found.mode):
            self.directory(name, stat.S_IMODE(found.mode), **attributes)
        else:
            try:
                content = Path(found.path).read_bytes()
            except OSError:
                return
            self.file(name, content, stat.S_IMODE(found.mode), **attributes)


class ImageWriter:
    """An OCI layout on its way to `folder`, which must not exist; it does when the `with` block has been left."""

    def __init__(self, folder: Path, deflater: Callable[[], Deflater] = quick) -> None:
        self.folder = folder
        self._work = folder.with_name(f"{folder.name}.part")
        self._deflater = deflater
        self._layers: list[LayerWriter] = []

    def __enter__(self) -> Self:
        shutil.rmtree(self._work, ignore_errors=True)
        (self._work / "blobs" / "sha256").mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._work.rename(self.folder)
        else:
            shutil.rmtree(self._work)

    def layer(self, made_by: str) -> LayerWriter:
        """Begin the next layer, to be closed by the caller. Layers are ordered by the calls; several may be open."""
        layer = LayerWriter(self._work, made_by, self._deflater)
        self._layers.append(layer)
        return layer

    def _document(self, document: Mapping[str, Any], media_type: str) -> dict[str, Any]:
        content = json.dumps(document, separators=(",", ":")).encode()
        digest = hashlib.sha256(content).hexdigest()
        (self._work / "blobs" / "sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def finish(self, tag: str, run: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write the documents. `run` is the config's `config`; `history` stands after that of the layers."""
        made = [{"created": CREATED, "created_by": layer.made_by} for layer in self._layers]
        config = {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "created": CREATED,
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self._layers]},
            "history": [*made, *history],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._document(config, CONFIG),
            "layers": [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size} for layer in self._layers],
        }
        named = self._document(manifest, MANIFEST) | {"annotations": {"org.opencontainers.image.ref.name": tag}}
        index = {"schemaVersion": 2, "manifests": [named]}
        (self._work / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (self._work / "index.json").write_text(json.dumps(index))


@dataclass(frozen=True, slots=True)
class Found:
    """A file, directory or symlink of this machine, and its name below the folder where the search began."""

    path: str
    name: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: float


def found(root: str, *, largest: int = 1 << 20, without: Iterable[str] = ()) -> Iterator[Found]:
    """Walk `root` in order, parents first; no file above `largest` bytes, nothing named in `without`, no odd names."""
    pending = [""]
    left_out = {"__editable__", ".git", *without}
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except OSError:
            continue
        below = []
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name in left_out or not name.isprintable() or "\udc00" <= max(name) <= "\udcff":
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                below.append(name)
            elif not (stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_size <= largest)):
                continue
            yield Found(entry.path, name, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime)
        pending += reversed(below)


# The demo


PASSWD = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/usr/sbin:/usr/sbin/nologin\napp:x:1000:1000:Demo:/app:/bin/sh\n"
GROUP = "root:x:0:\ndaemon:x:1:\napp:x:1000:\n"
PING = "\x01\0\0\x02\0 \0\0" + "\0" * 12
"""The capability cap_net_raw=ep as the kernel stores it."""


def libraries(*programs: str) -> dict[str, str]:
    """Return what the dynamic linker loads for `programs`: the path that is asked for, and the file that is there."""
    needed: dict[str, str] = {}
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        paths = (word for line in listed.splitlines() for word in line.split() if word.startswith("/"))
        needed |= {path: os.path.realpath(path) for path in paths if os.path.exists(path)}
    return needed


def build_demo(folder: Path, *, tag: str = "3", entries: int = 30_000) -> None:
    """Write an image of this Python installation: its libraries, an upgrade, deletions, a directory replaced, links.

    What the installation lacks of so many `entries` is taken from the rest of the machine.
    """
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    home = f"usr/local/lib/{python}"
    interpreter = os.path.realpath(sys.executable)
    shell = [path for path in map(shutil.which, ("sh", "ls", "cat", "env", "id")) if path]
    with ImageWriter(folder) as image:
        with image.layer("/bin/sh -c #(nop) ADD file:base in /") as base:
            _write_base(base, libraries(interpreter, *shell, *_extensions()), shell)
        with image.layer("/bin/sh -c make install  # the Python that built this image") as installed:
            installed.file(f"usr/local/bin/{python}", Path(interpreter).read_bytes(), 0o755)
            installed.hardlink("usr/local/bin/python3", f"usr/local/bin/{python}")
            installed.symlink("usr/local/bin/python", "python3")
            installed.directory(home)
            for item in found(sysconfig.get_path("stdlib"), without=["site-packages", "dist-packages"]):
                installed.copy(item, f"{home}/{item.name}")
        with image.layer("/bin/sh -c pip install --requirement requirements.txt") as packages:
            packages.directory(f"{home}/site-packages")
            for item in found(sysconfig.get_path("purelib")):
                packages.copy(item, f"{home}/site-packages/{item.name}")
            lacking = max(0, entries - len(packages.names) - len(installed.names))
            for item in itertools.islice(_more(), lacking):
                packages.copy(item, item.name)
        with image.layer("/bin/sh -c apt-get upgrade  # some of it again, and through the old names") as upgrade:
            for name in _modules(installed.names, f"{home}/email/", f"{home}/json/", f"{home}/unittest/"):
                upgrade.file(name, b"# Upgraded: what this file was is in the layers below.\n")
            upgrade.file("lib/os-release", _release("12.1"))
            upgrade.file(
                "usr/bin/ping", b"#!/bin/sh\nexit 0\n", 0o755, pax_headers={"SCHILY.xattr.security.capability": PING}
            )
        with image.layer("/bin/sh -c rm -rf tests and tools that nobody runs here") as removal:
            unused = ("test", "idlelib", "turtledemo", "lib2to3", "tkinter", "ensurepip")
            for name in sorted({f"{home}/{directory}" for directory in unused}.intersection(installed.names)):
                removal.whiteout(name)
            removal.whiteout("etc/motd")
            removal.directory(f"{home}/pydoc_data")
            removal.opaque(f"{home}/pydoc_data")
            removal.file(f"{home}/pydoc_data/__init__.py", b'"""Replaced as a whole."""\n')
        with image.layer("COPY app /app  # buildkit") as application:
            application.directory("app", 0o750, uid=1000, gid=1000)
            application.file("app/main.py", b"import sys\nprint(sys.version)\n", 0o644, uid=1000, gid=1000)
            application.hardlink("usr/local/bin/demo-python", f"usr/local/bin/{python}")
            application.directory("data", 0o2775, gid=1000)
        image.finish(tag, _demo_run(), [
            {"created": CREATED, "created_by": 'ENTRYPOINT ["python3"]', "empty_layer": True},
            {"created": CREATED, "created_by": 'CMD ["/app/main.py"]', "empty_layer": True},
        ])  # fmt: skip


def _write_base(layer: LayerWriter, libraries: Mapping[str, str], programs: Iterable[str]) -> None:
    """Write a small Linux: merged /usr, accounts, a shell, and the `libraries` that everything here needs."""
    for name in ("dev", "etc", "home", "proc", "run", "sys", "usr", "usr/bin", "usr/lib", "usr/lib64", "usr/local",
                 "usr/local/bin", "usr/local/lib", "usr/sbin", "usr/share", "var", "var/lib"):  # fmt: skip
        layer.directory(name)
    for name in ("bin", "lib", "lib64", "sbin"):
        layer.symlink(name, f"usr/{name}")
    layer.directory("root", 0o700)
    layer.directory("tmp", 0o1777)
    layer.file("etc/passwd", PASSWD.encode())
    layer.file("etc/group", GROUP.encode())
    layer.file("etc/shadow", b"root:*:19000:0:99999:7:::\n", 0o640, gid=42)
    layer.file("etc/motd", b"Gone in a later layer.\n")
    layer.file("usr/lib/os-release", _release("12.0"))
    layer.symlink("etc/os-release", "../usr/lib/os-release")
    for program in programs:
        layer.file(f"usr/bin/{os.path.basename(program)}", Path(program).read_bytes(), 0o755)
    layer.file("usr/bin/su", b"#!/bin/sh\nexit 1\n", 0o4755)
    merged = {f"/{name}": f"/usr/{name}" for name in ("lib", "lib64")}
    done = set(layer.names)
    for path, real in sorted(libraries.items()):
        top, rest = path[: path.find("/", 1)], path[path.find("/", 1) :]
        name = (merged.get(top, top) + rest).lstrip("/")
        if name not in done:
            for parent in reversed(PurePosixPath(name).parents[:-1]):
                if str(parent) not in done:
                    layer.directory(str(parent))
                    done.add(str(parent))
            layer.file(name, Path(real).read_bytes(), 0o755)
            done.add(name)


def _extensions() -> list[str]:
    """Return the standard library's modules that are shared objects."""
    folder = Path(sysconfig.get_path("platstdlib"), "lib-dynload")
    return sorted(map(str, folder.glob("*.so")))


def _more() -> Iterator[Found]:
    for root in ("share", "include", "lib"):
        for item in found(f"/usr/{root}", largest=1 << 16, without=["python3", "postgresql"]):
            yield Found(item.path, f"usr/{root}/{item.name}", item.mode, item.uid, item.gid, item.size, item.mtime)


def _modules(names: Iterable[str], *folders: str) -> list[str]:
    return [name for name in names if name.startswith(folders) and name.endswith(".py")]


def _release(version: str) -> bytes:
    return f'ID=demo\nVERSION_ID={version}\nPRETTY_NAME="The demo of registry-verbs"\n'.encode()


def _demo_run() -> dict[str, Any]:
    return {
        "User": "app",
        "ExposedPorts": {"8000/tcp": {}},
        "Env": [
            "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            f"PYTHON_VERSION={platform.python_version()}",
        ],
        "Entrypoint": ["python3"],
        "Cmd": ["/app/main.py"],
        "Volumes": {"/data": {}},
        "WorkingDir": "/app",
        "Labels": {
            "org.opencontainers.image.title": "Python",
            "org.opencontainers.image.version": platform.python_version(),
            "org.opencontainers.image.licenses": "PSF-2.0",
        },
        "StopSignal": "SIGINT",
        "Healthcheck": {"Test": ["CMD", "python3", "-c", "pass"], "Interval": 30_000_000_000, "Retries": 3},
    }


# The same image as an archive


def layers_of(folder: Path) -> list[Path]:
    """Return the layers of the image in an OCI layout, base first."""
    return [_blob(folder, layer) for layer in _manifest(folder)["layers"]]


def _manifest(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / "index.json").read_text())
    manifest: dict[str, Any] = json.loads(_blob(folder, index["manifests"][0]).read_text())
    return manifest


def _blob(folder: Path, descriptor: Mapping[str, str]) -> Path:
    return folder / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")


def write_docker_archive(folder: Path, archive: Path, name: str, *, inflated: bool) -> None:
    """Write the image of an OCI layout as `docker save` did for years, which is what old programs still expect.

    Its layers are `inflated`, as Docker has them there, or stay as they are, as in archives that other programs write.
    """
    config = _blob(folder, _manifest(folder)["config"]).read_bytes()
    ids: list[str] = []
    with tarfile.open(archive, "w") as tar:

        def add(path: str, content: BinaryIO) -> None:
            entry = tarfile.TarInfo(path)
            entry.size = content.seek(0, os.SEEK_END)
            content.seek(0)
            tar.addfile(entry, content)

        for layer in layers_of(folder):
            parent = {"parent": ids[-1]} if ids else {}
            ids.append(hashlib.sha256(f"{layer.name} over {parent}".encode()).hexdigest())
            document = {**json.loads(config), "id": ids[-1], **parent}
            add(f"{ids[-1]}/json", io.BytesIO(json.dumps(document).encode()))
            add(f"{ids[-1]}/VERSION", io.BytesIO(b"1.0"))
            with tempfile.TemporaryFile(dir=archive.parent) as content:
                with gzip.open(layer) if inflated else layer.open("rb") as stream:
                    shutil.copyfileobj(stream, content, 1 << 20)
                add(f"{ids[-1]}/layer.tar", content)
        repository, _, tag = name.partition(":")
        layers = [f"{layer}/layer.tar" for layer in ids]
        add("config.json", io.BytesIO(config))
        add("repositories", io.BytesIO(json.dumps({repository: {tag: ids[-1]}}).encode()))
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": layers}]
        add("manifest.json", io.BytesIO(json.dumps(manifest).encode()))


# Images to measure with


def build_big(folder: Path, *, layers: int = 4, files: int = 4, size: int = 80 << 20) -> None:
    """Write an image of few large files, 1.2 GiB when nothing else is said, filled with this machine's largest."""
    candidates = [item for root in ROOTS for item in found(root, largest=1 << 40) if stat.S_ISREG(item.mode)]
    largest = sorted(candidates, key=lambda item: -item.size)[:4000]
    # Interleaved, so that every layer has programs, archives and texts alike.
    contents = [_filled(largest[part :: layers * files], size) for part in range(layers * files)]
    with ImageWriter(folder, usual) as image:
        writers = [image.layer(f"COPY large files {number}") for number in range(layers)]

        def write(number: int) -> None:
            with writers[number] as layer:
                layer.directory("data")
                for part in range(files):
                    layer.long_file(f"data/{number}-{part}", contents[number * files + part], size)
                if number == layers - 1:
                    layer.file("data/0-0", b"replaced\n")

        _side_by_side(write, layers)
        image.finish("1", {"Cmd": ["true"]})


def _filled(items: Sequence[Found], size: int) -> Iterator[bytes]:
    """Yield the contents of `items` over and over until they are `size` bytes."""
    for item in itertools.cycle(items):
        if size == 0:
            return
        try:
            file = open(item.path, "rb")  # noqa: SIM115
        except OSError:
            continue
        with file:
            while size and (chunk := file.read(min(size, 1 << 20))):
                size -= len(chunk)
                yield chunk


def _side_by_side(write: Callable[[int], None], layers: int) -> None:
    """Write layers on all processors: zlib works without the interpreter's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write, range(layers)):
            pass


def _names(count: int, largest: int) -> list[tuple[str, Found]]:
    """Return `count` things of this machine, sorted by name in the image; when there are fewer, some of them twice."""
    items = [
        (f"{root.strip('/').replace('/', '-')}/{item.name}", item)
        for root in ROOTS
        for item in itertools.islice(found(root, largest=largest), count)
    ]
    copies = (
        (f"copy-{copy}/{name}" if copy else name, item) for copy in itertools.count() for name, item in sorted(items)
    )
    return list(itertools.islice(copies, count))


def build_many(folder: Path, *, entries: int = 112_000, layers: int = 7) -> None:
    """Write an image of many small files; upper layers overwrite a twentieth of what is below and delete a fortieth."""
    named = _names(entries, 1 << 16)
    share = len(named) // (layers + 1)
    bounds = [0, *(share * (number + 2) for number in range(layers - 1)), len(named)]
    with ImageWriter(folder, usual) as image:
        writers = [image.layer(f"RUN install {number}") for number in range(layers)]

        def write(number: int) -> None:
            with writers[number] as layer:
                for name, item in named[bounds[number] : bounds[number + 1]]:
                    layer.copy(item, name)
                below = named[: bounds[number]]
                for name, item in below[number::20]:
                    if stat.S_ISREG(item.mode):
                        layer.file(name, b"overwritten by layer %d\n" % number)
                for name, item in below[number + 7 :: 40]:
                    if not stat.S_ISDIR(item.mode):
                        layer.whiteout(name)
                if number == layers - 1:
                    folders = [name for name, item in below if stat.S_ISDIR(item.mode) and name.count("/") > 4]
                    for name in folders[::400]:
                        layer.whiteout(name)

        _side_by_side(write, layers)
        image.finish("1", {"Cmd": ["true"]})


def build_deep(folder: Path, *, layers: int = 120, each: int = 200) -> None:
    """Write an image of many layers: each adds files, overwrites some of an earlier layer's and deletes a few."""
    named = [(name, item) for name, item in _names(layers * each * 2, 1 << 17) if stat.S_ISREG(item.mode)]
    each = min(each, len(named) // layers)
    with ImageWriter(folder, usual) as image:
        writers = [image.layer(f"RUN step {number}") for number in range(layers)]

        def write(number: int) -> None:
            with writers[number] as layer:
                for name, item in named[number * each : (number + 1) * each]:
                    layer.copy(item, name)
                earlier = named[number // 2 * each : (number // 2 + 1) * each] if number else []
                for name, _ in earlier[number % 5 :: 5]:
                    layer.file(name, b"overwritten by layer %d\n" % number)
                for name, _ in earlier[(number + 1) % 5 :: 50]:
                    layer.whiteout(name)

        _side_by_side(write, layers)
        image.finish("1", {"Cmd": ["true"]})


def build_synthetic(folder: Path, *, entries: int) -> None:
    """Write an image of `entries` files and no payload to speak of, in three layers: the cost of an entry alone."""
    with ImageWriter(folder) as image:
        lower, middle = entries * 8 // 10, entries * 15 // 100
        parts = [(0, lower), (lower, lower + middle), (lower + middle, entries)]
        for number, (start, end) in enumerate(parts):
            with image.layer(f"RUN number {number}") as layer:
                for entry in range(start, end):
                    if entry % 1000 == 0 or entry == start:
                        layer.directory(_synthetic(entry).rpartition("/")[0])
                    layer.file(_synthetic(entry), b"")
                for entry in range(0, start, 20):
                    layer.file(_synthetic(entry), b"overwritten\n")
                for entry in range(10, start, 100):
                    if number == len(parts) - 1:
                        layer.whiteout(_synthetic(entry))
        image.finish("1", {"Cmd": ["true"]})


def _synthetic(entry: int) -> str:
    return f"srv/{entry // 1000:05d}/a-file-with-a-usual-name-{entry % 1000:03d}.txt"
