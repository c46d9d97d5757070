"""The analysis of an image: what its layers bring and waste, and as a document. Knows no HTTP.

The law: it is made of the layer indexes; a layer is read only where it has none yet, as for a derived image. Layers are
numbered as people do: the base is 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from endpoints.access import Permission
from endpoints.image import Image, ImageFinder
from endpoints.rules import ImageName
from endpoints.services import Services
from util.imageconfig import History
from util.layeranalysis import LayerAnalysis, LayerUse, WastedPath, analyze
from util.platform import Platform
from util.problem import letting_go

TOP = 20
"""How many wasted paths are told of unless all are wanted, and how many whiteouts of a layer that hide nothing."""


@dataclass(frozen=True, slots=True)
class AnalyzedLayer:
    """One layer. `stored_size`: of its blob, in bytes. `step`: what the configuration says of how it came to be."""

    number: int
    digest: str
    diff_id: str
    stored_size: int
    step: History | None
    use: LayerUse


@dataclass(frozen=True, slots=True)
class AnalyzedImage:
    """An image and its analysis. `stored_size`: of its blobs, in bytes; one that is there twice counts once."""

    name: ImageName
    image: Image
    stored_size: int
    layers: tuple[AnalyzedLayer, ...]
    found: LayerAnalysis

    @property
    def saved_size(self) -> int:
        """How many bytes less the merged tar has than those of all layers; negative where it has more."""
        return self.found.tar_size - self.found.squashed_size

    @property
    def saved_percent(self) -> float:
        return 100 * self.saved_size / self.found.tar_size if self.found.tar_size else 0.0


def analysis_of(
    services: Services,
    permission: Permission,
    name: ImageName,
    platform: Platform | None = None,
) -> AnalyzedImage:
    """Return the analysis of the image that `name` means, after indexing what is not.

    Raises what ImageFinder.find raises, Denied first of all; then what it and LayerIndexes raise about layers, and
    plan_merge about layers that do not go together.
    """
    finder = ImageFinder(services.registry, services.storage, permission)
    image = finder.find(name.namespace, name.repository, name.reference, platform)
    blobs = finder.blobs(name.namespace, name.repository, image.layers)
    with letting_go():
        indexes = services.indexes.many(blobs, [layer.diff_id for layer in image.layers])
        found = analyze(indexes, layers=[str(blob.digest) for blob in blobs], limits=services.limits)
    sizes = {
        blob.digest: services.storage.size(blob.locations, blob.path) if blob.size is None else blob.size
        for blob in blobs
    }
    steps = _steps(image)
    layers = tuple(
        AnalyzedLayer(at + 1, str(blob.digest), str(indexes[at].diff_id), sizes[blob.digest], steps[at], use)
        for at, (blob, use) in enumerate(zip(blobs, found.layers, strict=True))
    )
    return AnalyzedImage(name, image, sum(sizes.values()), layers, found)


def _steps(image: Image) -> Sequence[History | None]:
    """Return the step of the history that made each layer; nothing where there are not as many as layers."""
    steps = [step for step in image.config.history if not step.empty_layer]
    return steps if len(steps) == len(image.layers) else [None] * len(image.layers)


def document(analyzed: AnalyzedImage, *, most: int | None = TOP) -> dict[str, Any]:
    """Return the analysis as JSON has it, with the `most` largest wasted paths; None is all."""
    found = analyzed.found
    return {
        "namespace": analyzed.name.namespace,
        "repository": analyzed.name.repository,
        "reference": analyzed.name.reference,
        "manifest_digest": str(analyzed.image.manifest_digest),
        "platform": str(analyzed.image.platform),
        "stored_bytes": analyzed.stored_size,
        "tar_bytes": found.tar_size,
        "squashed_bytes": found.squashed_size,
        "saved_bytes": analyzed.saved_size,
        "saved_percent": round(analyzed.saved_percent, 2),
        "bytes": found.size,
        "kept_bytes": found.kept_size,
        "shadowed_bytes": found.shadowed_size,
        "efficiency": round(found.efficiency, 6),
        "layers": [_layer(layer, most) for layer in analyzed.layers],
        "wasted_paths": len(found.wasted),
        "wasted": [_path(path) for path in islice(found.wasted, most)],
    }


def _layer(layer: AnalyzedLayer, most: int | None) -> dict[str, Any]:
    use, step = layer.use, layer.step
    return {
        "number": layer.number,
        "digest": layer.digest,
        "diff_id": layer.diff_id,
        "created": None if step is None else step.created,
        "created_by": None if step is None else step.created_by,
        "stored_bytes": layer.stored_size,
        "tar_bytes": use.tar_size,
        "entries": use.entries,
        "files": use.files,
        "bytes": use.size,
        "kept_files": use.kept_files,
        "kept_bytes": use.kept_size,
        "shadowed_files": use.shadowed_files,
        "shadowed_bytes": use.shadowed_size,
        "shadowed": [
            {"by": shadow.by + 1, "how": str(shadow.how), "files": shadow.files, "bytes": shadow.size}
            for shadow in use.shadows
        ],
        "whiteouts": use.whiteouts,
        "idle_whiteouts": len(use.idle),
        "idle": [_text(name) for name in islice(use.idle, most)],
    }


def _path(path: WastedPath) -> dict[str, Any]:
    layers = [layer + 1 for layer in path.layers]
    return {"path": _text(path.path), "bytes": path.size, "times": path.times, "layers": layers}


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
