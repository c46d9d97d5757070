"""The drivers by the names that Quay's configuration gives them, and its parameters turned into ours.

The law: what a configuration says and we do not know is an error that names the driver and the parameter, and never a
secret; nothing is guessed. Parameters of Quay's that have no meaning here (a CDN in front of a bucket, how uploads are
cut) are known and passed over. A driver's module is imported when one of its kind is configured.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data.storage.base import Storage
from data.storage.local import LocalStorage
from data.storage.parts import PART_SIZE
from util.problem import Problem

_AWS_HOST = re.compile(r"//s3[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+)+-[0-9])\.amazonaws\.com")
_URL = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?\Z")


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

    def url(self, name: str) -> str | None:
        """Return the URL of a server."""
        value = self.text(name)
        if value is not None and not _URL.match(value):
            raise self.error(f"{name} must be a URL, e.g. https://storage.example.com")
        return value

    def required_url(self, name: str) -> str:
        value = self.url(name)
        if value is None:
            raise self.error(f"{name} is missing")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._values.pop(name, None) or {}
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise self.error(f"{name} must consist of keys and values")
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


def _azure(parameters: _Parameters) -> Storage:
    with _extra(parameters, "azure"):
        from data.storage.azure import AzureSettings, AzureStorage

    settings = AzureSettings(
        container=parameters.required("azure_container"),
        account_name=parameters.required("azure_account_name"),
        account_key=parameters.text("azure_account_key"),
        sas_token=parameters.text("sas_token"),
        prefix=parameters.text("storage_path") or "",
        endpoint_url=parameters.url("endpoint_url"),
    )
    parameters.end()
    try:
        return AzureStorage(settings)
    except ValueError as error:
        raise parameters.error(str(error)) from error


def _swift(parameters: _Parameters) -> Storage:
    with _extra(parameters, "swift"):
        from data.storage.swift import SwiftSettings, SwiftStorage

    folder = (parameters.text("storage_path") or "").lstrip("/")
    # `simple_path_concat` is Quay's for a prefix that is no folder.
    joined = parameters.flag("simple_path_concat", default=False) or not folder or folder.endswith("/")
    version = parameters.number("auth_version") or 2
    if version > 3:
        raise parameters.error("auth_version must be 1, 2 or 3")
    numbers = {"connect_timeout": parameters.number("connect_timeout"), "retries": parameters.number("retry_count")}
    settings = SwiftSettings(
        container=parameters.required("swift_container"),
        auth_url=parameters.required_url("auth_url"),
        user=parameters.required("swift_user"),
        password=parameters.required("swift_password"),
        prefix=folder if joined else f"{folder}/",
        auth_version=version,
        os_options=parameters.mapping("os_options"),
        ca_file=parameters.text("ca_cert_path"),
        temp_url_key=parameters.text("temp_url_key"),
        retry_on_ratelimit=parameters.flag("retry_on_ratelimit", default=True) is not False,
        **{name: number for name, number in numbers.items() if number is not None},
    )
    parameters.end()
    return SwiftStorage(settings)


@contextlib.contextmanager
def _extra(parameters: _Parameters, name: str) -> Iterator[None]:
    """Say which extra is not installed, where an import within fails for want of its library."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise parameters.error(f"{error.name} is not installed: pip install 'registry-verbs[{name}]'") from error


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
    "AzureStorage": _azure,
    "SwiftStorage": _swift,
}
