"""Buckets behind content delivery networks: the suite of all storages, and the URLs, held against who checks them.

The networks on loopback check what theirs do, as their documentation says, and ask the bucket.
"""

import base64
import hmac
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, quote_plus, unquote, urlsplit

import pytest
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from data.storage import s3
from data.storage.akamai import Akamai, AkamaiS3Storage
from data.storage.base import BlobWriter, Recipient, Storage
from data.storage.drivers import InvalidStorageConfiguration, make_storage
from data.storage.s3 import S3Settings
from data.storage.testing import PATH, StorageTests
from test.s3server import Bucket, s3_client, s3_server

SOMEBODY = Recipient("192.0.2.7", "registry.example.com", "acme")
KEY_ID = "K2JCJMDEHXQW5F"
SECRET = "abcdef0123456789"


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="session")
def key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


@pytest.fixture
def back_door(endpoint: str) -> Iterator[Bucket]:
    with closing(Bucket(endpoint, "cdn")) as bucket:
        yield bucket


@pytest.fixture
def parameters(endpoint: str, key: RSAPrivateKey, tmp_path: Path) -> dict[str, Any]:
    """Return what Quay's S3Storage takes, and a key file's name for those beside it."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    return {
        "s3_bucket": "cdn",
        "storage_path": "/datastorage/registry",
        "s3_region": "us-east-1",
        "endpoint_url": endpoint,
        "s3_access_key": "key",
        "s3_secret_key": "hunter2",
    }


def cloudfront(tmp_path: Path, domain: str = "d111.cloudfront.net") -> dict[str, Any]:
    return {
        "cloudfront_distribution_domain": domain,
        "cloudfront_key_id": KEY_ID,
        "cloudfront_privatekey_filename": str(tmp_path / "key.pem"),
        "cloudfront_distribution_org_overrides": {"redhat": "d222.cloudfront.net"},
    }


def cloudflare(tmp_path: Path, domain: str = "cdn01.example.org") -> dict[str, Any]:
    return {"cloudflare_domain": domain, "cloudflare_privatekey_filename": str(tmp_path / "key.pem")}


def akamai(domain: str = "akamai.example.org") -> dict[str, Any]:
    return {"akamai_domain": domain, "akamai_shared_secret": SECRET}


def multicdn(parameters: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return {
        "storage_config": parameters,
        "providers": {
            "CloudFlare": ["CloudFlareStorage", cloudflare(tmp_path)],
            "AWSCloudFront": ["CloudFrontedS3Storage", cloudfront(tmp_path)],
            "Akamai": ["AkamaiS3Storage", akamai()],
        },
        "default_provider": "AWSCloudFront",
        "rules": [
            {"continent": "NA", "target": "Akamai"},
            {"namespace": "acme", "host": "eu.example.com", "target": "Akamai"},
            {"namespace": "acme", "target": "CloudFlare"},
            {"host": "eu.example.com", "continent": None, "target": "CloudFlare"},
        ],
    }


@pytest.fixture(params=["CloudFrontedS3Storage", "MultiCDNStorage"])
def storage(
    request: pytest.FixtureRequest,
    parameters: dict[str, Any],
    tmp_path: Path,
    back_door: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> Storage:
    monkeypatch.setattr(s3, "MIN_PART_SIZE", 256 << 10)
    monkeypatch.setattr("data.storage.drivers.PART_SIZE", 256 << 10)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    several = request.param == "MultiCDNStorage"
    given = multicdn(parameters, tmp_path) if several else {**parameters, **cloudfront(tmp_path)}
    return make_storage("here", request.param, given)


class TestStorageBehindANetwork(StorageTests):
    def settle(self, writer: BlobWriter) -> None:
        assert isinstance(writer, s3._S3Writer)
        writer._wait(0)


# --- Networks ---------------------------------------------------------------------------------------------------------


class Network(ThreadingHTTPServer):
    """A network on loopback, to which clients come by https in truth. `origin` is what it asks."""

    daemon_threads = True

    def __init__(self, origin: str) -> None:
        super().__init__(("127.0.0.1", 0), _NetworkHandler)
        self.origin = origin
        self.domain = f"127.0.0.1:{self.server_address[1]}"
        self.now = 0
        self.key: RSAPublicKey | None = None

    def origin_url(self, target: str) -> str | None:
        """Return the URL at the origin of what `target` asks for, None where it may not."""
        raise AssertionError(target)


class _NetworkHandler(BaseHTTPRequestHandler):
    server: Network

    def do_GET(self) -> None:
        url = self.server.origin_url(self.path)
        if url is None:
            self.send_error(403)
            return
        with urllib.request.urlopen(url) as answer:
            content = answer.read()
            self.send_response(200)
            for name in ("Content-Type", "Content-Disposition"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def running(network: Network) -> Iterator[Network]:
    with network:
        thread = Thread(target=network.serve_forever)
        thread.start()
        try:
            yield network
        finally:
            network.shutdown()
            thread.join()


def fetch(url: str | None) -> tuple[bytes, Any]:
    """Return what a network gives under `url`, which is one of https."""
    assert url is not None
    assert url.startswith("https://")
    with urllib.request.urlopen(url.replace("https://", "http://", 1)) as answer:
        return answer.read(), answer.headers


class CloudFrontNetwork(Network):
    """Checks signed URLs: Amazon CloudFront Developer Guide, "Create a signed URL using a canned policy"."""

    def origin_url(self, target: str) -> str | None:
        base, _, signature = target.partition("Expires=")
        found = re.fullmatch(r"(\d+)&Signature=([A-Za-z0-9~_-]+)&Key-Pair-Id=(\w+)", signature)
        if found is None or found[3] != KEY_ID or int(found[1]) <= self.now:
            return None
        resource = f"https://{self.domain}{base[:-1]}"
        until = f'{{"DateLessThan":{{"AWS:EpochTime":{found[1]}}}}}'
        policy = f'{{"Statement":[{{"Resource":"{resource}","Condition":{until}}}]}}'
        assert self.key is not None
        try:
            signed = base64.b64decode(found[2].translate(str.maketrans("-_~", "+=/")), validate=True)
            self.key.verify(signed, policy.encode(), PKCS1v15(), SHA1())
        except (ValueError, InvalidSignature):
            return None
        path, _, query = base[:-1].partition("?")
        return bucket_url(self.origin, path, parse_qs(query))


def bucket_url(origin: str, path: str, query: dict[str, list[str]]) -> str:
    """Return the URL by which CloudFront, who may read the bucket, asks it; its origin path is `storage_path`."""
    more = {name.title().replace("-", ""): values[0] for name, values in query.items()}
    place = {"Bucket": "cdn", "Key": f"datastorage/registry{unquote(path)}"}
    with closing(s3_client(origin)) as client:
        return client.generate_presigned_url("get_object", Params={**place, **more}, ExpiresIn=60)


class CloudflareNetwork(Network):
    """Checks what Quay's worker at Cloudflare is given: quay/quay, storage/cloudflarestorage.py."""

    def origin_url(self, target: str) -> str | None:
        place = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(place.query).items()}
        assert self.key is not None
        try:
            signed = base64.b64decode(query.pop("cf_sign", ""), validate=True)
            until = query.pop("cf_expiry", "0")
            self.key.verify(signed, f"{place.path}@{until}".encode(), PKCS1v15(), SHA256())
        except (ValueError, InvalidSignature):
            return None
        if int(until) <= self.now or query.pop("region") != "us-east-1" or query.pop("namespace") != "acme":
            return None
        return f"{self.origin}{place.path}?" + "&".join(f"{name}={quote_plus(value)}" for name, value in query.items())


