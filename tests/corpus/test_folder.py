"""Audio folders: what lies below is read, nothing else is."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from stetholm.corpus.folder import LocalFolder, RecordingError, open_folder
from stetholm.errors import UserError
from stetholm.storage import Storage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "audio"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.wav").write_bytes(b"12345")
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (root / "out.wav").symlink_to(tmp_path / "secret.wav")
    (root / "outside").symlink_to(tmp_path)
    (root / "in.wav").symlink_to(root / "sub" / "a.wav")
    (root / "loop.wav").symlink_to(root / "loop.wav")
    (root / "there.wav").symlink_to(root / "back.wav")
    (root / "back.wav").symlink_to(root / "there.wav")
    (root / "gone.wav").symlink_to(root / "none.wav")
    (root / "zero.wav").symlink_to("/dev/zero")
    (root / "up").symlink_to(root)
    (root / "folder.wav").mkdir()
    os.mkfifo(root / "pipe.wav")
    return root


@pytest.mark.parametrize("name", ["sub/a.wav", "./sub/a.wav", "in.wav"])
def test_reads_what_is_below(root: Path, storage: Storage, name: str) -> None:
    assert open_folder(str(root), storage).read(name, 5) == b"12345"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.wav", "is not there"),
        ("sub", "is not a file"),
        ("folder.wav", "is not a file"),
        ("pipe.wav", "is not a file"),
        ("zero.wav", "link"),
        ("there.wav", "cannot be read|not there|link"),
        ("gone.wav", "is not there"),
        ("up/up/out.wav", "link"),
        ("out.wav", "link"),
        ("outside/secret.wav", "link"),
        ("../secret.wav", "leaves the audio folder"),
        ("loop.wav", "cannot be read|not there|link"),
        ("x" * 5000, "cannot be read"),
        ("/etc/passwd", "absolute"),
    ],
)
def test_refuses_the_rest(root: Path, storage: Storage, name: str, reason: str) -> None:
    with pytest.raises(RecordingError, match=reason):
        open_folder(str(root), storage).read(name, 100)


def test_devices_are_not_read() -> None:
    with pytest.raises(RecordingError, match="is not a file"):
        LocalFolder("/dev").read("zero", 100)


def test_lists_names_and_sizes_whatever_lies_there(root: Path, storage: Storage) -> None:
    (root / "sub" / "empty.wav").touch()
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(root):  # the path of a socket must be short
        server.bind("socket.wav")
        sizes = open_folder(str(root), storage).files()
    nothing = ["back.wav", "gone.wav", "loop.wav", "pipe.wav", "socket.wav", "sub/empty.wav", "there.wav", "zero.wav"]
    # Of a link that leads out, as of the others, the size is told; reading it says what is wrong.
    assert sizes == {**dict.fromkeys(nothing, 0), "in.wav": 5, "sub/a.wav": 5, "out.wav": 6}
    assert list(sizes) == sorted(sizes)


def test_object_storage(storage: Storage) -> None:
    uri = storage.join("test-folder", "audio")
    storage.write_bytes(f"{uri}/sub/a.wav", b"12345")
    folder = open_folder(uri, storage)
    assert folder.read("sub/a.wav", 5) == b"12345"
    for name, reason in [("none.wav", "not there"), ("sub", "not there"), ("../audio/sub/a.wav", "leaves")]:
        with pytest.raises(RecordingError, match=reason):
            folder.read(name, 5)


def test_too_large(root: Path, storage: Storage) -> None:
    storage.write_bytes(storage.join("test-folder", "audio", "b.wav"), b"12345")
    for where, name in [(str(root), "in.wav"), (storage.join("test-folder", "audio"), "b.wav")]:
        with pytest.raises(RecordingError, match=r"audio\.max_bytes = 4"):
            open_folder(where, storage).read(name, 4)


def test_missing_folder(tmp_path: Path, storage: Storage) -> None:
    for where in (str(tmp_path / "none"), storage.join("test-folder-none")):
        with pytest.raises(UserError, match=r"corpus\.audio"):
            open_folder(where, storage)
