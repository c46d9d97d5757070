"""What bounds what is kept: a collection drops derived images that are out of date, unused, too much or nobody's.

The law: what is the registry's own is dropped as registrygarbage.py says, where the registry is ours; else the registry
is only read, and in storage nothing outside `verbs/` is touched. A layer index goes when the registry has no such
layer, or no version reads it. Of a derived image the row goes first, and only as it was when it was judged; its object
goes after it. An object without a row goes only where no row names its path: a path belongs to one lease, whose row is
there before the object is, and is never given out again. What a live lease holds stays. What fails is told in the
report, and the rest goes on; two collections at once harm nothing.
"""

import heapq
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING

from data.derivedimages import DerivedImages, DerivedRecord, State
from data.garbage import Kind
from data.layerindexes import INDEXES, indexed_layer
from data.registry import Referred, Registry
from data.storage.base import OWN
from data.storage.distributed import DistributedStorage
from endpoints import spool
from endpoints.registrygarbage import garbage_of
from util.problem import Problem

if TYPE_CHECKING:
    from data.jobs import Jobs
    from data.packedlayers import PackedLayers
    from data.signatures import Signatures
    from data.virtuals import Virtuals
    from endpoints.registrygarbage import RegistryGarbage
    from endpoints.services import Services

log = logging.getLogger(__name__)

DERIVED = f"{OWN}/derived"
"""The folder of the objects that rows name."""

GRACE_SECONDS = 3600
"""How long a lease that ran out, and an object that no row names, are left alone: their maker may be slow, not dead."""

STALE_SECONDS = 24 * 3600
"""How long nothing has been written to what a dead writer left behind, when it is removed."""

JOB_SECONDS = 7 * 24 * 3600
"""How long jobs that have ended can be looked up."""

PACKED_SECONDS = 90 * 24 * 3600
"""How long it is remembered what an image is as one layer; afterwards it is found out again."""

_DAY_MS = 24 * 3600 * 1000
_PAGE = 200
_PATIENCE = 3  # failures of storage in a row; each may have taken minutes
_PATH = re.compile(rf"{DERIVED}/[0-9a-f]{{2}}/(?P<key>[0-9a-f]{{64}})/[0-9a-f]{{32}}")


class StorageGivenUp(Problem):
    """A storage that has failed so often in a collection that the rest is left to the next one."""

    code = "STORAGE_GIVEN_UP"


class Reason(StrEnum):
    """Why something is dropped."""

    GONE = "gone"  # the tag is gone or means another manifest; or the manifest that was asked for by its digest
    UNUSED = "unused"  # not fetched for so many days
    QUOTA = "quota"  # the least recently fetched, where there is more than there may be
    FAILED = "failed"  # a failure that nobody has asked about for so many days
    ABANDONED = "abandoned"  # a making that has not been heard of for an hour
    ORPHAN = "orphan"  # an object that no row names; an index of a layer that is gone, or of another version
    # Of a registry of our own:
    ENDED = Kind.ENDED
    DELETED = Kind.DELETED
    UNTAGGED = Kind.UNTAGGED
    UNREFERENCED = Kind.UNREFERENCED
    STRAY = Kind.STRAY
    UPLOAD = Kind.UPLOAD


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept. `keep_days` since an image was fetched, 0: for ever; `quota` in bytes, None: without end."""

    keep_days: int = 30
    quota: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is dropped. `what` names it to a person, `size` in bytes is what that frees."""

    reason: Reason
    what: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Tally:
    """A number of things, and of their bytes."""

    count: int = 0
    size: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.count + other.count, self.size + other.size)

    def __str__(self) -> str:
        return f"{self.count} ({self.size} bytes)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a collection has dropped; with `dry_run`, what one would. `failures` says what could not be done."""

    dry_run: bool
    dropped: tuple[Finding, ...]
    kept: Tally
    """Complete images that stay."""
    unfinished: int
    """Uploads and parts that dead writers left in storage."""
    spools: int
    """Spools of dead makers on this host."""
    jobs: int
    """Jobs that ended a week ago."""
    virtual: int = 0
    """Rows of virtual tags whose derived image is gone."""
    packed: int = 0
    """What images were as one layer 90 days ago."""
    signatures: int = 0
    """Signatures of such ones."""
    failures: tuple[str, ...]

    @property
    def total(self) -> Tally:
        """All that is dropped."""
        return Tally(len(self.dropped), sum(finding.size for finding in self.dropped))

    @property
    def summary(self) -> str:
        """The counts, as one line."""
        return (
            f"{'dry run, nothing is changed; ' if self.dry_run else ''}dropped: {self.total}, kept: {self.kept},"
            f" left of dead writers: {self.unfinished}, spools: {self.spools}, old jobs: {self.jobs},"
            f" rows of virtual tags: {self.virtual}, of packed layers: {self.packed}, signatures: {self.signatures}"
        )


