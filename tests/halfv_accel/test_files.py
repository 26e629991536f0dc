"""Files are written in full, to ordinary files only, and through symbolic links."""

import os

import pytest

from halfv_accel.files import check_writable, write_atomically

from .refusing import refusal


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target.json", tmp_path / "link.json"
    link.symlink_to(os.path.join("far", "target.json"))
    for content in (b"one", b"two"):  # the target does not exist the first time
        write_atomically(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["far", "link.json"]
    assert os.listdir(tmp_path / "far") == ["target.json"]


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "dangling").symlink_to("none/profile.json")
    refusal(lambda: write_atomically(tmp_path / "circle", b""), "a symbolic link to itself")
    refusal(lambda: write_atomically(tmp_path / "dangling", b""), "none does not exist: make it first")
    assert (tmp_path / "circle").is_symlink() and (tmp_path / "dangling").is_symlink()


@pytest.mark.parametrize("through_a_link", [False, True])
def test_pipes_and_devices_are_refused(tmp_path, through_a_link):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / ("link" if through_a_link else "pipe"), "/dev/null"):
        refusal(lambda path=path: check_writable(path), "a pipe, a socket or a device: choose an ordinary file")
        refusal(lambda path=path: write_atomically(path, b"x"), "a pipe, a socket or a device")
    assert (tmp_path / "pipe").is_fifo()
