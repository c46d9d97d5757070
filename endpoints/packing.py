"""What an image is as one packed layer: remembered, or found out by packing it once for nothing.

The law: the key names all that decides the layer's bytes: its layers, the root file system's format, the compressor;
and no name, so that an image has one whatever it is called. What is remembered saves work and decides nothing: without
a database an image is packed each time, and what comes out otherwise is forgotten.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from endpoints.streams import Chunks, close
from formats.rootfs import RootfsTar
from util.compression import compression_revision
from util.packedlayer import LayerDiffers, PackedLayer, packed
from util.problem import Problem

if TYPE_CHECKING:
    from endpoints.derive import DerivedImage
    from endpoints.services import Services
    from util.streamlayerformat import StreamLayerMerger

log = logging.getLogger(__name__)


class Packing:
    """What is known of images as one layer. A database that fails is logged, and knows nothing."""

    def __init__(self, services: "Services") -> None:
        self._rows, self._readonly = services.packed_layers, services.settings.readonly

    def known(self, image: "DerivedImage") -> PackedLayer | None:
        """Return what `image` is as one layer in its compression, None where nobody has packed it yet."""
        try:
            return self._rows.find(_key(image))
        except Problem as problem:
            log.info("what %s is as one layer cannot be looked up: %s", image, problem)
            return None

    def told(self, image: "DerivedImage") -> "DerivedImage":
        """Return `image` with its layer, if its format wants one and it is known."""
        return self._with(image, self.known(image)) if image.formatter.packs else image

    def packed(self, image: "DerivedImage", rootfs: "StreamLayerMerger") -> "DerivedImage":
        """Return `image` with its layer, if its format wants one; what is not known yet is found out from `rootfs`."""
        told = self.told(image)
        if not image.formatter.packs or told.source.layer is not None:
            return told
        layer = packed(rootfs.get_generator(), image.compression)
        self.remember(image, layer)
        return self._with(image, layer)

    def remember(self, image: "DerivedImage", layer: PackedLayer) -> None:
        """Have `layer` known as what `image` is, unless the registry is read-only."""
        if self._readonly:
            return
        try:
            self._rows.add(_key(image), layer)
        except Problem as problem:
            log.warning("what %s is as one layer is not remembered: %s", image, problem)

    def watched(self, image: "DerivedImage", chunks: Iterator[bytes]) -> Chunks:
        """Pass `chunks` on, and forget the layer of `image` where they show that it is another one."""
        try:
            yield from chunks
        except LayerDiffers as differs:
            log.warning("%s: %s; it is found out anew", image, differs)
            self._forget(image)
            raise
        finally:
            close(chunks)

    def _forget(self, image: "DerivedImage") -> None:
        layer = image.source.layer
        if layer is None or self._readonly:
            return
        try:
            self._rows.forget(_key(image), layer)
        except Problem as problem:
            log.warning("what %s is as one layer is not forgotten: %s", image, problem)

    @staticmethod
    def _with(image: "DerivedImage", layer: PackedLayer | None) -> "DerivedImage":
        return replace(image, source=replace(image.source, layer=layer))


def _key(image: "DerivedImage") -> str:
    identity = {
        "layers": [str(layer.digest) for layer in image.layers],
        "rootfs": RootfsTar.revision,
        "compression": str(image.compression),
        "compression_revision": compression_revision(image.compression),
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
