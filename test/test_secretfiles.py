"""Secrets that a registry makes for itself: once, for everybody, and for nobody else's eyes."""

import os
import stat
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from endpoints.secretfiles import SecretFileUnusable, kept_secret, secret_there


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    folder = str(tmp_path / "not" / "there")
    made = kept_secret(folder, "key")
    assert len(made) >= 43  # of 256 random bits and more
    assert kept_secret(folder, "key") == secret_there(folder, "key") == made
    assert kept_secret(folder, "other") != made


def test_a_secret_is_its_owner_s_alone_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        kept_secret(str(tmp_path), "key")
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == ["key"]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_looking_makes_none(tmp_path: Path) -> None:
    assert secret_there(str(tmp_path / "absent"), "key") is None
    assert secret_there(str(tmp_path), "key") is None
    assert os.listdir(tmp_path) == []


def test_processes_side_by_side_have_the_same(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as processes:
        for number in range(10):
            made = list(processes.map(partial(kept_secret, str(tmp_path)), [f"key{number}"] * 8))
            assert len(set(made)) == 1
    assert len(os.listdir(tmp_path)) == 10


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n", "schlüssel".encode()])
def test_a_file_that_holds_no_secret_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    for read in (kept_secret, secret_there):
        with pytest.raises(SecretFileUnusable, match="key"):
            read(str(tmp_path), "key")
    assert (tmp_path / "key").read_bytes() == content


def test_a_folder_that_cannot_hold_one_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SecretFileUnusable, match="file/key"):
        kept_secret(str(tmp_path / "file"), "key")
    (tmp_path / "key").mkdir()
    with pytest.raises(SecretFileUnusable, match="key"):
        kept_secret(str(tmp_path), "key")
