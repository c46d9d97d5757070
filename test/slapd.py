"""A directory for tests: OpenLDAP's slapd, on loopback, with users and groups of a test's own, and with TLS."""

import base64
import contextlib
import ipaddress
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from data.directories.directory import LdapSettings
from test.clients import program

BASE = "dc=example,dc=com"
ADMIN = f"cn=admin,{BASE}"
ADMIN_PASSWORD = "the-admin's-own-password"


@dataclass(frozen=True)
class Person:
    """An entry below `ou=unit`. `dn` is made of the uid, escaped as RFC 4514 wants it."""

    uid: str
    password: str | None = "secret"
    mail: str | None = None
    unit: str = "people"
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def dn(self) -> str:
        escaped = "".join(
            chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:02x}" for byte in self.uid.encode()
        )
        return f"uid={escaped},ou={self.unit},{BASE}"

    def ldif(self) -> str:
        values = {"objectClass": "inetOrgPerson", "uid": self.uid, "cn": self.uid, "sn": self.uid, **self.more}
        if self.mail is not None:
            values["mail"] = self.mail
        if self.password is not None:
            values["userPassword"] = self.password
        return _ldif(self.dn, values)


def _ldif(dn: str, values: Mapping[str, str | Sequence[str]]) -> str:
    each = [(name, value) for name, given in values.items() for value in ([given] if isinstance(given, str) else given)]
    lines = [f"{name}:: {base64.b64encode(value.encode()).decode()}" for name, value in (("dn", dn), *each)]
    return "\n".join(lines) + "\n"


@dataclass
class Authority:
    """Who signs the certificates of a test."""

    folder: Path
    name: str = "test CA"

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        self.file = self.folder / "ca.crt"
        self.file.write_bytes(self._signed(self._issuer, self._key.public_key(), authority=True))

    def certificate(self, *hosts: str) -> tuple[Path, Path]:
        """Return the files of a certificate for `hosts`, names or addresses, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
        certificate, private = self.folder / "server.crt", self.folder / "server.key"
        certificate.write_bytes(self._signed(subject, key.public_key(), hosts=hosts))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, hosts: Sequence[str] = (), authority: bool = False
    ) -> bytes:
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._issuer, subject, key, x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=30))
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@dataclass
class Slapd:
    """A directory that runs. `port` speaks LDAP and StartTLS, `tls_port` LDAP within TLS."""

    folder: Path
    port: int
    tls_port: int
    authority: Authority
    process: "subprocess.Popen[bytes]"

    @property
    def uri(self) -> str:
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def tls_uri(self) -> str:
        return f"ldaps://127.0.0.1:{self.tls_port}"

    def settings(self, **more: object) -> LdapSettings:
        """Return the settings that lead here."""
        values: dict[str, object] = {
            "uris": (self.uri,),
            "base_dn": BASE,
            "search_bases": (f"ou=people,{BASE}",),
            "admin_dn": ADMIN,
            "admin_password": ADMIN_PASSWORD,
            "timeout": 20.0,
            "network_timeout": 20.0,
            **more,
        }
        return LdapSettings(**values)  # type: ignore[arg-type]

    @property
    def configuration(self) -> dict[str, Any]:
        """Return the keys of Quay's that lead here."""
        return {
            "AUTHENTICATION_TYPE": "LDAP",
            "LDAP_URI": self.uri,
            "LDAP_ADMIN_DN": ADMIN,
            "LDAP_ADMIN_PASSWD": ADMIN_PASSWORD,
            "LDAP_BASE_DN": ["dc=example", "dc=com"],
            "LDAP_USER_RDN": ["ou=people"],
        }

    def change(self, ldif: str) -> None:
        """Change entries, as the administrator."""
        command = [program("ldapmodify"), "-x", "-H", self.uri, "-D", ADMIN, "-w", ADMIN_PASSWORD]
        subprocess.run(command, input=ldif.encode(), check=True, capture_output=True)

    def add(self, *people: Person) -> None:
        self.change("\n".join(f"{person.ldif()}".replace("\n", "\nchangetype: add\n", 1) for person in people))

    def group(self, name: str, *people: Person) -> None:
        """Make a group; nobody's changes are those of `memberOf` alone, as the overlay writes them."""
        members = {"objectClass": "groupOfNames", "cn": name, "member": [person.dn for person in people]}
        text = _ldif(f"cn={name},ou=groups,{BASE}", members)
        self.change(text.replace("\n", "\nchangetype: add\n", 1))

    def delete(self, dn: str) -> None:
        self.change(f"dn: {dn}\nchangetype: delete\n")

    def stop(self) -> None:
        """End it, as a machine that is switched off."""
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """Let it hang: connections are made, and nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def start(self) -> None:
        """Start it, or start it again on the same ports."""
        urls = f"{self.uri}/ {self.tls_uri}/"
        with (self.folder / "log").open("ab") as log:
            command = [program("slapd"), "-d", "0", "-f", str(self.folder / "slapd.conf"), "-h", urls]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.02)


_CONFIGURATION = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
TLSCACertificateFile {ca}
TLSCertificateFile {certificate}
TLSCertificateKeyFile {key}
pidfile {folder}/slapd.pid
allow bind_anon_cred bind_anon_dn
sizelimit unlimited
database mdb
suffix "{base}"
rootdn "{admin}"
rootpw "{password}"
directory {folder}/db
maxsize 67108864
dbnosync
overlay memberof
access to attrs=userPassword by anonymous auth by * none
access to * by * read
"""
"""With `allow bind_anon_cred` and `bind_anon_dn` a name without a password comes in as nobody, as many servers have
it."""


@contextlib.contextmanager
def slapd(folder: Path, *people: Person, more: str = "") -> Iterator[Slapd]:
    """Serve a directory of `people` in two units, `people` and `guests`, and whatever LDIF is in `more`."""
    (folder / "db").mkdir(parents=True)
    authority = Authority(folder / "tls")
    certificate, key = authority.certificate("127.0.0.1", "localhost")
    values = {"ca": authority.file, "certificate": certificate, "key": key, "folder": folder}
    (folder / "slapd.conf").write_text(_CONFIGURATION.format(base=BASE, admin=ADMIN, password=ADMIN_PASSWORD, **values))
    units = [_ldif(f"ou={unit},{BASE}", {"objectClass": "organizationalUnit", "ou": unit}) for unit in _UNITS]
    top = _ldif(BASE, {"objectClass": ["dcObject", "organization"], "dc": "example", "o": "Example"})
    ldif = "\n".join((top, *units, *(person.ldif() for person in people), more))
    subprocess.run([program("slapadd"), "-q", "-f", str(folder / "slapd.conf")], input=ldif.encode(), check=True)
    ports = [_free_port(), _free_port()]
    running = Slapd(folder, ports[0], ports[1], authority, None)  # type: ignore[arg-type]
    running.start()
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


_UNITS = ("people", "guests", "groups")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
