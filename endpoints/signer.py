"""Signatures, made by GnuPG's `gpg`: detached ones, of streams of any length.

The law: a signature counts only where gpg has read all that it was given, has ended well, and has said which key it
was. A signer that cannot sign says so with what gpg said last, and never gives out nothing instead. The key lies in a
folder of this process alone, which goes with it, also where it is killed. Nobody waits for ever for a gpg that hangs.

The key must be usable without a passphrase, as Quay's is, because there is nobody to ask.
"""

import contextlib
import os
import re
import select
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Final

from endpoints.settings import SigningKey
from util.problem import Problem

GPG = "gpg"
"""The program. Version 2.1 or newer."""

STILL_SECONDS: Final = 60.0
"""How long gpg may neither read nor end."""

CHECK_SECONDS: Final = 30.0
"""How long it is believed that a signer can sign, or cannot, before it is tried again."""

_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
_OPTIONS = ("--no-options", "--batch", "--no-tty", "--yes", "--status-fd", "2", "--pinentry-mode", "error")
_STATUS = "[GNUPG:] "
_NO_REASON = ("gpg: Total number processed", "gpg: keybox ", "gpg:       ", "gpg:   ")
_SAID = 4000  # characters of what gpg says that are kept
_PROBE = b"a signature that nobody needs\n"

# Ends with the process that holds the other end of its input, however that ends, and leaves nothing of the folder.
_KEEPER = 'read -r _; gpgconf --homedir "$0" --kill gpg-agent 2>/dev/null; rm -rf -- "$0"'


class SigningFailed(Problem):
    """A signature that could not be made. The text names the program, and has the last line that it said."""

    code = "SIGNING_FAILED"


@dataclass(frozen=True, slots=True)
class Signature:
    """A detached signature, in ASCII armour or binary, and the fingerprint of the key that made it, 40 digits or 64."""

    content: bytes
    fingerprint: str


