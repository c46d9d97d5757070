"""A bucket behind several content delivery networks, as Quay's MultiCDNStorage has it.

Invariants: all providers lead to the same bucket, and everything but URLs goes through the default one. A client is
sent to the target of the first rule of which every condition holds, else to the default provider (quay/quay,
storage/multicdnstorage.py). We have no database of where addresses are, so a rule with a continent never holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data.storage.base import ANYBODY, BlobWriter, Recipient, Storage, StoredBlob
from util.digest import Readable


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Conditions, None where there is no such one, and the provider that is chosen by them."""

    target: str
    namespace: str | None = None
    host: str | None = None
    continent: str | None = None

    def holds(self, recipient: Recipient) -> bool:
        """Return whether every condition holds of `recipient`."""
        return (
            self.continent is None
            and self.namespace in (None, recipient.namespace)
            and self.host in (None, recipient.host)
        )


class MultiCdnStorage(Storage):
    """Blobs that clients reach through one of `providers`."""

    def __init__(self, providers: Mapping[str, Storage], default: str, rules: Sequence[Rule]) -> None:
        self._providers, self._rules = dict(providers), tuple(rules)
        self._default = self._providers[default]

    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> Readable:
        return self._default.open(path, offset=offset, length=length)

    def size(self, path: str) -> int:
        return self._default.size(path)

    def create(self, path: str) -> BlobWriter:
        return self._default.create(path)

    def copy(self, source: str, target: str) -> None:
        self._default.copy(source, target)

    def delete(self, path: str) -> None:
        self._default.delete(path)

    def list(self, prefix: str) -> Iterator[StoredBlob]:
        return self._default.list(prefix)

    def sweep(self, *, older_than: float, dry_run: bool = False) -> int:
        return self._default.sweep(older_than=older_than, dry_run=dry_run)

    def direct_download_url(
        self,
        path: str,
        *,
        seconds: int,
        file_name: str | None = None,
        media_type: str | None = None,
        recipient: Recipient = ANYBODY,
    ) -> str | None:
        targets = (self._providers[rule.target] for rule in self._rules if rule.holds(recipient))
        return next(targets, self._default).direct_download_url(
            path, seconds=seconds, file_name=file_name, media_type=media_type, recipient=recipient
        )