class Collector:
    """Collects, as often as it is asked to."""

    def __init__(
        self,
        registry: Registry,
        images: DerivedImages,
        storage: DistributedStorage,
        bounds: Bounds,
        *,
        jobs: "Jobs | None" = None,
        virtuals: "Virtuals | None" = None,
        packed_layers: "PackedLayers | None" = None,
        signatures: "Signatures | None" = None,
        garbage: "RegistryGarbage | None" = None,
        spools: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`garbage` is the registry's, where that is ours. `spools` is this host's folder of spools.

        `clock` is held against storage's; rows have the database's.
        """
        self.registry, self.images, self.storage, self.bounds = registry, images, storage, bounds
        self.packed_layers = packed_layers
        self.jobs, self.virtuals, self.signatures = jobs, virtuals, signatures
        self.garbage, self.spools, self.clock = garbage, spools, clock

    def collect(self, *, dry_run: bool = False) -> Report:
        """Drop what is to be dropped, and return what that was.

        With `dry_run` the same is found, and all stays. Raises StorageReadOnly; all else that fails is in the report.
        """
        if not dry_run:
            self.storage.check_writable("what is kept of derived images stays as it is")
        return _Collection(self, dry_run).run()


@dataclass(slots=True)
class _Collection:
    """One collection."""

    by: Collector
    dry_run: bool
    dropped: list[Finding] = field(default_factory=list)
    kept: Tally = Tally()
    failures: Counter[str] = field(default_factory=Counter)
    known: set[str] = field(default_factory=set)
    """Paths that rows name, so that most objects need no look-up."""
    used: list[tuple[int, str, str, int]] = field(default_factory=list)
    """Of each image that stays: when it was used last, its key, its lease's token, its size."""
    broken: int = 0
    """How often storage has failed in a row."""

    def run(self) -> Report:
        counts = {"unfinished": 0, "spools": 0, "jobs": 0, "virtual": 0, "packed": 0, "signatures": 0}
        with self._going_on("rows"):
            self._rows()
            self._quota()
        if self.by.virtuals is not None:
            with self._going_on("virtual tags"):
                counts["virtual"] = self.by.virtuals.sweep(dry_run=self.dry_run)
        if self.by.signatures is not None:
            with self._going_on("signatures"):
                counts["signatures"] = self.by.signatures.sweep(dry_run=self.dry_run)
        if self.by.packed_layers is not None:
            with self._going_on("packed layers"):
                counts["packed"] = self.by.packed_layers.sweep(older_than=PACKED_SECONDS, dry_run=self.dry_run)
        if self.by.garbage is not None:
            with self._going_on("rows of the registry"):
                self.by.garbage.check()
                self._registry(self.by.garbage)
        with self._going_on("objects"):
            self._orphans()
        with self._going_on("layer indexes"):
            self._indexes()
        with self._going_on("unfinished uploads"):
            counts["unfinished"] = self.by.storage.preferred.sweep(older_than=STALE_SECONDS, dry_run=self.dry_run)
        if self.by.spools is not None:
            with self._going_on("spools"):
                counts["spools"] = spool.sweep(self.by.spools, older_than=STALE_SECONDS, dry_run=self.dry_run)
        if self.by.jobs is not None:
            with self._going_on("jobs"):
                counts["jobs"] = self.by.jobs.delete_ended(older_than=JOB_SECONDS, dry_run=self.dry_run)
        return Report(
            dry_run=self.dry_run,
            dropped=tuple(self.dropped),
            kept=self.kept,
            failures=tuple(f"{text} ({times} times)" if times > 1 else text for text, times in self.failures.items()),
            **counts,
        )

    # --- Rows ---

    def _rows(self) -> None:
        now = self.by.images.now_ms()
        records = self.by.images.all()
        asks = True
        while page := list(islice(records, _PAGE)):
            self.known.update(record.path for record in page)
            page = [record for record in page if self._is_ours(record)]
            settled = [record for record in page if record.state is not State.GENERATING]
            gone: set[str] = set()
            if asks:
                try:
                    gone = self._gone(settled)
                except Exception as error:  # noqa: BLE001 what cannot be asked is not gone, whatever the reason
                    self._failed("the registry does not say which images are out of date", error)
                    asks = False
            for record in page:
                reason = self._judged(record, now, gone)
                if reason is not None:
                    self._drop(record, reason)
                elif record.state is State.COMPLETE:
                    self.kept += Tally(1, record.size or 0)
                    self.used.append((_used_ms(record), record.key, record.token, record.size or 0))

    def _is_ours(self, record: DerivedRecord) -> bool:
        """Tell whether what `record` names may be deleted: nobody but us writes rows, but there are hands."""
        if _PATH.fullmatch(record.path):
            return True
        self._failed(f"the row {record.key} names {record.path!r}, which is no place of a derived image")
        return False

    def _gone(self, records: Sequence[DerivedRecord]) -> set[str]:
        """Return the keys of those whose reference does not lead to their manifest any more."""
        asked = {record.key: _referred(record) for record in records}
        leading = self.by.registry.still_leading(asked.values())
        return {key for key, referred in asked.items() if referred not in leading}

    def _judged(self, record: DerivedRecord, now: int, gone: set[str]) -> Reason | None:
        """Return why `record` is to be dropped, None where it stays."""
        if record.state is State.GENERATING:
            ends = record.lease_ends_ms or 0
            abandoned = not record.lease_live and ends < now - GRACE_SECONDS * 1000
            return Reason.ABANDONED if abandoned else None
        if record.key in gone:
            return Reason.GONE
        days = self.by.bounds.keep_days
        if days and _used_ms(record) < now - days * _DAY_MS:
            return Reason.UNUSED if record.state is State.COMPLETE else Reason.FAILED
        return None

    def _quota(self) -> None:
        quota = self.by.bounds.quota
        if quota is None:
            return
        heapq.heapify(self.used)
        while self.used and self.kept.size > quota:
            used, key, token, size = heapq.heappop(self.used)
            record = self.by.images.find(key)
            if record is None or record.token != token or record.state is not State.COMPLETE:
                self.kept += Tally(-1, -size)  # somebody else dropped it
            elif _used_ms(record) != used:
                heapq.heappush(self.used, (_used_ms(record), key, token, size))
            elif self._drop(record, Reason.QUOTA):
                self.kept += Tally(-1, -size)
            else:  # fetched just now
                heapq.heappush(self.used, (used, key, token, size))

    def _drop(self, record: DerivedRecord, reason: Reason) -> bool:
        """Drop `record` and its object, and return whether the row was as it was."""
        self._check_storage()
        if not self.dry_run and not self.by.images.drop(record):
            return False
        what = f"{record.verb} of {record.namespace}/{record.repository}"
        separator = "@" if ":" in record.reference else ":"
        self._delete(Finding(reason, f"{what}{separator}{record.reference}", record.path, record.size or 0))
        return True

    # --- The registry ---

    def _registry(self, garbage: "RegistryGarbage") -> None:
        """Drop what is the registry's own. What becomes nobody's by that, as layers' indexes do, is found after it."""
        for step, found in garbage.steps(self._stays, dry_run=self.dry_run):
            with self._going_on(step):
                for waste in found:
                    self.broken = 0
                    self.dropped.append(Finding(Reason(waste.kind.value), waste.what, waste.path, waste.size))

    def _stays(self, text: str, error: Exception) -> None:
        self.broken += 1
        self._failed(text, error)
        self._check_storage()

    # --- Objects ---

    def _orphans(self) -> None:
        since = (self.by.clock() - GRACE_SECONDS) * 1000
        for blob in self.by.storage.preferred.list(DERIVED):
            if blob.path not in self.known and blob.modified_ms < since and not self._named(blob.path):
                self._check_storage()
                self._delete(Finding(Reason.ORPHAN, blob.path, blob.path, blob.size))

    def _indexes(self) -> None:
        """Drop the layer indexes of layers that the registry has no more, and of versions that are not read."""
        since = (self.by.clock() - GRACE_SECONDS) * 1000
        old = (blob for blob in self.by.storage.preferred.list(INDEXES) if blob.modified_ms < since)
        while page := list(islice(old, _PAGE)):
            layers = {blob.path: layer for blob in page if (layer := indexed_layer(blob.path)) is not None}
            registered = self.by.registry.registered(layers.values())
            for blob in page:
                if layers.get(blob.path) not in registered:
                    self._check_storage()
                    self._delete(Finding(Reason.ORPHAN, blob.path, blob.path, blob.size))

    def _named(self, path: str) -> bool:
        """Tell whether a row names `path`. Once none does, none ever will."""
        match = _PATH.fullmatch(path)
        record = self.by.images.find(match["key"]) if match else None
        return record is not None and record.path == path

    def _delete(self, finding: Finding) -> None:
        if not self.dry_run:
            try:
                self.by.storage.preferred.delete(finding.path)
                self.broken = 0
            except Exception as error:  # noqa: BLE001 without its row it is an orphan, and found as that next time
                self.broken += 1
                self._failed(f"{finding.path} is not deleted", error)
                return
        self.dropped.append(finding)

    # --- Failures ---

    def _check_storage(self) -> None:
        if self.broken >= _PATIENCE:
            raise StorageGivenUp(f"storage has failed {self.broken} times in a row; what is left waits")

    @contextmanager
    def _going_on(self, step: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 it is told, and the rest goes on
            self._failed(f"not all {step} are looked through", error)

    def _failed(self, text: str, error: Exception | None = None) -> None:
        if error is not None and not isinstance(error, Problem):
            log.error("%s", text, exc_info=error)
        self.failures[" ".join((text if error is None else f"{text}: {error}").split())] += 1


def collector_of(services: "Services", *, search: bool = False) -> Collector:
    """Return the collector of what `services` keep; `search`: for strays, every time and not once a day."""
    settings = services.settings
    return Collector(
        services.registry,
        services.derived,
        services.storage,
        Bounds(settings.keep_days, settings.quota),
        jobs=services.jobs,
        virtuals=services.virtuals,
        packed_layers=services.packed_layers,
        signatures=services.signatures,
        garbage=garbage_of(services, search=search),
        spools=settings.spool_dir,
    )


def _referred(record: DerivedRecord) -> Referred:
    return Referred(record.namespace, record.repository, record.reference, record.manifest_digest)


def _used_ms(record: DerivedRecord) -> int:
    """Return when `record` was fetched last, or made."""
    return max(record.created_ms, record.completed_ms or 0, record.failed_ms or 0, record.fetched_ms or 0)
