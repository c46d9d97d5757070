"""A bucket behind Amazon CloudFront, as Quay's CloudFrontedS3Storage has it.

The URL is the distribution's and the blob's path; the distribution's origin path is `storage_path`. Its query asks for
the file's name and media type, as S3 understands it: where the distribution passes query strings on, the answer has
them. It is signed with a canned policy, which is RSA with SHA-1 over the URL and the second at which it expires.
Amazon CloudFront Developer Guide, "Create a signed URL using a canned policy".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from botocore.signers import CloudFrontSigner
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA1

from data.storage.base import Recipient
from data.storage.cdn import CdnStorage
from data.storage.s3 import S3Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudFront:
    """A distribution: its host name, and the key that signs for it."""

    domain: str
    key_id: str
    private_key: RSAPrivateKey = field(repr=False)
    overrides: Mapping[str, str] = field(default_factory=dict)
    """The distributions of single namespaces."""


class CloudFrontedS3Storage(CdnStorage):
    """Blobs in a bucket that clients reach through CloudFront. Raises ValueError as S3Storage does.

    Also where this machine's cryptographic policy forbids the signature.
    """

    def __init__(self, settings: S3Settings, cdn: CloudFront) -> None:
        super().__init__(settings)
        self._cdn = cdn
        self._signer = CloudFrontSigner(cdn.key_id, self._sign)
        try:
            self._sign(b"")
        except UnsupportedAlgorithm as error:
            raise ValueError("CloudFront wants signatures with SHA-1, which this machine's policy forbids") from error

    def _through(self, path: str, url: str, seconds: int, recipient: Recipient) -> str:
        domain = self._cdn.overrides.get(recipient.namespace or "", self._cdn.domain)
        asked = [(name, value) for name, value in parse_qsl(urlsplit(url).query) if name.startswith("response-")]
        resource = f"https://{domain}/{quote(path)}" + (f"?{urlencode(asked, quote_via=quote)}" if asked else "")
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        return self._signer.generate_presigned_url(resource, date_less_than=until)

    def _sign(self, message: bytes) -> bytes:
        return self._cdn.private_key.sign(message, PKCS1v15(), SHA1())  # noqa: S303 CloudFront takes no other
