"""The signer: what it signs is verified by the real gpg, and whatever goes wrong with it is told."""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from endpoints import signer as signers
from endpoints.settings import SigningKey
from endpoints.signer import Signer, SigningFailed
from test.gnupg import Key, make_key, stand_in, verified
from test.waiting import eventually


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("key"), "registry")


@pytest.fixture
def signer(key: Key) -> Iterator[Signer]:
    signer = Signer(key.setting)
    yield signer
    signer.close()


@pytest.fixture
def own_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have temporary files lie where no other test makes any. The path is short: a socket's may not be long."""
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


def gpg_folders() -> set[str]:
    return set(glob.glob(f"{tempfile.gettempdir()}/registry-verbs-gpg-*"))


def processes(word: str) -> list[int]:
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if word.encode() in Path(path).read_bytes():
                found.append(int(path.split("/")[2]))
        except OSError:
            continue
    return found


# --- Signing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [[], [b""], [b"a", b"", b"b" * 300_000, b"c"]])
def test_a_signature_is_of_all_the_bytes(signer: Signer, key: Key, content: list[bytes]) -> None:
    signature = signer.sign(iter(content))
    assert signature.content.startswith(b"-----BEGIN PGP SIGNATURE-----\n")
    assert signature.content.isascii()
    assert verified(b"".join(content), signature.content, signer.public_key()) == key.fingerprint
    assert signature.fingerprint == key.fingerprint


def test_a_binary_signature_is_one_too(signer: Signer, key: Key) -> None:
    signature = signer.sign([b"content"], armoured=False)
    assert not signature.content.startswith(b"-")
    assert verified(b"content", signature.content, key.public.read_bytes()) == key.fingerprint


@pytest.mark.parametrize("algorithm", ["rsa2048", "nistp384"])
def test_keys_of_other_kinds_sign(tmp_path: Path, algorithm: str) -> None:
    key = make_key(tmp_path, "other", algorithm=algorithm)
    signer = Signer(key.setting)
    signer.check()
    assert verified(b"x", signer.sign([b"x"]).content, signer.public_key()) == key.fingerprint
    signer.close()


def test_a_key_is_found_by_its_fingerprint(key: Key) -> None:
    signer = Signer(replace(key.setting, name=key.fingerprint[-16:]))
    assert signer.sign([b"x"]).fingerprint == key.fingerprint
    signer.close()


def test_a_large_stream_takes_no_memory(signer: Signer) -> None:
    signer.check()
    code = (
        "import resource, sys; from endpoints.signer import Signer; from endpoints.settings import SigningKey;"
        "signer = Signer(SigningKey(*sys.argv[1:]));"
        "signer.sign([b'x']); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "piece = bytes(1 << 20); signer.sign(piece for _ in range(300));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before); signer.close()"
    )
    setting = signer._key
    arguments = [setting.name, setting.private_file, setting.public_file]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True, timeout=600)
    assert int(done.stdout) < 20_000  # KiB