class AkamaiNetwork(Network):
    """Checks the token of Akamai's Edge Authorization 2.0, and that no longer than it says."""

    def origin_url(self, target: str) -> str | None:
        token = r"akamai_signature=exp=(\d+)~hmac=(\w+)"
        found = re.fullmatch(rf"([^?]*)\?(.*)&region=us-east-1&namespace=acme&{token}", target)
        if found is None or int(found[3]) <= self.now:
            return None
        escaped = re.sub("%..", lambda match: match[0].lower(), quote_plus(found[1]))
        expected = hmac.new(bytes.fromhex(SECRET), f"exp={found[3]}~url={escaped}".encode(), "sha256").hexdigest()
        return f"{self.origin}{found[1]}?{found[2]}" if hmac.compare_digest(expected, found[4]) else None


FAR = 1 << 40
ODD = "a b/ü%3F/c?d&e=f"


def test_cloudfront_takes_the_signed_url(
    parameters: dict[str, Any], tmp_path: Path, key: RSAPrivateKey, back_door: Bucket, endpoint: str
) -> None:
    back_door.put(ODD, b"content")
    with running(CloudFrontNetwork(endpoint)) as network:
        network.key = key.public_key()
        storage = make_storage("here", "CloudFrontedS3Storage", {**parameters, **cloudfront(tmp_path, network.domain)})
        url = storage.direct_download_url(
            ODD, seconds=60, file_name='é".tar', media_type="application/x-tar", recipient=SOMEBODY
        )
        content, headers = fetch(url)
        assert content == b"content"
        assert headers["Content-Type"] == "application/x-tar"
        assert "filename*=UTF-8''%C3%A9%22.tar" in headers["Content-Disposition"]
        assert fetch(storage.direct_download_url(ODD, seconds=60, recipient=SOMEBODY))[0] == b"content"
        assert url is not None
        for wrong in (
            url.replace("c%3Fd", "c%3Fe"),
            url.replace("x-tar", "x-zip"),
            re.sub(r"Expires=\d+", f"Expires={FAR}", url),
            url.replace(KEY_ID, "K3"),
            re.sub("Signature=....", "Signature=AAAA", url),
            url.partition("Expires=")[0],
        ):
            assert wrong != url
            with pytest.raises(urllib.error.HTTPError, match="403"):
                fetch(wrong)
        network.now = FAR
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(url)


