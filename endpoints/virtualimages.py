"""Images in one layer, as a registry hands them out: a manifest, a configuration, and the derived image as their layer.

The law: the layer is the derived image of the verb `rootfs` in gzip, and there is no other copy of it. The documents
are a function of that image, so the same image has the same digest whenever it is made, and wherever. They are there
only after the layer is, and gone with it.

Whoever asks first has it made; nobody waits longer than the settings say, because clients give up without a word. What
they are told instead they take for a reason to ask again by themselves.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import cast

from data.derivedimages import DerivedRecord
from data.storage.base import BlobNotFound
from data.virtuals import Document, Virtual
from endpoints.derive import DerivedImage, Deriver
from endpoints.making import How, Makings, NotKept, Stored
from endpoints.packing import Packing
from endpoints.services import Services
from endpoints.streams import Chunks, Stream
from formats.ociarchive import oci_manifest
from formats.squashed import squashed_config
from util.compression import Compression, decompressed
from util.digest import Digest
from util.oci import CONFIG_OCI, LAYER_OCI_GZIP, MANIFEST_OCI
from util.packedlayer import PackedLayer
from util.problem import Damaged, Inexpressible, Malformed, Missing, Problem, TooLarge, Unsupported

log = logging.getLogger(__name__)

VIRTUAL_IMAGES = "registry_verbs_virtual_images"
"""Where a Flask application keeps the VirtualImages of its Services."""

VERB = "rootfs"
COMPRESSION = Compression.GZIP

_WAITING = 8  # requests of one process that wait at a time: its other threads are for everybody else
_RETRY_SECONDS = (1, 10, 60)  # when to ask again: at least, where nothing is known of the end, and at most
_TOLD_SECONDS = 60.0  # how long those who were told to ask again are told why it failed
_ATTEMPTS = 3
_LASTING = (Malformed, Inexpressible, Unsupported, TooLarge, Damaged)


class StillMaking(Problem):
    """An image that is being made, for longer than who asks would wait. `retry_after` is in seconds."""

    code = "TOOMANYREQUESTS"

    def __init__(self, text: str, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(f"{text}; ask again in {retry_after} seconds")


class NotStored(Missing):
    """An image that would have to be made, in a registry that keeps nothing new."""

    code = "MANIFEST_UNKNOWN"


class VirtualImages:
    """The images in one layer that one process makes. Safe for several threads, and to be made before a fork."""

    def __init__(self, services: Services, makings: Makings) -> None:
        self._makings = makings
        self._deriver = Deriver(services)
        self._packing = Packing(services)
        self._rows = services.virtuals
        self._readonly = services.settings.readonly
        self._seconds = services.settings.pull_seconds
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._works: dict[str, _Work] = {}
        self._waiting = threading.BoundedSemaphore(_WAITING)

    def manifest(self, image: DerivedImage, *, asked_by: str | None = None) -> Virtual:
        """Return the manifest of `image` as one layer, which is there then. `image` is of VERB, in COMPRESSION.

        Makes it where nobody has, and counts as a fetch of it. Raises StillMaking after waiting as long as may be;
        NotStored in a read-only registry; Busy, NotKept, and why the image cannot be made: what Makings.make raises.
        Raises DatabaseUnavailable and StorageUnavailable.
        """
        record = self._makings.kept(image.key)
        found = None if record is None else self._rows.document(record, MANIFEST_OCI)
        if found is not None:
            return found
        if self._readonly:
            raise NotStored(f"{_name(image)} is not stored, and the registry is read-only: it is not made")
        work = self._work(image, asked_by)
        if self._waiting.acquire(blocking=False):
            try:
                work.done.wait(self._seconds)
            finally:
                self._waiting.release()
        if not work.done.is_set():
            work.put_off = True
            raise self._still(work)
        return work.outcome()

    def _work(self, image: DerivedImage, asked_by: str | None) -> "_Work":
        """Return what makes `image`, or has failed to lately, after beginning with it where nothing does."""
        if self._process != os.getpid():  # threads do not come along through a fork
            self._begin()
        with self._lock:
            now = time.monotonic()
            self._works = {key: each for key, each in self._works.items() if each.counts(now)}
            work = self._works.get(image.key)
            if work is None:
                work, name = _Work(image), f"virtual {image.key[:12]}"
                threading.Thread(target=self._run, args=(work, asked_by), name=name, daemon=True).start()
                self._works[image.key] = work
            return work

    def _run(self, work: "_Work", asked_by: str | None) -> None:
        try:
            work.end(self._make(work, asked_by))
        except Exception as error:  # noqa: BLE001 told to who waits
            work.end(error)
        with self._lock:
            if not work.counts(time.monotonic()):
                self._works.pop(work.image.key, None)

    def _make(self, work: "_Work", asked_by: str | None) -> Virtual:
        image = work.image
        for _ in range(_ATTEMPTS):
            try:
                record, layer = self._packed(work, asked_by)
            except BlobNotFound:
                continue
            manifest, config = documents(image, layer)
            if self._rows.add(record, manifest, config, layer_media_type=LAYER_OCI_GZIP):
                log.info("%s is %s", _name(image), manifest.digest)
                content = manifest.content
                return Virtual(manifest.digest, manifest.media_type, content, record.key, len(content), None)
        raise NotKept(f"{_name(image)} was dropped as often as it was made")

    def _packed(self, work: "_Work", asked_by: str | None) -> tuple[DerivedRecord, PackedLayer]:
        """Return the record of the image, which is complete then, and what it is as a layer."""
        image = work.image
        known = self._packing.known(image)
        if known is not None:
            record = self._makings.make(image, asked_by=asked_by, progress=partial(work.advance, known.size))
            if (record.sha256, record.size) == (known.digest.hex, known.size):
                return record, known
        work.made, work.total = 0, None
        diff_id = self._diff_id(work, asked_by)
        record = self._makings.make(image, asked_by=asked_by)
        layer = PackedLayer(
            COMPRESSION, Digest("sha256", cast("str", record.sha256)), cast("int", record.size), diff_id
        )
        self._packing.remember(image, layer)
        return record, layer

    def _diff_id(self, work: "_Work", asked_by: str | None) -> Digest:
        """Return the digest of what the image unwraps to, while it is being made or from storage."""
        hasher = hashlib.sha256()
        with closing(self._chunks(work.image, asked_by)) as chunks:
            for piece in decompressed(_Reader(chunks), what=_name(work.image)):
                hasher.update(piece)
                work.made += len(piece)
        return Digest("sha256", hasher.hexdigest())

    def _chunks(self, image: DerivedImage, asked_by: str | None) -> Chunks:
        serving = self._makings.open(image, asked_by=asked_by)
        if not isinstance(serving, Stored):
            if serving.how is not How.STREAMED:
                return serving.chunks
            # Another host makes it: what comes of that is waited for, and not made here as well.
            serving.chunks.close()
        record = serving.record if isinstance(serving, Stored) else self._makings.make(image, asked_by=asked_by)
        return cast("Stream", self._makings.apart(lambda: self._makings.read(record))).chunks

    def _still(self, work: "_Work") -> StillMaking:
        least, unknown, most = _RETRY_SECONDS
        done, total = work.made, self._total(work)
        if not done:
            return StillMaking(f"{_name(work.image)} is being made: its layers are being looked at", unknown)
        if not total:
            return StillMaking(f"{_name(work.image)} is being made: {done} bytes so far", unknown)
        left = (time.monotonic() - work.began) * (total - done) / done - self._seconds  # what is waited for anyhow
        text = f"{_name(work.image)} is being made: {done} of {total} bytes, {done * 100 // total} %"
        return StillMaking(text, min(max(round(left), least), most))

    def _total(self, work: "_Work") -> int | None:
        """Return how many bytes the image unwraps to, None as long as that is not known."""
        if work.total is None and work.made:
            try:
                work.total = self._deriver.planned_size(replace(work.image, compression=Compression.NONE))
            except Problem as problem:
                log.info("how large %s will be cannot be told: %s", _name(work.image), problem)
        return work.total


class _Work:
    """One image that is being made in one layer; or that could not be, as long as that is to be told."""

    def __init__(self, image: DerivedImage) -> None:
        self.image = image
        self.began = time.monotonic()
        self.done = threading.Event()
        self.put_off = False
        self.made = 0
        self.total: int | None = None
        self._ended: float | None = None
        self._outcome: Virtual | Exception | None = None

    def advance(self, total: int, done: int, _: int | None) -> None:
        """Take note that `done` of `total` bytes are made."""
        self.made, self.total = done, total

    def end(self, outcome: Virtual | Exception) -> None:
        self._outcome, self._ended = outcome, time.monotonic()
        self.done.set()

    def outcome(self) -> Virtual:
        """Return the manifest, or raise why there is none."""
        if isinstance(self._outcome, Virtual):
            return self._outcome
        raise self._outcome or NotKept(f"{_name(self.image)} is not made")

    def counts(self, now: float) -> bool:
        """Tell whether who asks for the image is to be given this work's outcome."""
        if self._ended is None:
            return True
        return self.put_off and isinstance(self._outcome, _LASTING) and now - self._ended < _TOLD_SECONDS


class _Reader:
    """Chunks as a stream. A read returns no more than a chunk, in pieces where that is more than was asked for."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, size: int = -1, /) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = chunk
        if size < 0 or len(self._rest) <= size:
            piece, self._rest = self._rest, b""
        else:
            piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def close(self) -> None:
        """Do nothing: who has the chunks closes them."""


def documents(image: DerivedImage, layer: PackedLayer) -> tuple[Document, Document]:
    """Return the manifest and the configuration of `image` as one layer, which is `layer`."""
    config = Document(CONFIG_OCI, squashed_config(image.source, layer.diff_id))
    return Document(MANIFEST_OCI, oci_manifest(config.content, layer)), config


def _name(image: DerivedImage) -> str:
    return f"{image.source.path}:{image.source.tag} in one layer"
