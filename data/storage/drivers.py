"""The drivers by the names that Quay's configuration gives them, and its parameters turned into ours.

The law: what a configuration says and we do not know is an error that names the driver and the parameter, and never a
secret; nothing is guessed. Parameters of Quay's that have no meaning here (a CDN in front of a bucket, how uploads are
cut) are known and passed over. A driver's module is imported when one of its kind is configured.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from data.storage.base import Storage
from data.storage.local import LocalStorage
from data.storage.parts import PART_SIZE
from util.problem import Problem

_AWS_HOST = re.compile(r"//s3[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+)+-[0-9])\.amazonaws\.com")


class InvalidStorageConfiguration(Problem):
    """A storage that cannot be made of what DISTRIBUTED_STORAGE_CONFIG says; the text names location and reason."""

    code = "STORAGE_CONFIGURATION_INVALID"


class _Parameters:
    """The parameters of one location, taken one by one."""

    def __init__(self, what: str, values: Mapping[str, Any]) -> None:
        self._what, self._values = what, dict(values)

    def text(self, *names: str) -> str | None:
        """Return the first of `names` that is given and not empty."""
        found = None
        for name in names:
            value = self._values.pop(name, None)
            if value is not None and not isinstance(value, str):
                raise self.error(f"{name} must be a text")
            found = found or value
        return found or None

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise self.error(f"{name} is missing")
        return value

    def number(self, name: str) -> int | None:
        value = self._values.pop(name, None)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isdecimal() or not int(value):
            raise self.error(f"{name} must be a whole number above zero")
        return int(value)

    def flag(self, name: str, *, default: bool | None = None) -> bool | None:
        value = self._values.pop(name, None)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{name} must be true or false")
        return value

    def pass_over(self, *names: str) -> None:
        for name in names:
            self._values.pop(name, None)

    def end(self) -> None:
        """Raise for what nobody has taken."""
        if self._values:
            raise self.error(f"unknown parameter {', '.join(sorted(self._values))}")

    def error(self, fact: str) -> InvalidStorageConfiguration:
        return InvalidStorageConfiguration(f"{self._what}: {fact}")


def make_storage(location: str, driver: str, parameters: Mapping[str, Any]) -> Storage:
    """Return the storage of `location`, as Quay's configuration writes it. Raises InvalidStorageConfiguration."""
    maker = _DRIVERS.get(driver)
    if maker is None:
        raise InvalidStorageConfiguration(
            f"storage location {location!r} asks for the driver {driver!r}; there are: {', '.join(_DRIVERS)}"
        )
    taken = _Parameters(f"storage location {location!r} ({driver})", parameters)
    return maker(taken)


def _local(parameters: _Parameters) -> Storage:
    root = parameters.required("storage_path")
    parameters.end()
    return LocalStorage(root)


def _s3(parameters: _Parameters) -> Storage:
    endpoint = _endpoint(parameters, "host")
    region = parameters.text("s3_region")
    if region is None and endpoint is not None and (named := _AWS_HOST.search(endpoint)):
        region = named[1]  # configurations from before `s3_region` name it in `host` alone
    parameters.pass_over("maximum_chunk_size_gb", *_CDN)
    return _bucket(
        parameters,
        bucket=parameters.required("s3_bucket"),
        access_key=parameters.text("s3_access_key"),
        secret_key=parameters.text("s3_secret_key"),
        session_token=parameters.text("aws_session_token"),
        endpoint_url=endpoint,
        region=region,
        encrypt=endpoint is None or ".amazonaws.com" in endpoint,
    )


def _gateway(parameters: _Parameters) -> Storage:
    endpoint = _endpoint(parameters, "hostname")
    if endpoint is None:
        parameters.required("hostname")
    parameters.pass_over("maximum_chunk_size_mb", "server_side_assembly")
    return _bucket(parameters, endpoint_url=endpoint, region=parameters.text("region_name"), **_plain(parameters))


def _google(parameters: _Parameters) -> Storage:
    timeout = parameters.number("boto_timeout")
    more = {} if timeout is None else {"timeout": timeout}
    return _bucket(
        parameters, endpoint_url="https://storage.googleapis.com", region="auto", **_plain(parameters), **more
    )


def _plain(parameters: _Parameters) -> dict[str, Any]:
    return {
        "bucket": parameters.required("bucket_name"),
        "access_key": parameters.text("access_key"),
        "secret_key": parameters.text("secret_key"),
    }


def _bucket(parameters: _Parameters, **given: Any) -> Storage:
    from data.storage.s3 import S3Settings, S3Storage

    part_size = parameters.number("minimum_chunk_size_mb")
    settings = S3Settings(
        prefix=parameters.text("storage_path") or "",
        signature_version=parameters.text("signature_version") or "s3v4",
        path_style=parameters.flag("path_style"),
        part_size=PART_SIZE if part_size is None else part_size << 20,
        **given,
    )
    parameters.end()
    try:
        return S3Storage(settings)
    except ValueError as error:
        raise parameters.error(str(error)) from error


def _endpoint(parameters: _Parameters, host_name: str) -> str | None:
    """Return the URL that `endpoint_url`, or host, port and is_secure, say."""
    url, host = parameters.text("endpoint_url"), parameters.text(host_name)
    port, secure = parameters.number("port"), parameters.flag("is_secure", default=True)
    if url is not None or host is None:
        return url
    address = host.rstrip("/ ")
    if not address.startswith(("http://", "https://")):
        address = f"{'https' if secure else 'http'}://{address}"
    has_port = address.rpartition(":")[2].isdecimal()
    return f"{address}:{port}" if port and not has_port else address


_CDN = (
    "cloudfront_distribution_domain",
    "cloudfront_key_id",
    "cloudfront_privatekey_filename",
    "cloudfront_distribution_org_overrides",
    "cloudflare_domain",
    "cloudflare_privatekey_filename",
    "akamai_domain",
    "akamai_shared_secret",
)

_DRIVERS: dict[str, Callable[[_Parameters], Storage]] = {
    "LocalStorage": _local,
    "S3Storage": _s3,
    "CloudFrontedS3Storage": _s3,
    "CloudFlareStorage": _s3,
    "AkamaiS3Storage": _s3,
    "RadosGWStorage": _gateway,
    "RHOCSStorage": _gateway,
    "IBMCloudStorage": _gateway,
    "GoogleCloudStorage": _google,
}