class Signer:
    """Signs with one key. Safe for several threads, and to be made before a fork; nothing runs before it is used."""

    def __init__(self, key: SigningKey, *, program: str = GPG, still_seconds: float = STILL_SECONDS) -> None:
        self._key, self._program, self._seconds = key, program, still_seconds
        self._lock = threading.Lock()
        self._home: _Home | None = None
        self._fingerprint: str | None = None
        self._trouble: SigningFailed | None = None
        self._tried: float | None = None

    def sign(self, chunks: Iterable[bytes], *, armoured: bool = True) -> Signature:
        """Return the signature of all of `chunks`, one after the other. Raises SigningFailed, and what `chunks` raise.

        In constant memory, whatever they come to.
        """
        try:
            signature = self._signed(chunks, armoured=armoured)
        except SigningFailed as problem:
            self._note(problem)
            raise
        self._note(None)
        return signature

    def check(self) -> None:
        """Sign something, and verify that by the public key. Raises SigningFailed."""
        try:
            signature = self._signed([_PROBE])
            self._verify(signature)
        except SigningFailed as problem:
            self._note(problem)
            raise
        self._fingerprint = signature.fingerprint
        self._note(None)

    @property
    def trouble(self) -> SigningFailed | None:
        """Why it cannot sign, None where it can; tried anew where that was not lately."""
        tried = self._tried
        if tried is None or time.monotonic() - tried > CHECK_SECONDS:
            with contextlib.suppress(SigningFailed):
                self.check()
        return self._trouble

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the key that signs. Raises SigningFailed where it has never signed."""
        if self._fingerprint is None:
            trouble = self.trouble
            if trouble is not None:
                raise trouble
        return self._fingerprint or ""

    def public_key(self) -> bytes:
        """Return the public key as its file has it. Raises SigningFailed."""
        return _read(self._key.public_file, "the public key")

    def close(self) -> None:
        """Remove the folder of the key; the next signature makes another one. Idempotent."""
        with self._lock:
            home, self._home = self._home, None
        if home is not None:
            home.close()

    def _note(self, trouble: SigningFailed | None) -> None:
        self._trouble, self._tried = trouble, time.monotonic()
        if trouble is not None:
            from endpoints import metrics  # which only a server has use for

            metrics.signing_failed()

    def _signed(self, chunks: Iterable[bytes], *, armoured: bool = True) -> Signature:
        arguments = (
            f"--local-user={self._key.name}",
            # Half as much work as SHA-512, and keys that need more get it.
            "--personal-digest-preferences=SHA256",
            "--armor" if armoured else "--no-armor",
            "--detach-sign",
        )
        done = self._run(self._opened().folder, arguments, chunks)
        made = [status.split() for status in done.statuses if status.startswith("SIG_CREATED ")]
        if len(made) != 1 or not done.output:
            raise SigningFailed(f"{self._program} has made no signature{_told(done.said)}")
        return Signature(done.output, made[0][-1])

    def _verify(self, signature: Signature) -> None:
        """Raise SigningFailed unless the public key that is given out is that of `signature`."""
        with tempfile.TemporaryDirectory(prefix="public-", dir=self._opened().folder) as folder:
            # What imports no secret needs no agent.
            self._import(folder, self._key.public_file, "the public key", "--no-autostart")
            path = os.path.join(folder, "signature")
            with open(path, "wb") as file:
                file.write(signature.content)
            verifying = ("--no-autostart", "--trust-model", "always", "--verify", path, "-")
            try:
                done = self._run(folder, verifying, [_PROBE])
            except SigningFailed as problem:
                raise self._stranger(str(problem)) from problem
            if not any(status.startswith("GOODSIG ") for status in done.statuses):
                raise self._stranger(f"{self._program} says{_told(done.said)}")

    def _stranger(self, why: str) -> SigningFailed:
        key = self._key
        return SigningFailed(f"{key.public_file} does not verify what {key.name} signs: {why}")

    def _opened(self) -> "_Home":
        """Return this process's folder, with the key in it."""
        with self._lock:
            if self._home is not None and (self._home.pid != os.getpid() or not os.path.isdir(self._home.folder)):
                self._home = None  # our parent's, or swept away
            if self._home is None:
                home = _Home()
                try:
                    self._import(home.folder, self._key.private_file, "the private key")
                except BaseException:
                    home.close()
                    raise
                self._home = home
            return self._home

    def _import(self, folder: str, path: str, what: str, *options: str) -> None:
        content = _read(path, what)
        try:
            self._run(folder, (*options, "--import"), [content])
        except SigningFailed as problem:
            raise SigningFailed(f"{what} in {path} cannot be used: {problem}") from problem

    def _run(self, folder: str, arguments: Sequence[str], chunks: Iterable[bytes]) -> "_Done":
        """Have gpg do what `arguments` say, with `chunks` on its input. Raises SigningFailed; nothing runs then."""
        command = [shutil.which(self._program) or self._program, "--homedir", folder, *_OPTIONS, *arguments]
        with tempfile.TemporaryFile(dir=folder) as output, tempfile.TemporaryFile(dir=folder) as words:
            try:
                process = subprocess.Popen(  # noqa: S603 the arguments are ours
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=words,
                    env=_ENVIRONMENT,
                    start_new_session=True,  # a terminal's Ctrl-C is for us: we end it
                )
            except OSError as error:
                raise SigningFailed(f"{self._program} cannot be started: {error.strerror or error}") from error
            with process:
                try:
                    whole = self._feed(process, chunks)
                except BaseException:
                    process.kill()
                    raise
            statuses, said = _lines(words)
            if process.returncode:
                raise SigningFailed(f"{self._program} {_ending(process.returncode)}{_told(said)}")
            if not whole:
                raise SigningFailed(f"{self._program} did not read to the end{_told(said)}")
            output.seek(0)
            return _Done(output.read(), statuses, said)

    def _feed(self, process: "subprocess.Popen[bytes]", chunks: Iterable[bytes]) -> bool:
        """Write `chunks`, wait for the end, tell whether all was read. Raises SigningFailed, what `chunks` raise."""
        pipe = process.stdin
        assert pipe is not None  # noqa: S101 for the type checker
        os.set_blocking(pipe.fileno(), False)
        poll = select.poll()
        poll.register(pipe.fileno(), select.POLLOUT)
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                if not poll.poll(self._seconds * 1000):
                    raise SigningFailed(f"{self._program} has read nothing for {self._seconds:g} s")
                try:
                    rest = rest[os.write(pipe.fileno(), rest) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:  # how it ends says more
                    self._await(process)
                    return False
        pipe.close()
        self._await(process)
        return True

    def _await(self, process: "subprocess.Popen[bytes]") -> None:
        try:
            process.wait(self._seconds)
        except subprocess.TimeoutExpired:
            raise SigningFailed(f"{self._program} does not end, and was given {self._seconds:g} s") from None


@dataclass(frozen=True, slots=True)
class _Done:
    """What gpg wrote, and said to programs and to people."""

    output: bytes
    statuses: Sequence[str]
    said: Sequence[str]


class _Home:
    """A folder for gpg that only we may look into. It is removed with its agent when it is closed, or when we die."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.folder = tempfile.mkdtemp(prefix="registry-verbs-gpg-")  # which is 0700
        keeper = subprocess.Popen(  # noqa: S603 all ours
            ["/bin/sh", "-c", _KEEPER, self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            start_new_session=True,
        )
        self._close = weakref.finalize(self, _let_go, keeper, self.folder, self.pid)

    def close(self) -> None:
        self._close()


def _let_go(keeper: "subprocess.Popen[bytes]", folder: str, pid: int) -> None:
    """Have the keeper do its work. Not in a process that was forked from the one whose keeper it is."""
    if pid != os.getpid():
        keeper.returncode = 0  # it is no child of ours: nobody here shall wait for it
        return
    if keeper.stdin is not None:
        keeper.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        keeper.wait(5)
    shutil.rmtree(folder, ignore_errors=True)  # where a fork holds the other end too


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise SigningFailed(f"{what} cannot be read from {path}: {error.strerror or error}") from error


def _lines(words: IO[bytes]) -> tuple[list[str], list[str]]:
    """Return what gpg said to programs, and to people."""
    words.seek(0)
    lines = [line.strip() for line in words.read(1 << 20).decode(errors="replace").splitlines()]
    statuses = [line.removeprefix(_STATUS) for line in lines if line.startswith(_STATUS)]
    return statuses, [line for line in lines if line and not line.startswith((_STATUS, *_NO_REASON))]


def _told(said: Sequence[str]) -> str:
    """Return what is added to an error: the last line."""
    return f": {re.sub(r'^gpg: ', '', said[-1])[:_SAID]}" if said else ""


def _ending(status: int) -> str:
    return f"ended with status {status}" if status >= 0 else f"was killed by signal {-status}"
