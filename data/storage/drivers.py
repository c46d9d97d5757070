"""The drivers by the names that Quay's configuration gives them, and its parameters turned into ours.

The law: what a configuration says and we do not know is an error that names the driver and the parameter, and never a
secret; nothing is guessed. Parameters of Quay's that have no meaning here (how uploads are cut) are known and passed
over. A driver's module is imported when one of its kind is configured.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data.storage.base import Storage
from data.storage.local import LocalStorage
from data.storage.parts import PART_SIZE
from util.problem import Problem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from data.storage.multicdn import Rule
    from data.storage.s3 import S3Settings

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

    def number(self, name: str, *, zero: bool = False) -> int | None:
        """Return a whole number above zero, None where it is not given; with `zero` a zero is not given either."""
        value = self._values.pop(name, None)
        if value is None or value == "" or (zero and str(value) == "0"):
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

    def list(self, name: str) -> Sequence[Any]:
        value = self._values.pop(name, None) or ()
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.error(f"{name} must be a list")
        return value

    def within(self, what: str, values: Mapping[str, Any]) -> "_Parameters":
        """Return the parameters of a part of this location."""
        return _Parameters(f"{self._what}, {what}", values)

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
    from data.storage.s3 import S3Storage

    return _amazon(parameters, S3Storage)


def _amazon(parameters: _Parameters, make: "Callable[[S3Settings], Storage]", region: str | None = None) -> Storage:
    """Return the storage that `make` makes of the parameters of Quay's S3Storage."""
    endpoint = _endpoint(parameters, "host")
    region = region or parameters.text("s3_region")
    if region is None and endpoint is not None and (named := _AWS_HOST.search(endpoint)):
        region = named[1]  # configurations from before `s3_region` name it in `host` alone
    parameters.pass_over("maximum_chunk_size_gb")
    return _bucket(
        parameters,
        make,
        bucket=parameters.required("s3_bucket"),
        access_key=parameters.text("s3_access_key"),
        secret_key=parameters.text("s3_secret_key"),
        session_token=parameters.text("aws_session_token"),
        endpoint_url=endpoint,
        region=region,
        encrypt=endpoint is None or ".amazonaws.com" in endpoint,
    )


def _sts(parameters: _Parameters) -> Storage:
    """Return an S3 storage with temporary credentials; without a role, with those that the library finds."""
    from data.storage.s3 import S3Storage
    from data.storage.sts import Role, role_credentials

    arn, token_file = parameters.text("sts_role_arn"), parameters.text("sts_web_identity_token_file")
    keys = {name: parameters.text(f"sts_user_{name}") for name in ("access_key", "secret_key")}
    session_name, region = parameters.text("sts_role_session_name") or "quay", parameters.text("s3_region")
    absent = [f"sts_user_{name}" for name, value in keys.items() if value is None]
    if len(absent) == 1:
        raise parameters.error(f"{absent[0]} is missing")
    if arn is None:
        if token_file is not None or not absent:
            raise parameters.error("sts_role_arn is missing")
        return _amazon(parameters, S3Storage, region)
    role = Role(arn=arn, token_file=token_file, region=region, session_name=session_name, **keys)
    return _amazon(parameters, lambda settings: S3Storage(settings, role_credentials(role)), region)


def _cloudfronted(parameters: _Parameters) -> Storage:
    from data.storage.cloudfront import CloudFront, CloudFrontedS3Storage

    overrides = parameters.mapping("cloudfront_distribution_org_overrides")
    if not all(isinstance(domain, str) and domain for domain in overrides.values()):
        raise parameters.error("cloudfront_distribution_org_overrides must be a domain for each namespace")
    cdn = CloudFront(
        domain=parameters.required("cloudfront_distribution_domain"),
        key_id=parameters.required("cloudfront_key_id"),
        private_key=_private_key(parameters, "cloudfront_privatekey_filename"),
        overrides=overrides,
    )
    return _amazon(parameters, lambda settings: CloudFrontedS3Storage(settings, cdn))


def _cloudflare(parameters: _Parameters) -> Storage:
    from data.storage.cloudflare import Cloudflare, CloudflareStorage

    region = parameters.required("s3_region")
    private_key = _private_key(parameters, "cloudflare_privatekey_filename")
    cdn = Cloudflare(domain=parameters.required("cloudflare_domain"), private_key=private_key, region=region)
    return _amazon(parameters, lambda settings: CloudflareStorage(settings, cdn), region)


