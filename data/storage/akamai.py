"""A bucket behind Akamai, as Quay's AkamaiS3Storage has it.

The URL is the bucket's presigned one with Akamai's host and a token of its Edge Authorization 2.0: an HMAC with SHA-256
over the expiry and the escaped path, as Akamai's library akamai-edgeauth makes it (`escape_early`) and Quay asks it to
(quay/quay, storage/akamaistorage.py).
"""

import hmac
import re
import time
from dataclasses import dataclass, field
from urllib.parse import quote, quote_plus, urlsplit

from data.storage.base import Recipient
from data.storage.cdn import CdnStorage
from data.storage.s3 import S3Settings

_TOKEN = "akamai_signature"  # noqa: S105 the parameter's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Akamai:
    """The host name, the secret that Akamai shares, and the bucket's region, which it is told."""

    domain: str
    region: str
    secret: bytes = field(repr=False)


class AkamaiS3Storage(CdnStorage):
    """Blobs in a bucket that clients reach through Akamai. Raises ValueError as S3Storage does."""

    def __init__(self, settings: S3Settings, cdn: Akamai) -> None:
        super().__init__(settings)
        self._cdn = cdn

    def _through(self, path: str, url: str, seconds: int, recipient: Recipient) -> str:
        place = urlsplit(url)
        query = f"{place.query}&region={quote(self._cdn.region)}"
        if recipient.namespace:
            query += f"&namespace={quote(recipient.namespace)}"
        query += f"&{_TOKEN}={self._token(place.path, int(time.time()) + seconds)}"
        return place._replace(scheme="https", netloc=self._cdn.domain, query=query).geturl()

    def _token(self, path: str, until: int) -> str:
        escaped = re.sub("%..", lambda match: match[0].lower(), quote_plus(path))
        signature = hmac.digest(self._cdn.secret, f"exp={until}~url={escaped}".encode(), "sha256").hex()
        return f"exp={until}~hmac={signature}"