def test_cloudflare_takes_the_signed_url(
    parameters: dict[str, Any], tmp_path: Path, key: RSAPrivateKey, back_door: Bucket, endpoint: str
) -> None:
    back_door.put(ODD, b"content")
    with running(CloudflareNetwork(endpoint)) as network:
        network.key = key.public_key()
        storage = make_storage("here", "CloudFlareStorage", {**parameters, **cloudflare(tmp_path, network.domain)})
        url = storage.direct_download_url(ODD, seconds=60, file_name="x.tar", recipient=SOMEBODY)
        content, headers = fetch(url)
        assert (content, headers["Content-Disposition"]) == (b"content", 'attachment; filename="x.tar"')
        assert url is not None
        for wrong in (url.replace("a%20b", "a%20c"), re.sub(r"cf_expiry=\d+", f"cf_expiry={FAR}", url)):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                fetch(wrong)
        network.now = FAR
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(url)


def test_akamai_takes_the_url_with_its_token(parameters: dict[str, Any], back_door: Bucket, endpoint: str) -> None:
    back_door.put(ODD, b"content")
    with running(AkamaiNetwork(endpoint)) as network:
        storage = make_storage("here", "AkamaiS3Storage", {**parameters, **akamai(network.domain)})
        url = storage.direct_download_url(ODD, seconds=60, file_name="x.tar", recipient=SOMEBODY)
        content, headers = fetch(url)
        assert (content, headers["Content-Disposition"]) == (b"content", 'attachment; filename="x.tar"')
        assert url is not None
        for wrong in (url.replace("a%20b", "a%20c"), re.sub(r"exp=\d+", f"exp={FAR}", url)):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                fetch(wrong)
        network.now = FAR
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(url)


def test_the_token_is_the_one_that_akamai_s_own_library_makes() -> None:
    cdn = Akamai(domain="a", region="r", secret=bytes.fromhex(SECRET))
    storage = AkamaiS3Storage(S3Settings(bucket="b", access_key="k", secret_key="s", region="us-east-1"), cdn)
    # EdgeAuth(token_name=…, key=SECRET, end_time=1700000000, escape_early=True).generate_url_token(…), version 0.3.2
    made = storage._token("/quay/datastorage/registry/sha256/ab/a b%C3", 1700000000)
    assert made == "exp=1700000000~hmac=a9331a4cb47b2408717a0b8ee1247a66292b470d0dfa95963b874218813405fe"


