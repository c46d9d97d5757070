"""The blueprint `/v2`: pushes and pulls by the OCI distribution-spec.

Its routes stand in modules by what they are about; to import one here is what puts its routes on the blueprint.
"""

from endpoints.v2 import auth, blobs, discovery, manifests, uploads
from endpoints.v2.blueprint import blueprint

__all__ = ["auth", "blobs", "blueprint", "discovery", "manifests", "uploads"]
