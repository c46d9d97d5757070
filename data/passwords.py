"""Passwords, as Quay keeps them: bcrypt.

The law: a password is compared through its hash alone, and whether there is a hash to compare with makes no difference
in time. bcrypt takes the first 72 bytes of a password, and no more count here either.
"""

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from util.problem import Problem

REMEMBERED_SECONDS = 300.0
"""How long a password that was right is not hashed again: bcrypt costs a fifth of a second of processor."""

MIN_LENGTH = 8
_MAX_BYTES = 72
_MAX_REMEMBERED = 4096
_HASH = re.compile(r"\$2[abxy]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}", re.ASCII)
# Nobody's: of random bytes that were thrown away, with as many rounds as a new hash has.
_NOBODYS = "$2b$12$2PDYf94whteRfg0LIUpa7OUXZWDqOpxY6hkVd6NJQEPZqPvwthDKG"


class InvalidPassword(Problem):
    """A password that Quay would not take: shorter than 8 characters, or with white space in it."""

    code = "PASSWORD_INVALID"


def hashed(password: str) -> str:
    """Return the hash to keep of a new `password`. Raises InvalidPassword."""
    import bcrypt

    if len(password) < MIN_LENGTH or re.search(r"[\s\0]", password):
        raise InvalidPassword(f"a password has {MIN_LENGTH} characters or more, and no white space")
    return bcrypt.hashpw(_counted(password), bcrypt.gensalt()).decode()


def _counted(password: str) -> bytes:
    return password.encode(errors="surrogatepass")[:_MAX_BYTES]


def _matches(password: str, kept: str) -> bool:
    import bcrypt

    try:
        return bcrypt.checkpw(_counted(password), kept.encode())
    except ValueError:  # a password with a NUL, which bcrypt does not take
        return False


class Passwords:
    """Compares passwords, and remembers in this process which were right.

    What is remembered stands for one name, one password and one hash: who changes the password makes it forgotten.
    """

    def __init__(self, *, seconds: float = REMEMBERED_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, float] = OrderedDict()  # until when, the earliest end first
        self._turns: dict[bytes, threading.Lock] = {}  # of what is being compared now
        self._lock = threading.Lock()

    def match(self, name: str, password: str, kept: str | None) -> bool:
        """Tell whether `password` is the one whose hash `kept` is; never where there is none, nor any sooner."""
        if kept is None or not _HASH.fullmatch(kept):
            _matches(password, _NOBODYS)
            return False
        mark = hmac.digest(self._key, repr((name, password, kept)).encode(errors="surrogatepass"), hashlib.sha256)
        with self._lock:
            turn = self._turns.setdefault(mark, threading.Lock())
        try:
            with turn:  # who comes with the same at the same time waits for the first, and hashes nothing
                return self._remembers(mark) or self._compare(mark, password, kept)
        finally:
            with self._lock:
                self._turns.pop(mark, None)

    def _remembers(self, mark: bytes) -> bool:
        with self._lock:
            ends = self._right.get(mark)
        return ends is not None and self._clock() < ends

    def _compare(self, mark: bytes, password: str, kept: str) -> bool:
        if not _matches(password, kept):
            return False
        with self._lock:
            self._right.pop(mark, None)
            self._right[mark] = self._clock() + self._seconds
            while len(self._right) > _MAX_REMEMBERED:
                self._right.popitem(last=False)
        return True
