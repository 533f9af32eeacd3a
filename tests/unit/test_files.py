"""Files that a person names: whatever stands there, reading it ends."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sagastream import files


def wrong(read: Callable[[], object]) -> str:
    """What a person is told."""
    with pytest.raises(OSError, match=r"Errno") as error:
        read()
    assert error.value.filename is not None
    return str(error.value.strerror)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SILENCE_S", 0.2)


def huge(folder: Path) -> Path:
    """A file without anything in it, but large."""
    with (folder / "huge").open("wb") as file:
        file.truncate(1 << 40)
    return folder / "huge"


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(text := os.urandom(200_000))
    assert files.given(str(tmp_path / "file")) == text
    assert b"".join(files.pieces(tmp_path / "file")) == text


def test_whatever_else_stands_there_ends_with_words(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path, words in {
        tmp_path / "nothing": "No such file or directory",
        tmp_path: "Is a directory",
        Path("/dev/zero"): "it is a device, not a file",
        tmp_path / "zero": "it is a device, not a file",
        Path("/dev/null"): "it is a device, not a file",
        tmp_path / "pipe": "nothing came out of it for 0.2 seconds: does something write into this pipe?",
        huge(tmp_path): "it is larger than 16 MiB",
    }.items():
        assert wrong(lambda path=path: files.given(str(path))) == words  # type: ignore[misc]


def test_what_comes_out_of_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    text = os.urandom(300_000)
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(text,))
    writer.start()
    try:
        assert files.content(tmp_path / "pipe") == text
    finally:
        writer.join()


def test_a_pipe_that_falls_silent_is_told(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"a beginning")
    assert "nothing came out of it" in wrong(lambda: files.content(f"/proc/self/fd/{read}"))
    os.close(read)
    os.close(write)


def test_what_another_program_reads_is_a_plain_file_that_is_not_huge(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a certificate")
    files.refuse_unusual(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert wrong(lambda path=path: files.refuse_unusual(path)) == "it is not a regular file"  # type: ignore[misc]
    assert wrong(lambda: files.refuse_unusual(huge(tmp_path))) == "it is larger than 16 MiB"
