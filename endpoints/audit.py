"""Who got what: a line of JSON for every verb that was asked for and for every pull, push and deletion over `/v2`; and
the request's id that all its traces carry.

The law: the line is written when the body has ended, whole or cut, so that its bytes are those that were handed over;
writing it never fails a request. It is one line of ASCII whatever a client sent, and short enough to be appended in one
piece by many processes. A request's id is the client's or the proxy's own if it is sane.
"""

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from typing import Any, BinaryIO, Protocol

from flask import Blueprint, Flask, Response, current_app, request

from endpoints import metrics
from endpoints.derive import DerivedImage
from endpoints.settings import InvalidSetting

log = logging.getLogger(__name__)
audit_log = logging.getLogger("registry_verbs.audit")
"""Gets the lines where VERBS_AUDIT_LOG names no file."""

AUDIT = "registry_verbs_audit"
"""Where a Flask application keeps its Audit."""

REGISTRY = "registry_verbs_v2"
"""The name of the blueprint `/v2`."""

ANALYSIS = "registry_verbs_analysis"
"""The name of the blueprint of analyses."""

_VERBS: Mapping[str | None, str] = {ANALYSIS: "analysis"}
"""What is asked for at the routes of a blueprint that are for one image and say no verb."""

HEADER = "X-Request-ID"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/@-]{0,127}")
_LONGEST = 300
"""Characters of JSON that a value may have: a line stays below the 4096 bytes that a pipe takes in one piece."""


class How(StrEnum):
    """The way an answer came about."""

    MADE = "made"
    FOLLOWED = "followed"
    STREAMED = "streamed"
    STORED = "stored"
    REDIRECTED = "redirected"
    RANGE = "range"
    PLANNED = "planned"
    NOT_MODIFIED = "not_modified"


class Audit:
    """Where an application's lines go, and how it knows who asks."""

    def __init__(self, path: str | None, who: Callable[[], str | None], verbs: frozenset[str]) -> None:
        """`path` is a file to append to, `-` for stdout, None for the logger `registry_verbs.audit`.

        Raises InvalidSetting for a file that cannot be written.
        """
        self._path, self.who, self._verbs = path, who, verbs
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()
        if path is not None and path != "-":
            try:
                open(path, "ab").close()
            except OSError as error:
                raise InvalidSetting(
                    f"VERBS_AUDIT_LOG is {path!r}, which cannot be written: {error.strerror}"
                ) from None

    def label(self, verb: object) -> str:
        """Return `verb` as metrics call it: a stranger's word makes no new one."""
        return verb if isinstance(verb, str) and (verb in self._verbs or verb in _VERBS.values()) else "unknown"

    def write(self, line: str) -> None:
        """Append `line`. Raises OSError."""
        if self._path is None:
            audit_log.info("%s", line)
        elif self._path == "-":
            sys.stdout.flush()
            os.write(1, line.encode() + b"\n")
        else:
            with self._lock:
                os.write(self._opened(self._path).fileno(), line.encode() + b"\n")

    def _opened(self, path: str) -> BinaryIO:
        """Return the file at `path`, a new one where the old one was moved away: logs are rotated."""
        file = self._file
        if file is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
            file.close()
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 stays open for the next line
        return self._file


@dataclass(eq=False, slots=True)
class Exchange:
    """One request and its answer, as far as they have got."""

    request_id: str
    began: float
    facts: dict[str, Any] = field(default_factory=dict)
    how: How | None = None
    code: str | None = None
    first_byte: float | None = None
    size: int = 0
    answered: bool = False
    ended: bool = False


_exchange: ContextVar[Exchange | None] = ContextVar("registry_verbs_exchange", default=None)


def request_id() -> str | None:
    """Return the id of the request that this thread answers, None between requests."""
    exchange = _exchange.get()
    return None if exchange is None else exchange.request_id


def resolved(image: DerivedImage) -> None:
    """Tell what the request has turned out to mean."""
    exchange = _exchange.get()
    if exchange is not None:
        exchange.facts.update(platform=str(image.source.platform), compression=str(image.compression))


def about(namespace: str, repository: str) -> None:
    """Tell which repository a request to `/v2` is for."""
    exchange = _exchange.get()
    if exchange is not None:
        exchange.facts.update(namespace=namespace, repository=repository)


def served(how: How | str) -> None:
    """Tell which way the answer comes about."""
    exchange = _exchange.get()
    if exchange is not None:
        exchange.how = How(how)


def failed(stage: str, error: BaseException | str) -> None:
    """Tell why there is no answer, or no whole one; it is counted too. `error` may be a code."""
    metrics.failed(stage, error)
    exchange = _exchange.get()
    if exchange is not None:
        exchange.code = error if isinstance(error, str) else getattr(error, "code", "UNKNOWN")