@pytest.mark.parametrize("driver", ["CloudFrontedS3Storage", "CloudFlareStorage", "AkamaiS3Storage"])
def test_who_is_not_known_by_an_address_is_sent_to_the_bucket(
    parameters: dict[str, Any], tmp_path: Path, driver: str, endpoint: str
) -> None:
    more = {
        "CloudFrontedS3Storage": cloudfront(tmp_path),
        "CloudFlareStorage": cloudflare(tmp_path),
        "AkamaiS3Storage": akamai(),
    }
    storage = make_storage("here", driver, {**parameters, **more[driver]})
    for recipient in (Recipient(), Recipient(namespace="acme", host="x")):
        url = storage.direct_download_url(PATH, seconds=60, recipient=recipient)
        assert url is not None
        assert url.startswith(f"{endpoint}/cdn/datastorage/registry/{PATH}?")
    assert "hunter2" not in str(url)


@pytest.mark.parametrize(
    ("namespace", "host"),
    [("redhat", "d222.cloudfront.net"), ("acme", "d111.cloudfront.net"), (None, "d111.cloudfront.net")],
)
def test_a_namespace_may_have_a_distribution_of_its_own(
    parameters: dict[str, Any], tmp_path: Path, namespace: str | None, host: str
) -> None:
    storage = make_storage("here", "CloudFrontedS3Storage", {**parameters, **cloudfront(tmp_path)})
    url = storage.direct_download_url(PATH, seconds=60, recipient=Recipient("192.0.2.7", None, namespace))
    assert urlsplit(str(url)).netloc == host
    assert urlsplit(str(url)).path == f"/{PATH}"


@pytest.mark.parametrize(
    ("recipient", "host"),
    [
        (Recipient("192.0.2.7", "eu.example.com", "acme"), "akamai.example.org"),
        (Recipient("192.0.2.7", "us.example.com", "acme"), "cdn01.example.org"),
        (Recipient("192.0.2.7", "eu.example.com", "other"), "cdn01.example.org"),
        (Recipient("192.0.2.7", "us.example.com", "other"), "d111.cloudfront.net"),
        (Recipient("192.0.2.7"), "d111.cloudfront.net"),
    ],
)
def test_the_first_rule_of_which_all_holds_chooses_the_network(
    parameters: dict[str, Any], tmp_path: Path, recipient: Recipient, host: str
) -> None:
    storage = make_storage("here", "MultiCDNStorage", multicdn(parameters, tmp_path))
    assert urlsplit(str(storage.direct_download_url(PATH, seconds=60, recipient=recipient))).netloc == host


# --- The configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "holds no private key in PEM without a passphrase"),
        ("hunter2", "holds no private key in PEM without a passphrase"),
        ("locked", "holds no private key in PEM without a passphrase"),
        ("ec", "holds a key that is not RSA"),
    ],
)
def test_a_key_that_cannot_be_used_is_named(
    parameters: dict[str, Any], tmp_path: Path, key: RSAPrivateKey, content: str | None, fact: str
) -> None:
    pem, pkcs8 = Encoding.PEM, PrivateFormat.PKCS8
    other = {
        "locked": key.private_bytes(pem, pkcs8, BestAvailableEncryption(b"hunter2")),
        "ec": ec.generate_private_key(ec.SECP256R1()).private_bytes(pem, pkcs8, NoEncryption()),
    }
    file = tmp_path / "key.pem"
    file.unlink()
    if content is not None:
        file.write_bytes(other.get(content, content.encode()))
    for driver, more in (("CloudFrontedS3Storage", cloudfront(tmp_path)), ("CloudFlareStorage", cloudflare(tmp_path))):
        name = f"{driver.lower().removesuffix('storage').removesuffix('eds3')}_privatekey_filename"
        with pytest.raises(InvalidStorageConfiguration) as caught:
            make_storage("here", driver, {**parameters, **more})
        assert str(caught.value) == f"storage location 'here' ({driver}): {name}: {file} {fact}"