def _akamai(parameters: _Parameters) -> Storage:
    from data.storage.akamai import Akamai, AkamaiS3Storage

    domain, region = parameters.required("akamai_domain"), parameters.required("s3_region")
    try:
        secret = bytes.fromhex(parameters.required("akamai_shared_secret"))
    except ValueError:
        raise parameters.error("akamai_shared_secret must be in hexadecimal digits") from None  # the cause shows some
    cdn = Akamai(domain=domain, region=region, secret=secret)
    return _amazon(parameters, lambda settings: AkamaiS3Storage(settings, cdn), region)


def _private_key(parameters: _Parameters, name: str) -> "RSAPrivateKey":
    from data.storage.cdn import read_private_key

    try:
        return read_private_key(parameters.required(name))
    except ValueError as error:
        raise parameters.error(f"{name}: {error}") from error


def _multicdn(parameters: _Parameters) -> Storage:
    from data.storage.multicdn import MultiCdnStorage

    shared, configured = parameters.mapping("storage_config"), parameters.mapping("providers")
    default, rules = parameters.required("default_provider"), parameters.list("rules")
    if not configured:
        raise parameters.error("providers is missing")
    parameters.end()
    providers = {}
    for name, pair in configured.items():
        if (
            not isinstance(pair, Sequence)
            or len(pair) != 2
            or not isinstance(pair[0], str)
            or not isinstance(pair[1], Mapping)
        ):
            raise parameters.error(f"providers: {name} must be a driver and its parameters")
        maker = _CDNS.get(pair[0])
        if maker is None:
            raise parameters.error(f"providers: {name} asks for {pair[0]!r}; there are: {', '.join(_CDNS)}")
        providers[name] = maker(parameters.within(f"provider {name} ({pair[0]})", {**shared, **pair[1]}))
    if default not in providers:
        raise parameters.error(f"default_provider is {default!r}; there are: {', '.join(providers)}")
    return MultiCdnStorage(providers, default, [_rule(parameters, rule, providers) for rule in rules])


def _rule(parameters: _Parameters, rule: object, providers: Mapping[str, Storage]) -> "Rule":
    from data.storage.multicdn import Rule

    known = {"target", "namespace", "host", "continent"}
    if not isinstance(rule, Mapping) or not all(
        key in known and (value is None or isinstance(value, str)) for key, value in rule.items()
    ):
        raise parameters.error(f"rules: {rule!r} must be texts for target and some of namespace, host, continent")
    given = {key: value for key, value in rule.items() if value}
    if given.get("target") not in providers:
        raise parameters.error(f"rules: the target of {rule!r} must be one of {', '.join(providers)}")
    if given.get("continent", "EU") not in _CONTINENTS:
        raise parameters.error(f"rules: the continent of {rule!r} must be one of {', '.join(_CONTINENTS)}")
    return Rule(**given)


def _gateway(parameters: _Parameters) -> Storage:
    from data.storage.s3 import S3Storage

    endpoint = _endpoint(parameters, "hostname")
    if endpoint is None:
        parameters.required("hostname")
    parameters.pass_over("maximum_chunk_size_mb", "server_side_assembly")
    return _bucket(
        parameters, S3Storage, endpoint_url=endpoint, region=parameters.text("region_name"), **_plain(parameters)
    )


def _google(parameters: _Parameters) -> Storage:
    from data.storage.s3 import S3Storage

    timeout = parameters.number("boto_timeout")
    more = {} if timeout is None else {"timeout": timeout}
    return _bucket(
        parameters,
        S3Storage,
        endpoint_url="https://storage.googleapis.com",
        region="auto",
        **_plain(parameters),
        **more,
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
    numbers = {  # of which Quay takes a zero for its own default
        "connect_timeout": parameters.number("connect_timeout", zero=True),
        "retries": parameters.number("retry_count", zero=True),
    }
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


def _bucket(parameters: _Parameters, make: "Callable[[S3Settings], Storage]", **given: Any) -> Storage:
    from data.storage.s3 import S3Settings

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
        return make(settings)
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


_CONTINENTS = ("AF", "AN", "AS", "EU", "NA", "OC", "SA")  # MaxMind's codes

_CDNS: dict[str, Callable[[_Parameters], Storage]] = {
    "CloudFrontedS3Storage": _cloudfronted,
    "CloudFlareStorage": _cloudflare,
    "AkamaiS3Storage": _akamai,
}

_DRIVERS: dict[str, Callable[[_Parameters], Storage]] = {
    "LocalStorage": _local,
    "S3Storage": _s3,
    "STSS3Storage": _sts,
    **_CDNS,
    "MultiCDNStorage": _multicdn,
    "RadosGWStorage": _gateway,
    "RHOCSStorage": _gateway,
    "IBMCloudStorage": _gateway,
    "GoogleCloudStorage": _google,
    "AzureStorage": _azure,
    "SwiftStorage": _swift,
}
