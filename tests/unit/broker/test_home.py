"""A home and its files, and what an embedded server is started with."""

import os
from pathlib import Path

import pytest

from sagastream.broker.embedded import EmbeddedServer
from sagastream.broker.home import Home, not_ours
from sagastream.broker.launch import _quoted, _settings, most_memory
from sagastream.errors import BrokerError


def test_a_file_of_a_home_is_written_all_at_once_and_for_us_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.make()
    assert home.read("port") is None
    home.write("port", "6390\n")
    assert home.read("port") == "6390"
    assert (tmp_path / "home" / "port").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == [".gitignore", "port"]


def test_a_folder_that_is_not_there_belongs_to_nobody(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert not home.is_there
    assert not EmbeddedServer(home.path).has_data
    with pytest.raises(FileNotFoundError):
        not_ours(home.path)


@pytest.mark.parametrize("name", ["plain", "with space", 'quoted "it" \\ $HOME', "line\nport 6390", "ünï"])
def test_a_path_cannot_change_the_settings_of_the_server(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path / name)
    said = _settings(home, {"unixsocket": home / "valkey.sock"}).decode("ascii").splitlines()
    assert [line for line in said if line.startswith("port ")] == ['port "0"']
    (folder,) = (line.removeprefix("dir ") for line in said if line.startswith("dir "))
    quoted = folder[1:-1].encode("ascii").decode("unicode_escape").encode("latin-1")
    assert os.fsdecode(quoted) == str(home)
    assert 'appendfsync "always"' in said
    assert 'rename-command MODULE ""' in said


@pytest.mark.parametrize(
    ("asked", "most"), [("16777216", 1 << 24), ("20M", 20_000_000), (" 512mb ", 512 << 20), ("2GB", 2 << 30)]
)
def test_a_limit_of_memory_is_said_as_in_redis_conf(asked: str, most: int) -> None:
    assert most_memory({"SAGASTREAM_MAXMEMORY": asked}) == most


@pytest.mark.parametrize("asked", ["0", "1kb", "-1", "1.5gb", "b", "16b", "2tb", "\u0662gb", "9" * 30])
def test_a_limit_of_memory_that_is_none_is_told_of(asked: str) -> None:
    with pytest.raises(BrokerError, match="SAGASTREAM_MAXMEMORY is"):
        most_memory({"SAGASTREAM_MAXMEMORY": asked})


def test_quoting_keeps_plain_text_as_it_is() -> None:
    assert _quoted("/var/lib/a b") == '"/var/lib/a b"'
