"""Where a home is, and what an embedded server is started with."""

import os
import socket
from pathlib import Path

import pytest

from sagastream.broker.connection import Broker
from sagastream.broker.embedded import EmbeddedServer
from sagastream.broker.home import Home, not_ours
from sagastream.broker.launch import _quoted, _settings, most_memory
from sagastream.broker.which_home import default_home, home_of
from sagastream.errors import BrokerError


def test_each_folder_has_a_home_of_its_own_and_its_name_can_be_seen_in_it() -> None:
    state = Path("/s")
    one, other = home_of(Path("/work/shop"), state), home_of(Path("/play/shop"), state)
    assert one != other
    assert one == home_of(Path("/work/shop"), state)
    assert one.parent == other.parent
    assert (one.parent.parent, one.name[:5]) == (Path("/s/sagastream"), "shop-")


@pytest.mark.parametrize(
    ("folder", "host", "begins"),
    [
        ("/", "web-1", "/s/sagastream/web-1/root-"),
        ("/a b/ü; rm -rf $HOME\n", "web-1.example.com", "/s/sagastream/web-1-exampl/rm--rf-HOME-"),
        ("/-", "..", "/s/sagastream/here/root-"),
        (f"/{'long' * 60}", "l" * 64, f"/s/sagastream/{'l' * 12}/{'long' * 3}-"),
    ],
)
def test_the_path_of_a_home_is_short_and_needs_no_quotes(
    folder: str, host: str, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    home = str(home_of(Path(folder), Path("/s")))
    assert home.startswith(begins)
    assert len(home) == len(begins) + 16
    # In the usual state folder of a user with a name of eight letters, the socket of the demonstration fits, too.
    assert len("/home/12345678/.local/state") - len("/s") + len(home) + len("/demo/valkey.sock") <= 100


@pytest.mark.parametrize(("named", "used"), [("/state", "/state"), ("", "~"), ("state", "~"), ("./state", "~")])
def test_a_state_folder_that_depends_on_the_current_folder_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, used: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", named)
    state = Path("/state") if used == "/state" else tmp_path / ".local" / "state"
    assert default_home() == home_of(Path.cwd(), state)


def test_where_there_is_no_home_folder_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("SAGASTREAM_HOME", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(BrokerError, match="it is not known where your home folder is; set SAGASTREAM_HOME or HOME"):
        Broker()


def test_a_current_folder_that_was_deleted_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(BrokerError, match="the current folder cannot be read: No such file or directory; set SAGAS"):
        default_home()


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
