"""A connection to an LDAP server: opened, bound and asked, each within a time, and with a bound on what comes back.

Invariants: an operation ends within its time, however slowly bytes come, and takes no more than `MAX_ANSWER` bytes;
TLS is verified before anything is sent; whatever the library raises becomes DirectoryUnavailable, without the text of
what was sent.
RFC 4511 (messages and result codes), RFC 4513 (bind, StartTLS), RFC 2696 (pages).
"""

import contextlib
import logging
import socket
import ssl
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from data.directories.directory import DirectoryUnavailable, LdapSettings, UnusableDirectory
from data.directories.trust import client_context

try:
    with warnings.catch_warnings():  # it asks pyasn1 for old names
        warnings.simplefilter("ignore", DeprecationWarning)
        import ldap3
        from ldap3.core.exceptions import LDAPExceptionError
        from ldap3.operation.search import parse_filter
except ImportError:
    raise UnusableDirectory(
        "AUTHENTICATION_TYPE is LDAP, which needs a library: pip install 'registry-verbs[ldap]'"
    ) from None

log = logging.getLogger(__name__)

MAX_ANSWER = 4 << 20
"""How many bytes may come back for one operation: a page of a group's members takes a tenth of it."""

_PAGE = 500
_MAX_PAGES = 2000
_PAGES = "1.2.840.113556.1.4.319"
_START_TLS = "1.3.6.1.4.1.1466.20037"

SUCCESS, SIZE_LIMIT_EXCEEDED, REFERRAL, NO_SUCH_OBJECT = 0, 4, 10, 32

_BIND_REFUSED = {19, 32, 34, 48, 49, 50, 53}
"""Constraint violation (a locked account), no such object, invalid name, inappropriate authentication (no password),
invalid credentials, insufficient rights, unwilling to perform."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a search found: a full name, and of the attributes that were asked for the values."""

    dn: str
    values: dict[str, tuple[bytes, ...]]

    def first(self, attribute: str) -> str | None:
        """Return the first value of an attribute as text; None where there is none that is text."""
        for value in self.values.get(attribute.lower(), ()):
            with contextlib.suppress(UnicodeDecodeError):
                return value.decode()
        return None


@dataclass(frozen=True, slots=True)
class Found:
    """A search's answer: entries, the URLs that it refers to, and whether there were more entries than were wanted."""

    code: int
    entries: tuple[Entry, ...]
    referrals: tuple[str, ...]


class _BoundedSocket:
    """A socket whose reads and writes end by a moment, and after so many bytes."""

    def __init__(self, inner: socket.socket, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds
        self.begin()

    def begin(self) -> None:
        """Begin another operation, with all its time and bytes."""
        self._ends, self._left = time.monotonic() + self._seconds, MAX_ANSWER

    def recv(self, size: int) -> bytes:
        self._inner.settimeout(self._remaining())
        data = self._inner.recv(size)
        self._left -= len(data)
        if self._left < 0:
            raise OSError(f"the answer is longer than {MAX_ANSWER} bytes")
        return data

    def sendall(self, data: bytes) -> None:
        self._inner.settimeout(self._remaining())
        self._inner.sendall(data)

    def shutdown(self, how: int) -> None:
        self._inner.shutdown(how)

    def close(self) -> None:
        self._inner.close()

    def secured(self, context: ssl.SSLContext, host: str) -> None:
        """Go on within TLS. Raises OSError."""
        self._inner.settimeout(self._remaining())
        self._inner = context.wrap_socket(self._inner, server_hostname=host)

    def _remaining(self) -> float:
        remaining = self._ends - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"it did not answer within {self._seconds:g} seconds")
        return remaining


