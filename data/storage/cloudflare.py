"""A bucket behind Cloudflare, as Quay's CloudFlareStorage has it.

The URL is the bucket's presigned one with Cloudflare's host and, for the operator's worker that checks it and passes it
on to the bucket, its signature: RSA with SHA-256 over `PATH@EXPIRES` (quay/quay, storage/cloudflarestorage.py).
"""

import base64
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from data.storage.base import Recipient
from data.storage.cdn import CdnStorage
from data.storage.s3 import S3Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloudflare:
    """The host name, the key that signs for it, and the bucket's region, which the worker is told."""

    domain: str
    region: str
    private_key: RSAPrivateKey = field(repr=False)


class CloudflareStorage(CdnStorage):
    """Blobs in a bucket that clients reach through Cloudflare. Raises ValueError as S3Storage does."""

    def __init__(self, settings: S3Settings, cdn: Cloudflare) -> None:
        super().__init__(settings)
        self._cdn = cdn

    def _through(self, path: str, url: str, seconds: int, recipient: Recipient) -> str:
        place, until = urlsplit(url), int(time.time()) + seconds
        signature = self._cdn.private_key.sign(f"{place.path}@{until}".encode(), PKCS1v15(), SHA256())
        query = parse_qsl(place.query)
        query += [("cf_sign", base64.b64encode(signature).decode()), ("cf_expiry", str(until))]
        query.append(("region", self._cdn.region))
        if recipient.namespace:
            query.append(("namespace", recipient.namespace))
        return place._replace(scheme="https", netloc=self._cdn.domain, query=urlencode(query)).geturl()
