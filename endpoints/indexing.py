"""Layers that have just been pushed are indexed behind the answers, so that the first derivation has their indexes.

The law: it is a head start and nothing else. Who derives makes what is not there; so what does not fit into the queue,
and what is not done when the process ends, is dropped without harm. One thread in a process, begun by a push, and so
after any fork, which ends when nothing waits any more.
"""

import logging
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass

from data.registry import BlobLocation
from endpoints.access import everything
from endpoints.image import ImageFinder, Layer
from endpoints.services import Services
from util.digest import Digest
from util.problem import Damaged, Malformed, Missing, Problem, TooLarge, Unsupported

log = logging.getLogger(__name__)

INDEXING = "registry_verbs_indexing"
"""Where a Flask application keeps its Indexing."""

_WAITING = 1000
_REMEMBERED = 1000
_STOP_SECONDS = 5.0

_running: "set[Indexing]" = set()


@dataclass(frozen=True, slots=True)
class _Pushed:
    namespace: str
    repository: str
    digest: Digest


class Indexing:
    """Makes the indexes of the layers of images that are pushed. Safe to use from several threads."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._finder = ImageFinder(services.registry, services.storage, everything)
        self._waiting: deque[_Pushed] = deque()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._refused: OrderedDict[Digest, None] = OrderedDict()

    def add(self, namespace: str, repository: str, digest: Digest) -> None:
        """Have the layers of the image `digest` indexed soon, or not at all where too many wait. Never waits."""
        with self._lock:
            if self._stopping.is_set():
                return
            if len(self._waiting) >= _WAITING:
                log.info("the layers of %s are indexed when they are needed: %d images wait", digest, _WAITING)
                return
            self._waiting.append(_Pushed(namespace, repository, digest))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="indexing", daemon=True)
                self._thread.start()
                _running.add(self)

    def stop(self) -> None:
        """Begin no other layer, and wait for the one that is being read, but not for long. Idempotent."""
        with self._lock:
            self._stopping.set()
            thread = self._thread
        if thread is not None:
            thread.join(_STOP_SECONDS)

    def _work(self) -> None:
        while (pushed := self._next()) is not None:
            try:
                self._index(pushed)
            except Missing as problem:  # it was deleted, or moved away from
                log.info("the layers of %s are not indexed: %s", pushed.digest, problem)
            except Problem as problem:
                log.warning("the layers of %s are not indexed: %s", pushed.digest, problem)
            except Exception:
                log.exception("the layers of %s are not indexed", pushed.digest)

    def _next(self) -> _Pushed | None:
        """Return what waits longest, None where nothing does; then the thread ends, and the next push begins one."""
        with self._lock:
            if self._waiting and not self._stopping.is_set():
                return self._waiting.popleft()
            self._thread = None
            _running.discard(self)
            return None

    def _index(self, pushed: _Pushed) -> None:
        image = self._finder.find(pushed.namespace, pushed.repository, str(pushed.digest))
        places = self._services.registry.blobs(
            pushed.namespace, pushed.repository, (layer.digest for layer in image.layers)
        )
        for layer in image.layers:
            if self._stopping.is_set():
                return
            place = places.get(layer.digest)
            if place is not None and layer.digest not in self._refused:
                self._index_layer(layer, place)

    def _index_layer(self, layer: Layer, place: BlobLocation) -> None:
        try:
            self._services.indexes.get(place, diff_id=layer.diff_id)
        except (Malformed, Damaged, TooLarge, Unsupported) as problem:
            self._refused[layer.digest] = None  # it is told once, and not read again by each push
            if len(self._refused) > _REMEMBERED:
                self._refused.popitem(last=False)
            log.warning("layer %s cannot be indexed: %s", layer.digest, problem)


def stop_all() -> None:
    """Stop what indexes in this process; for a server's hook at a worker's end."""
    for indexing in tuple(_running):
        indexing.stop()
