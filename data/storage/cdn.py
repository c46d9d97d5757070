"""A bucket behind a content delivery network: what the networks that Quay knows share.

Invariants: blobs are written to, read from and listed in the bucket; the network is only where clients are sent. Who is
not known by an address is sent to the bucket, as in Quay (quay/quay, storage/cloud.py). Everybody else is sent to the
network: we have no list of AWS's addresses, by which Quay sends clients within the bucket's region to the bucket.
"""

from abc import abstractmethod

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from data.storage.base import ANYBODY, Recipient
from data.storage.s3 import S3Storage


class CdnStorage(S3Storage):
    """Blobs in a bucket that clients reach through a network."""

    def direct_download_url(
        self,
        path: str,
        *,
        seconds: int,
        file_name: str | None = None,
        media_type: str | None = None,
        recipient: Recipient = ANYBODY,
    ) -> str | None:
        url = super().direct_download_url(path, seconds=seconds, file_name=file_name, media_type=media_type)
        return url if url is None or recipient.address is None else self._through(path, url, seconds, recipient)

    @abstractmethod
    def _through(self, path: str, url: str, seconds: int, recipient: Recipient) -> str:
        """Return the network's URL of the blob at `path`, which has the presigned `url` in the bucket."""


def read_private_key(file: str) -> RSAPrivateKey:
    """Return the RSA key that lies in `file` as PEM, without a passphrase. Raises ValueError with the reason."""
    try:
        with open(file, "rb") as stream:
            key = load_pem_private_key(stream.read(1 << 20), password=None)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it has a passphrase
        raise ValueError(f"{file} holds no private key in PEM without a passphrase") from error
    if not isinstance(key, RSAPrivateKey):
        raise ValueError(f"{file} holds a key that is not RSA")  # noqa: TRY004 the value of a setting
    return key