def watch(scaffold: Blueprint | Flask) -> None:
    """Have every request to `scaffold` carry an id, and have those for verbs written down."""
    scaffold.before_request(_begin)
    scaffold.after_request(_answered)


def _begin() -> None:
    environ = request.environ
    if "registry_verbs.exchange" in environ:
        return
    given = request.headers.get(HEADER, "")
    exchange = Exchange(given if _SANE.fullmatch(given) else uuid.uuid4().hex, time.perf_counter())
    environ["registry_verbs.exchange"] = exchange
    _exchange.set(exchange)


def _answered(response: Response) -> Response:
    exchange: Exchange | None = request.environ.get("registry_verbs.exchange")
    if exchange is None or exchange.answered:
        return response
    exchange.answered = True
    response.headers.setdefault(HEADER, exchange.request_id)
    audit: Audit | None = current_app.extensions.get(AUDIT)
    end = _Forget(exchange) if audit is None else _end_of(exchange, audit, response.status_code)
    with_body = request.method != "HEAD" and response.status_code not in (
        HTTPStatus.NO_CONTENT,
        HTTPStatus.NOT_MODIFIED,
    )
    if response.is_sequence:
        response.direct_passthrough = False  # a list has no close() of its own, by which a server would tell its end
        exchange.size = (response.calculate_content_length() or 0) if with_body else 0
        response.call_on_close(lambda: end(complete=True))
        return response
    length = response.content_length if with_body else 0
    response.response = _watched(response.response, exchange, end, length)
    return response


_CONTENT = ("reference", "digest")
_QUERIED = ("digest", "mount")


def _end_of(exchange: Exchange, audit: Audit, status: int) -> "_End":
    """Return what ends the exchange: with a line where somebody got something, or would have liked to."""
    wanted = request.view_args or {}
    if {"namespace", "repository", "tag"} <= wanted.keys():
        verb = wanted.get("verb", _VERBS.get(request.blueprint, "aci"))
        facts = {
            "namespace": wanted["namespace"],
            "repository": wanted["repository"],
            "tag": wanted["tag"],
            "verb": verb,
            "platform": request.args.get("platform"),
            "compression": request.args.get("compression"),
        }
        return _Line(exchange, audit, facts, status, count=partial(metrics.answered, audit.label(verb)))
    if request.blueprint != REGISTRY:
        return _Forget(exchange)
    count = partial(metrics.registry_answered, (request.endpoint or "").rpartition(".")[2] or "none")
    verb = registry_verb(request.method, wanted, status)
    if verb is None:
        return _Counted(exchange, status, count=count)
    facts = {
        "namespace": None,
        "repository": wanted["name"],
        "tag": wanted.get("reference")
        or wanted.get("digest")
        or request.args.get("digest")
        or request.args.get("mount"),
        "verb": verb,
        "platform": None,
        "compression": None,
    }
    return _Line(exchange, audit, facts, status, count=count)


def registry_verb(method: str, wanted: Container[str], status: int) -> str | None:
    """Return what a request to `/v2` with the arguments `wanted` was: `pull`, `push` or `delete`; None for no such.

    That is one by which somebody gets bytes, or something comes or goes, or one for that which was refused. To look
    whether something is there, and to send a part of an upload, is none.
    """
    content = any(each in wanted for each in _CONTENT)
    refused = status >= HTTPStatus.BAD_REQUEST
    if "name" not in wanted:
        return None
    if method == "GET":
        return "pull" if content else None
    if method == "DELETE":
        return "delete" if content else None
    if method == "PUT" or (method == "POST" and status == HTTPStatus.CREATED):
        return "push"
    return "push" if refused and method in ("POST", "PATCH") else None


class _End(Protocol):
    def __call__(self, *, complete: bool) -> None: ...


class _Count(Protocol):
    """Counts an answer that has ended."""

    def __call__(
        self, *, status: int, how: str | None, size: int, first_byte: float | None, complete: bool, get: bool
    ) -> None: ...


