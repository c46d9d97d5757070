"""A directory that cannot be asked with these settings: nobody comes in by it, and all else goes on."""

from collections.abc import Collection
from typing import NoReturn

from data.directories.directory import DirectoryUnavailable, Identity, Refusal


class UnusableNow:
    """Answers everything with why it cannot be asked, for the log."""

    def __init__(self, service: str, reason: str) -> None:
        self.service, self.reason = service, reason

    def verify(self, username: str, password: str) -> Identity | Refusal:
        self._refuse()

    def is_superuser(self, identifier: str) -> bool:
        self._refuse()

    def is_readonly_superuser(self, identifier: str) -> bool:
        self._refuse()

    def is_restricted(self, identifier: str) -> bool:
        self._refuse()

    def members(self, group: str) -> Collection[Identity]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DirectoryUnavailable(self.reason)
