"""The image configuration: how a container of the image is run, and what its layers are when unpacked.

The law: `document` is the JSON as it was pushed, with every field, known or not; the other fields are what the formats
read of it, checked. OCI image-spec, config.md; Docker's image specification v1.2 for what is older.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from util.digest import Digest
from util.document import Fields, MalformedConfig, read_document
from util.platform import Platform


@dataclass(frozen=True, slots=True)
class History:
    """How one layer came to be; with `empty_layer` a step that made none."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """A configuration. Texts are empty and sequences are of length 0 where the document says nothing.

    `diff_ids` stand base first; images of Docker's schema 1 have none. `exposed_ports` and `volumes` stand in the
    order of the document. `created` is as written, not checked.
    """

    platform: Platform
    document: Mapping[str, Any]
    created: str | None = None
    author: str | None = None
    diff_ids: tuple[Digest, ...] = ()
    history: tuple[History, ...] = ()
    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str | None = None
    healthcheck: Mapping[str, Any] | None = None

    @classmethod
    def parse(cls, content: bytes) -> "ImageConfig":
        """Return the configuration that `content` writes. Raises MalformedConfig, and DocumentTooLarge."""
        return config_of(read_document(content, "configuration", MalformedConfig))

    def diff_ids_of(self, layers: Sequence[object]) -> tuple[Digest, ...]:
        """Return the diff_id of each of the manifest's `layers`. Raises MalformedConfig unless they are as many."""
        if len(layers) != len(self.diff_ids):
            raise MalformedConfig(
                f"the configuration is malformed: rootfs.diff_ids has {len(self.diff_ids)} entries, "
                f"and the manifest {len(layers)} layers"
            )
        return self.diff_ids


def config_of(document: Fields) -> ImageConfig:
    """Return the configuration that `document` holds. Raises the document's own error, naming the field."""
    rootfs = document.fields("rootfs")
    if rootfs and rootfs.text("type") not in (None, "", "layers"):
        raise rootfs.error("type", f"is {rootfs.text('type')!r}; only 'layers' is known")
    run = document.fields("config") or Fields({}, document.what, document.malformed, "config")
    healthcheck = run.fields("Healthcheck")
    return ImageConfig(
        # The very oldest images say neither; they are all Linux on amd64.
        platform=Platform(
            document.word("os") or "linux",
            document.word("architecture") or "amd64",
            document.word("variant"),
            document.word("os.version"),
        ),
        document=document.values,
        created=document.text("created") or None,
        author=document.text("author") or None,
        diff_ids=rootfs.digests("diff_ids") if rootfs else (),
        history=tuple(map(_history, document.each("history"))),
        user=run.text("User") or "",
        env=run.texts("Env"),
        entrypoint=run.arguments("Entrypoint"),
        cmd=run.arguments("Cmd"),
        working_dir=run.text("WorkingDir") or "",
        exposed_ports=run.keys("ExposedPorts") or run.texts("PortSpecs"),
        volumes=run.keys("Volumes"),
        labels=run.text_map("Labels"),
        stop_signal=run.text("StopSignal") or None,
        healthcheck=healthcheck.values if healthcheck else None,
    )


def chain_id(diff_ids: Sequence[Digest]) -> Digest:
    """Return the name of the stack of layers whose diff_ids are given, base first; there must be one.

    OCI image-spec, config.md, "Layer ChainID".
    """
    chain, *upper = diff_ids
    for diff_id in upper:
        chain = Digest.of(f"{chain} {diff_id}".encode(), chain.algorithm)
    return chain


def _history(entry: Fields) -> History:
    return History(
        created=entry.text("created"),
        created_by=entry.text("created_by"),
        author=entry.text("author"),
        comment=entry.text("comment"),
        empty_layer=entry.flag("empty_layer"),
    )
