"""Which servers are believed to be who they say they are: the system's certificates, and those beside config.yaml."""

import os
import ssl
from collections.abc import Iterable

from data.directories.directory import UnusableDirectory


def client_context(trusted: Iterable[str], *, verify: bool = True) -> ssl.SSLContext:
    """Return a TLS context that trusts the system's certificates and those in `trusted`, files and folders of files.

    What is not there is passed over. Without `verify` every server is believed. Raises UnusableDirectory for a file
    that holds no certificate.
    """
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    for path in trusted:
        for file in _files(path):
            try:
                context.load_verify_locations(cafile=file)
            except (OSError, ssl.SSLError) as error:
                raise UnusableDirectory(f"{file} holds no certificate that can be trusted: {error}") from None
    return context


def _files(path: str) -> list[str]:
    if os.path.isdir(path):
        return sorted(entry.path for entry in os.scandir(path) if entry.is_file())
    return [path] if os.path.exists(path) else []
