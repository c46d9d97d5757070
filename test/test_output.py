"""The command line's output: whole files or none, streams as they come, and errors that name the file."""

import os
import stat
from pathlib import Path

import pytest

from endpoints.output import Output, OutputFailed


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "image.tar"
    with Output(str(target), "unused") as out:
        out.write(b"first ")
        assert not target.exists()
        out.write(b"second")
    assert target.read_bytes() == b"first second"
    assert os.listdir(tmp_path) == ["image.tar"]


def test_what_fails_leaves_the_file_from_before_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "image.tar"
    target.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        _write_half_and_stop(target)
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["image.tar"]


def _write_half_and_stop(target: Path) -> None:
    with Output(str(target), "unused") as out:
        out.write(b"half")
        raise KeyboardInterrupt


def test_into_a_folder_it_goes_under_the_image_s_own_name(tmp_path: Path) -> None:
    with Output(str(tmp_path), "acme_app_1.0-linux-amd64.aci") as out:
        out.write(b"image")
    assert (tmp_path / "acme_app_1.0-linux-amd64.aci").read_bytes() == b"image"


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "image.tar"
    link.symlink_to("elsewhere/image.tar")
    with Output(str(link), "unused") as out:
        out.write(b"image")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "image.tar").read_bytes() == b"image"


def test_a_device_is_written_and_stays_a_device() -> None:
    with Output("/dev/null", "unused") as out:
        out.write(b"image")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_file_gets_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with Output(str(tmp_path / "image.tar"), "unused") as out:
            out.write(b"image")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "image.tar").stat().st_mode) == 0o640


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputFailed, match=r"nowhere/image\.tar cannot be written: No such file or directory"):
        Output(str(tmp_path / "nowhere" / "image.tar"), "unused")


def test_a_full_device_is_an_error_that_names_it() -> None:
    with (
        pytest.raises(OutputFailed, match="/dev/full cannot be written: No space left"),
        Output("/dev/full", "x") as out,
    ):
        out.write(bytes(1 << 20))


def test_an_error_of_the_source_is_not_taken_for_one_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), Output(str(tmp_path / "image.tar"), "unused"):
        raise ConnectionResetError
    assert os.listdir(tmp_path) == []