def test_several_threads_sign_at_once(signer: Signer, key: Key) -> None:
    from concurrent.futures import ThreadPoolExecutor

    contents = [bytes([number]) * 1000 for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        signatures = list(pool.map(lambda content: signer.sign([content]), contents))
    for content, signature in zip(contents, signatures, strict=True):
        assert verified(content, signature.content, key.public.read_bytes()) == key.fingerprint


def test_what_the_content_s_source_raises_is_raised(signer: Signer) -> None:
    def cut() -> Iterator[bytes]:
        yield b"x"
        raise ValueError("cut")

    with pytest.raises(ValueError, match="cut"):
        signer.sign(cut())
    assert signer.trouble is None


# --- The check --------------------------------------------------------------------------------------------------------


def test_a_signer_that_can_sign_is_in_no_trouble(signer: Signer, key: Key) -> None:
    signer.check()
    assert signer.trouble is None
    assert signer.fingerprint == key.fingerprint


def failing(setting: SigningKey, *, program: str = "gpg", still_seconds: float = 60) -> str:
    """Return why a signer cannot sign; whatever it is asked, it says so."""
    signer = Signer(setting, program=program, still_seconds=still_seconds)
    with pytest.raises(SigningFailed) as failed:
        signer.check()
    assert str(signer.trouble) == str(failed.value)
    with pytest.raises(SigningFailed):
        _ = signer.fingerprint
    signer.close()
    assert "\n" not in str(failed.value)
    return str(failed.value)


def test_a_key_that_is_not_in_the_file_is_told(key: Key) -> None:
    text = failing(replace(key.setting, name="somebody else"))
    assert "gpg ended with status 2" in text
    assert "No secret key" in text


def test_a_file_that_is_not_there_is_told(key: Key) -> None:
    assert "/nowhere: No such file" in failing(replace(key.setting, private_file="/nowhere"))
    assert "/nowhere: No such file" in failing(replace(key.setting, public_file="/nowhere"))


def test_a_file_without_a_key_is_told(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    path.write_text("no key\n")
    assert "no valid OpenPGP data found" in failing(replace(key.setting, private_file=str(path)))
    assert "no valid OpenPGP data found" in failing(replace(key.setting, public_file=str(path)))
    assert "No secret key" in failing(replace(key.setting, private_file=str(key.public)))


def test_a_public_key_of_somebody_else_is_told(key: Key, tmp_path: Path) -> None:
    other = make_key(tmp_path, "other")
    text = failing(replace(key.setting, public_file=str(other.public)))
    assert f"{other.public} does not verify what registry signs" in text


def test_a_key_with_a_passphrase_is_told(tmp_path: Path) -> None:
    key = make_key(tmp_path, "guarded", passphrase="secret")
    assert "gpg ended with status 2: signing failed" in failing(key.setting)


def test_a_program_that_is_not_there_is_told(key: Key) -> None:
    assert "no-such-gpg cannot be started: No such file or directory" in failing(key.setting, program="no-such-gpg")


_NEVER_READS = 'case "$*" in *--import*) cat >/dev/null;; *) exec sleep 600;; esac'
_NEVER_ENDS = 'cat >/dev/null; case "$*" in *--import*) ;; *) exec sleep 600;; esac'


@pytest.mark.parametrize(
    ("script", "still_seconds", "told"),
    [
        (
            "cat >/dev/null; echo 'gpg: something' >&2; echo 'gpg: it is Monday' >&2; exit 2",
            60,
            "status 2: it is Monday",
        ),
        ("cat >/dev/null; exit 0", 60, "has made no signature"),
        ("cat >/dev/null; echo '[GNUPG:] SIG_CREATED D 1 8 00 1 ABCD' >&2", 60, "has made no signature"),
        ("cat >/dev/null; echo signature", 60, "has made no signature"),
        ("cat >/dev/null; kill -9 $$", 60, "was killed by signal 9"),
        (_NEVER_ENDS, 0.5, "does not end, and was given 0.5 s"),
    ],
)
def test_a_program_that_fails_is_told(key: Key, tmp_path: Path, script: str, still_seconds: float, told: str) -> None:
    assert told in failing(key.setting, program=stand_in(tmp_path, script), still_seconds=still_seconds)


def test_a_program_that_reads_no_more_is_told(key: Key, tmp_path: Path) -> None:
    for script, still_seconds, told in (
        (_NEVER_READS, 0.5, "has read nothing for 0.5 s"),
        (
            'case "$*" in *--import*) cat >/dev/null;; *) head -c 100000 >/dev/null;; esac',
            60,
            "did not read to the end",
        ),
        (
            'case "$*" in *--import*) cat >/dev/null;; *) exec <&-; sleep 1; echo "gpg: no money" >&2; exit 2;; esac',
            60,
            "ended with status 2: no money",
        ),
    ):
        program = stand_in(tmp_path, script)
        signer = Signer(key.setting, program=program)
        signer._opened()  # what is imported is read, however long that takes
        signer._seconds = still_seconds
        with pytest.raises(SigningFailed, match=told):
            signer.sign(bytes(1 << 20) for _ in range(100))
        signer.close()
        assert processes(program) == []


def test_trouble_that_is_over_is_noticed(key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "private"
    signer = Signer(replace(key.setting, private_file=str(path)))

    def troubled() -> bool:
        return signer.trouble is not None

    monkeypatch.setattr(signers, "CHECK_SECONDS", 3600.0)
    assert troubled()
    path.write_bytes(key.private.read_bytes())
    assert troubled()  # believed for a while
    monkeypatch.setattr(signers, "CHECK_SECONDS", 0.0)
    assert not troubled()
    assert signer.fingerprint == key.fingerprint
    path.unlink()
    assert not troubled()  # it has the key
    signer.close()


# --- The folder -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_folder")
def test_the_key_lies_in_a_folder_of_ours_alone_and_goes_with_the_signer(key: Key) -> None:
    signer = Signer(key.setting)
    assert gpg_folders() == set()
    signer.check()
    (folder,) = gpg_folders()
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    signer.sign([b"x"])
    assert gpg_folders() == {folder}  # once for a process
    signer.close()
    eventually(lambda: gpg_folders() == set())
    eventually(lambda: processes(folder) == [])  # its agent too
    signer.sign([b"x"])
    del signer
    eventually(lambda: gpg_folders() == set())


@pytest.mark.parametrize("end", ["", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_the_folder_goes_with_the_process_however_that_ends(key: Key, end: str) -> None:
    code = (
        "import os, sys; from endpoints.signer import Signer; from endpoints.settings import SigningKey;"
        "signer = Signer(SigningKey(*sys.argv[1:])); signer.check();"
        f"print(signer._home.folder, flush=True); {end}"
    )
    arguments = [key.name, str(key.private), str(key.public)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, check=False, timeout=300)
    folder = done.stdout.decode().strip()
    assert "registry-verbs-gpg-" in folder
    eventually(lambda: not os.path.exists(folder))
    eventually(lambda: processes(folder) == [])


def test_a_forked_process_has_a_folder_of_its_own_and_leaves_its_parent_s(signer: Signer, key: Key) -> None:
    signer.check()
    home = signer._home
    assert home is not None
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            made = signer.sign([b"child"])
            other = signer._home
            assert other is not None
            assert other.folder != home.folder
            os.write(write, made.content)
            signer.close()
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        signature = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert verified(b"child", signature, key.public.read_bytes()) == key.fingerprint
    assert os.path.isdir(home.folder)
    signer.sign([b"parent"])


def test_a_folder_that_was_swept_away_is_made_anew(signer: Signer) -> None:
    signer.check()
    home = signer._home
    assert home is not None

    def swept() -> bool:
        shutil.rmtree(home.folder, ignore_errors=True)  # its agent takes its sockets away at the same time
        return not os.path.exists(home.folder)

    eventually(swept)
    signer.sign([b"x"])
