"""The garbage of a registry of our own, as the collector collects it: in which order, and what is spared.

The law: only who keeps the registry collects it: never what is a Quay's, and nothing where the registry is read-only.
Each step stands alone, so that one that fails leaves the others to go on; but no blob is deleted unless it was just
seen whose the storage is. Looking through a whole storage for strays is done once a day, or when somebody asks for it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.derivedimages import DerivedImages, State
from data.garbage import Failed, Garbage, Kind, Needed, Waste
from data.marks import Marks
from data.strays import Strays
from util.problem import Problem

if TYPE_CHECKING:
    from data.uploads import Uploads
    from endpoints.services import Services

SEARCH_SECONDS = 24 * 3600
"""How long after a search for strays no other begins by itself."""

_SEARCHED = "registry-strays"
_PAGE = 200


@dataclass(frozen=True, slots=True)
class RegistryGarbage:
    """What there is to collect. Uploads that nothing has come to for `upload_seconds` are abandoned.

    `search` has every collection look for strays; else one a day does.
    """

    garbage: Garbage
    strays: Strays
    uploads: "Uploads"
    images: DerivedImages
    marks: Marks
    upload_seconds: float
    search: bool = False
    clock: Callable[[], float] = time.time

    def check(self) -> None:
        """Raise QuaysRegistry where nothing is to be collected after all."""
        self.garbage.check()

    def steps(self, failed: Failed, *, dry_run: bool) -> Iterator[tuple[str, Iterator[Waste]]]:
        """Yield what is looked through, by a name for people; each iterator drops things and tells what they were.

        `failed` is told of each thing that has to stay. An iterator that raises has left the rest for the next time.
        """
        yield "tags", self.garbage.tags(dry_run=dry_run)
        yield "deleted repositories", self.garbage.repositories(dry_run=dry_run)
        yield "manifests", self.garbage.manifests(self._needed, dry_run=dry_run)
        yield "blobs", self._blobs(failed, dry_run=dry_run)
        yield "uploads", self._uploads(dry_run=dry_run)
        if self.search or self._is_due():
            yield "objects in storage", self._strays(failed, dry_run=dry_run)

    def _needed(self) -> set[Needed]:
        """Return the manifests that somebody is making something of, or was until just now."""
        found: set[Needed] = set()
        after = None
        while page := self.images.list(state=State.GENERATING, after=after, limit=_PAGE):
            found.update(Needed(each.namespace, each.repository, each.manifest_digest) for each in page)
            after = page[-1].key
        return found

    def _blobs(self, failed: Failed, *, dry_run: bool) -> Iterator[Waste]:
        if not dry_run:
            self.garbage.links()
        self.strays.check(dry_run=dry_run)
        yield from self.garbage.blobs(failed, dry_run=dry_run)

    def _uploads(self, *, dry_run: bool) -> Iterator[Waste]:
        for abandoned in self.uploads.sweep(older_than=self.upload_seconds, dry_run=dry_run):
            yield Waste(Kind.UPLOAD, abandoned.what, abandoned.path, abandoned.size)

    def _strays(self, failed: Failed, *, dry_run: bool) -> Iterator[Waste]:
        now = self._now_ms()
        yield from self.strays.collect(failed, dry_run=dry_run)
        if not dry_run:
            self.marks.advance(_SEARCHED, now)

    def _is_due(self) -> bool:
        searched = self.marks.find(_SEARCHED)
        return searched is None or self._now_ms() - searched >= SEARCH_SECONDS * 1000

    def _now_ms(self) -> int:
        return round(self.clock() * 1000)


def garbage_of(services: "Services", *, search: bool = False) -> RegistryGarbage | None:
    """Return the garbage of the registry that `services` keep.

    None where it is a Quay's, only read, or keeps its garbage (FEATURE_GARBAGE_COLLECTION; and DISABLE_PUSHES, as
    quay/quay, workers/gc/gcworker.py has it).
    """
    settings = services.settings
    keeps = settings.readonly or not settings.pushes or not settings.collects_garbage
    if keeps or not settings.own_registry:
        return None
    return RegistryGarbage(
        Garbage(services.engine, services.storage, grace_seconds=settings.grace_seconds),
        Strays(services.engine, services.own_engine, services.storage),
        services.uploads,
        services.derived,
        Marks(services.own_engine),
        upload_seconds=settings.upload_seconds,
        search=search,
    )


class NothingAdopted(Problem):
    """A storage that is not to be the registry's alone: nothing of the registry is collected here."""

    code = "NOTHING_ADOPTED"


def adopt_storage(services: "Services") -> None:
    """Say that all that lies in the storage is the registry's that `services` keep.

    Raises NothingAdopted where there is nothing to collect (see `garbage_of`), QuaysRegistry, StorageUnavailable,
    DatabaseUnavailable.
    """
    garbage = garbage_of(services)
    if garbage is None:
        raise NothingAdopted(
            "the registry is a Quay's, read-only, or keeps its garbage: nothing in its storage is adopted"
        )
    garbage.check()
    garbage.strays.adopt()
