"""Several storages as one: blobs lie in one or more locations, as Quay's DISTRIBUTED_STORAGE_CONFIG names them.

The law: what is read comes from the most preferred location that has it and answers; what is written goes to the
preferred one, and nowhere when the registry is read-only. Several locations may be one bucket or several: a blob is
named by its content, so whichever has it has the same.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from data.storage.base import BlobNotFound, BlobWriter, Storage, StorageUnavailable
from data.storage.drivers import make_storage
from util.digest import Readable

log = logging.getLogger(__name__)

T = TypeVar("T")


class LocationSettings(Protocol):
    """One location of the configuration."""

    @property
    def driver(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...


class StorageSettings(Protocol):
    """What is to be known of the settings: the locations by name, which are preferred, and whether we may write."""

    @property
    def storage_config(self) -> Mapping[str, LocationSettings]: ...
    @property
    def storage_preference(self) -> Sequence[str]: ...
    @property
    def readonly(self) -> bool: ...


class StorageReadOnly(StorageUnavailable):
    """A registry that is set to be read-only, where something should be written."""

    code = "STORAGE_READ_ONLY"


def storage_from_config(settings: StorageSettings) -> "DistributedStorage":
    """Return the storages that `settings` say. No connection is made. Raises InvalidStorageConfiguration."""
    storages = {
        name: make_storage(name, location.driver, location.parameters)
        for name, location in settings.storage_config.items()
    }
    return DistributedStorage(storages, settings.storage_preference, readonly=settings.readonly)


class DistributedStorage:
    """Storages by the name of their location. `preference` names all or some of them, the most preferred first."""

    def __init__(self, storages: Mapping[str, Storage], preference: Sequence[str], *, readonly: bool = False) -> None:
        unknown = [name for name in preference if name not in storages]
        if unknown or not storages:
            raise ValueError(f"no storage for {', '.join(unknown) or 'anything'}")
        self._storages = {name: storages[name] for name in (*preference, *storages)}
        self._readonly = readonly

    @property
    def readonly(self) -> bool:
        """Whether nothing may be written, nor deleted."""
        return self._readonly

    @property
    def locations(self) -> tuple[str, ...]:
        """The names of the locations, the most preferred first."""
        return tuple(self._storages)

    @property
    def preferred_location(self) -> str:
        """The name of the location that is written to."""
        return next(iter(self._storages))

    @property
    def preferred(self) -> Storage:
        """The storage that is written to."""
        return self._storages[self.preferred_location]

    def nearest(self, locations: Iterable[str]) -> Storage | None:
        """Return the most preferred storage of `locations`, None where there is none; nothing is looked up."""
        named = set(locations)
        return next((storage for name, storage in self._storages.items() if name in named), None)

    def open(self, locations: Iterable[str], path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        """Return a stream of the blob from the first of `locations` that has it and answers; the caller closes it.

        Raises BlobNotFound when none has it, StorageUnavailable when one that may have it does not answer.
        """
        return self._first(locations, path, lambda storage: storage.open(path, offset=offset, length=length))

    def size(self, locations: Iterable[str], path: str) -> int:
        """Return how many bytes the blob has. Raises as `open` does."""
        return self._first(locations, path, lambda storage: storage.size(path))

    def create(self, path: str) -> BlobWriter:
        """Return a writer for a blob in the preferred location. Raises StorageReadOnly."""
        self.check_writable(f"{path} cannot be written")
        return self.preferred.create(path)

    def copy(self, source: str, target: str) -> None:
        """Make the blob at `target` the one at `source`, both in the preferred location. Raises as Storage.copy does.

        Raises StorageReadOnly.
        """
        self.check_writable(f"{target} cannot be written")
        self.preferred.copy(source, target)

    def delete(self, locations: Iterable[str], path: str) -> None:
        """Make sure that there is no blob at `path` in those of `locations` that the configuration has.

        Raises StorageReadOnly; StorageUnavailable, and it may then be gone from some of them.
        """
        self.check_writable(f"{path} cannot be deleted")
        named = set(locations)
        for name, storage in self._storages.items():
            if name in named:
                storage.delete(path)

    def check_writable(self, otherwise: str) -> None:
        """Raise StorageReadOnly, which says `otherwise`, where nothing may be written nor deleted."""
        if self._readonly:
            raise StorageReadOnly(f"the registry is read-only: {otherwise}")

    def _first(self, locations: Iterable[str], path: str, ask: Callable[[Storage], T]) -> T:
        named = set(locations)
        unavailable: StorageUnavailable | None = None
        asked = [name for name in self._storages if name in named]
        for name in asked:
            try:
                return ask(self._storages[name])
            except BlobNotFound as error:
                log.info("location %s: %s", name, error)
            except StorageUnavailable as error:
                log.warning("location %s: %s", name, error)
                unavailable = unavailable or error
        if unavailable is not None:
            raise unavailable
        strange = ", ".join(sorted(named - set(asked)))
        where = ", ".join(asked) or "any location of the configuration"
        elsewhere = f"; it should lie in {strange}, which the configuration does not have" if strange else ""
        raise BlobNotFound(f"there is no blob {path} in {where}{elsewhere}")
