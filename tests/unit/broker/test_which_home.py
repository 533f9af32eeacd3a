"""Where a home is."""

import socket
from pathlib import Path

import pytest

from sagastream.broker.connection import Broker
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