class LdapConnection:
    """A connection to one server, not yet bound. Not for several threads at a time. To be closed."""

    def __init__(self, uri: str, settings: LdapSettings, trust: ssl.SSLContext) -> None:
        """Connect, with TLS where the URI or the settings say so, by `trust`. Raises DirectoryUnavailable."""
        self._uri, self._settings, self._trust = uri, settings, trust
        self.opened = time.monotonic()
        parts = urlsplit(uri)
        self._host, self._secure = parts.hostname or "localhost", parts.scheme == "ldaps"
        self._port = parts.port or (636 if self._secure else 389)
        self._socket = _BoundedSocket(self._connected(verify=True), settings.timeout)
        server = ldap3.Server(self._host, port=self._port, get_info=ldap3.NONE)
        self._connection = ldap3.Connection(
            server, client_strategy=ldap3.SYNC, auto_referrals=False, auto_range=False, check_names=False,
            auto_escape=False, return_empty_attributes=False,
        )  # fmt: skip
        with self._operation("connect"):
            # The library's own has no bound on time or bytes, and verifies a server's name by itself.
            self._connection.strategy._open_socket = self._open  # noqa: SLF001
            self._connection.open(read_server_info=False)
        if settings.start_tls and not self._secure:
            self._start_tls()

    def _connected(self, *, verify: bool) -> socket.socket:
        settings = self._settings
        context = self._context(verify=verify) if self._secure else None
        try:
            plain = socket.create_connection((self._host, self._port), timeout=settings.network_timeout)
        except OSError as error:
            raise DirectoryUnavailable(f"{self._uri} cannot be reached: {_said(error)}") from error
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return plain if context is None else context.wrap_socket(plain, server_hostname=self._host)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            if not settings.insecure_fallback:
                raise DirectoryUnavailable(f"{self._uri} is not trusted: {error.verify_message}") from error
            log.warning("%s is not trusted, and used by LDAP_ALLOW_INSECURE_FALLBACK: %s", self._uri, error)
            return self._connected(verify=False)
        except OSError as error:
            plain.close()
            raise DirectoryUnavailable(f"{self._uri} does not speak TLS: {_said(error)}") from error

    def _context(self, *, verify: bool) -> ssl.SSLContext:
        return self._trust if verify else client_context((), verify=False)

    def _open(self, *_: Any, **__: Any) -> None:
        self._connection.socket = self._socket
        self._connection.closed = False

    def _start_tls(self) -> None:
        with self._operation("begin TLS with"):
            self._connection.extended(_START_TLS)
            code = self._connection.result["result"]
        if code != SUCCESS:
            if self._settings.insecure_fallback:
                log.warning("%s has no StartTLS, and is used by LDAP_ALLOW_INSECURE_FALLBACK", self._uri)
                return
            self.close()
            raise DirectoryUnavailable(f"{self._uri} has no StartTLS (result {code})")
        verify = not self._settings.insecure_fallback
        if not verify:
            log.warning("%s is not verified: LDAP_ALLOW_INSECURE_FALLBACK", self._uri)
        try:
            self._socket.secured(self._context(verify=verify), self._host)
        except OSError as error:
            self.close()
            said = getattr(error, "verify_message", None) or _said(error)
            raise DirectoryUnavailable(f"{self._uri} is not trusted: {said}") from error

    def bind(self, dn: str | None, password: str) -> bool:
        """Log in as `dn`, or as nobody for None, and tell whether that was allowed. Raises DirectoryUnavailable."""
        connection = self._connection
        if dn is None:
            connection.authentication, connection.user, connection.password = ldap3.ANONYMOUS, None, None
        else:
            if not password:
                return False  # a server lets it in, as nobody: RFC 4513, 5.1.2
            connection.authentication, connection.user = ldap3.SIMPLE, dn
            connection.password = password.encode()  # else the library prepares the text in its own way
        with self._operation("log in to"):
            connection.bind(read_server_info=False)
            code, said = connection.result["result"], connection.result["description"]
        connection.password = None
        if code == SUCCESS:
            return True
        if code in _BIND_REFUSED:
            return False
        self.close()
        raise DirectoryUnavailable(f"{self._uri} does not let anybody log in: {said}")

    def search(self, base: str, text: str, attributes: Sequence[str], *, limit: int) -> Found:
        """Return up to about `limit` entries at or below `base` that the filter `text` is true of.

        Raises DirectoryUnavailable.
        """
        return self._search(base, text, attributes, limit=limit)[0]

    def names(self, dn: str, attributes: Sequence[str]) -> frozenset[str] | None:
        """Return which of `attributes` the entry `dn` has, in lower case; None where there is none or it is not shown.

        Raises DirectoryUnavailable.
        """
        found = self._search(dn, "(objectClass=*)", attributes, limit=1, names_of_base=True)[0]
        return frozenset(found.entries[0].values) if found.entries else None

    def pages(self, base: str, text: str, attributes: Sequence[str]) -> Iterator[Found]:
        """Return all entries below `base`, a page at a time. Raises DirectoryUnavailable."""
        cookie: bytes | None = None
        for _ in range(_MAX_PAGES):
            found, cookie = self._search(base, text, attributes, page=_PAGE, cookie=cookie)
            yield found
            if not cookie:
                return
        raise DirectoryUnavailable(f"{self._uri} has more than {_MAX_PAGES} pages of entries below {base}")

    def _search(
        self,
        base: str,
        text: str,
        attributes: Sequence[str],
        *,
        limit: int = 0,
        names_of_base: bool = False,
        page: int | None = None,
        cookie: bytes | None = None,
    ) -> tuple[Found, bytes | None]:
        connection = self._connection
        with self._operation("search in"):
            connection.search(
                base,
                text,
                ldap3.BASE if names_of_base else ldap3.SUBTREE,
                attributes=list(attributes),
                size_limit=limit,
                time_limit=max(1, int(self._settings.timeout)),
                types_only=names_of_base,
                paged_size=page,
                paged_cookie=cookie,
            )
            result, responses = connection.result, connection.response or []
            entries = tuple(_entry(each) for each in responses if each["type"] == "searchResEntry")
            continued = [uri for each in responses if each["type"] == "searchResRef" for uri in each["uri"]]
            referrals = (*(result.get("referrals") or ()), *continued)
            control = (result.get("controls") or {}).get(_PAGES)
            following = control["value"]["cookie"] if control else None
            code = result["result"]
        if code not in (SUCCESS, SIZE_LIMIT_EXCEEDED, REFERRAL, NO_SUCH_OBJECT):
            raise DirectoryUnavailable(f"{self._uri} does not search below {base}: {result['description']}")
        return Found(code, entries, tuple(map(str, referrals))), following

    @contextlib.contextmanager
    def _operation(self, doing: str) -> Iterator[None]:
        self._socket.begin()
        try:
            yield
        except DirectoryUnavailable:
            raise
        except (LDAPExceptionError, OSError) as error:
            self.close()
            raise DirectoryUnavailable(f"cannot {doing} {self._uri}: {_said(error)}") from None
        except Exception as error:  # noqa: BLE001 what the library trips over in bytes that are no LDAP
            self.close()
            said = type(error).__name__
            raise DirectoryUnavailable(f"cannot {doing} {self._uri}: its answer is no LDAP ({said})") from None

    def close(self) -> None:
        """Close, without a farewell that would be waited for. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.close()


def checked_filter(key: str, text: str) -> str:
    """Return a filter from the settings in parentheses. Raises UnusableDirectory that names the key."""
    text = text.strip()
    text = text if text.startswith("(") and text.endswith(")") else f"({text})"
    try:
        parse_filter(text, None, False, False, None, False)
    except Exception as error:  # noqa: BLE001 what is no filter makes the library raise anything
        raise UnusableDirectory(f"{key} is {text!r}, which is no filter of RFC 4515: {_said(error)}") from None
    return text


def escaped(value: str) -> str:
    """Return `value` as a filter takes it literally: all but ASCII letters and digits as a backslash and two digits.

    RFC 4515, 3 asks for less; but whoever parses a filter then has nothing to misread.
    """
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 0x80 else f"\\{byte:02x}" for byte in value.encode())


def _entry(response: Any) -> Entry:
    values = {name.lower(): tuple(map(bytes, each or ())) for name, each in response["raw_attributes"].items()}
    return Entry(str(response["dn"]), values)


def _said(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:300] or type(error).__name__