def test_a_machine_that_forbids_what_cloudfront_wants_is_told_of(
    parameters: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise UnsupportedAlgorithm("sha1 is not supported by this backend for RSA signing")

    monkeypatch.setattr("data.storage.cloudfront.SHA1", forbidden)
    with pytest.raises(InvalidStorageConfiguration, match="CloudFront wants signatures with SHA-1, which"):
        make_storage("here", "CloudFrontedS3Storage", {**parameters, **cloudfront(tmp_path)})


@pytest.mark.parametrize(
    ("driver", "changed", "fact"),
    [
        ("CloudFrontedS3Storage", {"cloudfront_key_id": None}, "cloudfront_key_id is missing"),
        (
            "CloudFrontedS3Storage",
            {"cloudfront_distribution_domain": 3},
            "cloudfront_distribution_domain must be a text",
        ),
        (
            "CloudFrontedS3Storage",
            {"cloudfront_distribution_org_overrides": {"acme": 3}},
            "cloudfront_distribution_org_overrides must be a domain for each namespace",
        ),
        (
            "CloudFrontedS3Storage",
            {"cloudfront_distribution_org_overrides": ["acme"]},
            "cloudfront_distribution_org_overrides must consist of keys and values",
        ),
        ("CloudFrontedS3Storage", {"akamai_domain": "x"}, "unknown parameter akamai_domain"),
        ("CloudFlareStorage", {"cloudflare_domain": ""}, "cloudflare_domain is missing"),
        ("CloudFlareStorage", {"s3_region": None}, "s3_region is missing"),
        ("AkamaiS3Storage", {"akamai_shared_secret": "hunter2"}, "akamai_shared_secret must be in hexadecimal digits"),
        ("AkamaiS3Storage", {"akamai_shared_secret": None}, "akamai_shared_secret is missing"),
    ],
)
def test_what_cannot_be_used_is_named(
    parameters: dict[str, Any], tmp_path: Path, driver: str, changed: dict[str, Any], fact: str
) -> None:
    more = {
        "CloudFrontedS3Storage": cloudfront(tmp_path),
        "CloudFlareStorage": cloudflare(tmp_path),
        "AkamaiS3Storage": akamai(),
    }
    with pytest.raises(InvalidStorageConfiguration) as caught:
        make_storage("here", driver, {**parameters, **more[driver], **changed})
    assert str(caught.value) == f"storage location 'here' ({driver}): {fact}"


@pytest.mark.parametrize(
    ("changed", "fact"),
    [
        ({"providers": None}, ": providers is missing"),
        ({"providers": ["Akamai"]}, ": providers must consist of keys and values"),
        ({"providers": {"X": ["AkamaiS3Storage"]}}, ": providers: X must be a driver and its parameters"),
        ({"providers": {"X": "AkamaiS3Storage"}}, ": providers: X must be a driver and its parameters"),
        ({"providers": {"X": [["y"], {}]}}, ": providers: X must be a driver and its parameters"),
        (
            {"providers": {"X": ["S3Storage", {}]}},
            ": providers: X asks for 'S3Storage'; there are: CloudFrontedS3Storage, CloudFlareStorage, AkamaiS3Storage",
        ),
        (
            {"providers": {"X": ["AkamaiS3Storage", {"akamai_domain": "x"}]}},
            ", provider X (AkamaiS3Storage): akamai_shared_secret is missing",
        ),
        ({"default_provider": None}, ": default_provider is missing"),
        ({"default_provider": "X"}, ": default_provider is 'X'; there are: CloudFlare, AWSCloudFront, Akamai"),
        ({"rules": {"target": "Akamai"}}, ": rules must be a list"),
        (
            {"rules": [{"namespace": "x"}]},
            ": rules: the target of {'namespace': 'x'} must be one of CloudFlare, AWSCloudFront, Akamai",
        ),
        (
            {"rules": [{"target": "Akamai", "continent": "XX"}]},
            (
                ": rules: the continent of {'target': 'Akamai', 'continent': 'XX'} must be one of AF, AN, AS, EU,"
                " NA, OC, SA"
            ),
        ),
        (
            {"rules": [{"target": "Akamai", "city": "x"}]},
            (
                ": rules: {'target': 'Akamai', 'city': 'x'} must be texts for target and some of namespace, host,"
                " continent"
            ),
        ),
        ({"rules": ["Akamai"]}, ": rules: 'Akamai' must be texts for target and some of namespace, host, continent"),
        ({"rule": []}, ": unknown parameter rule"),
    ],
)
def test_what_cannot_be_used_of_several_is_named(
    parameters: dict[str, Any], tmp_path: Path, changed: dict[str, Any], fact: str
) -> None:
    with pytest.raises(InvalidStorageConfiguration) as caught:
        make_storage("here", "MultiCDNStorage", {**multicdn(parameters, tmp_path), **changed})
    assert str(caught.value) == f"storage location 'here' (MultiCDNStorage){fact}"