class _Forget:
    """Ends an exchange of which no line is written."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __call__(self, *, complete: bool) -> None:
        if _exchange.get() is self._exchange:
            _exchange.set(None)


class _Counted(_Forget):
    """Ends an exchange: counts it. It is made while there is a request, and looks at it then."""

    def __init__(self, exchange: Exchange, status: int, *, count: _Count) -> None:
        super().__init__(exchange)
        self._status, self._method, self._count = status, request.method, count

    def __call__(self, *, complete: bool) -> None:
        exchange = self._exchange
        if exchange.ended:
            return
        exchange.ended = True
        self._count(
            status=self._status,
            how=exchange.how,
            size=exchange.size,
            first_byte=exchange.first_byte,
            complete=complete,
            get=self._method == "GET",
        )
        self._written(complete=complete)
        super().__call__(complete=complete)

    def _written(self, *, complete: bool) -> None:
        """Write down that it has ended, where that is wanted."""


class _Line(_Counted):
    """Ends an exchange: counts it and writes its line."""

    def __init__(
        self, exchange: Exchange, audit: Audit, facts: Mapping[str, Any], status: int, *, count: _Count
    ) -> None:
        super().__init__(exchange, status, count=count)
        self._audit = audit
        asked = {"who": audit.who(), "ip": request.remote_addr, "method": request.method}
        exchange.facts = {**asked, **facts, **exchange.facts}

    def _written(self, *, complete: bool) -> None:
        try:
            self._audit.write(self._text(complete=complete))
        except Exception:
            log.exception("an audit line could not be written")

    def _text(self, *, complete: bool) -> str:
        exchange = self._exchange
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": exchange.request_id,
            **{name: _clipped(value) for name, value in exchange.facts.items()},
            "status": self._status,
            "bytes": exchange.size,
            "complete": complete,
            "seconds": round(time.perf_counter() - exchange.began, 4),
            "how": exchange.how,
            "code": exchange.code,
        }
        return json.dumps(line, ensure_ascii=True)


def _clipped(value: object) -> object:
    if isinstance(value, str) and len(json.dumps(value)) > _LONGEST:
        return value[:40] + "…"
    return value


def _watched(body: Any, exchange: Exchange, end: _End, length: int | None) -> Any:
    """Return `body` so that its bytes are counted and `end` is called when it is closed, with whether it was whole.

    A file that the server will send by itself stays one.
    """
    wrapper = request.environ.get("wsgi.file_wrapper")
    if isinstance(wrapper, type) and isinstance(body, wrapper):
        file = getattr(body, "filelike", None) or getattr(body, "file", None)  # gunicorn's name, and werkzeug's
        if file is not None:
            return wrapper(_WatchedFile(file, exchange, end, length), *_block_size(body))
    return _WatchedChunks(body, exchange, end, length)


def _block_size(body: Any) -> tuple[int, ...]:
    size = getattr(body, "blksize", None) or getattr(body, "buffer_size", None)
    return () if size is None else (size,)


class _Watched:
    def __init__(self, body: Any, exchange: Exchange, end: _End, length: int | None) -> None:
        self._body, self._exchange, self._end, self._length = body, exchange, end, length

    def _sent(self, size: int) -> None:
        exchange = self._exchange
        if exchange.first_byte is None and size:
            exchange.first_byte = time.perf_counter() - exchange.began
        exchange.size += size

    def _close(self, *, complete: bool) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            failed("body", error.__cause__ or error)
            complete = False
            raise
        finally:
            self._end(complete=complete)


class _WatchedChunks(_Watched):
    """An iterator of bytes. It is whole when it was read to its end, or when its length is reached."""

    def __init__(self, body: Any, exchange: Exchange, end: _End, length: int | None) -> None:
        super().__init__(body, exchange, end, length)
        self._chunks: Iterator[bytes] = iter(body)
        self._exhausted = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._exhausted = True
            raise
        except BaseException as error:
            failed("body", error.__cause__ or error)
            raise
        self._sent(len(chunk))
        return chunk

    def close(self) -> None:
        # A server that has handed over the last bytes asks for more; one whose client has left does not.
        self._close(complete=self._exhausted or (self._length == 0 and self._exchange.size == 0))


class _WatchedFile(_Watched):
    """A file for `sendfile`. socket.sendfile tells how far it got by moving the file to where it stopped."""

    def __init__(self, body: Any, exchange: Exchange, end: _End, length: int | None) -> None:
        super().__init__(body, exchange, end, length)
        self._at = self._begin = body.tell()
        exchange.first_byte = time.perf_counter() - exchange.began

    def fileno(self) -> int:
        number: int = self._body.fileno()
        return number

    def tell(self) -> int:
        position: int = self._body.tell()
        return position

    def seek(self, offset: int, whence: int = 0) -> int:
        position: int = self._body.seek(offset, whence)
        self._at = max(self._at, position)
        return position

    def read(self, size: int = -1) -> bytes:
        chunk: bytes = self._body.read(size)
        self._at += len(chunk)
        return chunk

    def close(self) -> None:
        self._sent(self._at - self._begin)
        self._close(complete=self._length is None or self._exchange.size >= self._length)
