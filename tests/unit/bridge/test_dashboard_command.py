"""What `sagastream dashboard` refuses before it opens the store."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from sagastream_bridge.commands.main import cli


def refused(*arguments: str, code: int = 2, **env: str | None) -> str:
    done = CliRunner().invoke(cli, ["dashboard", *arguments], env={"SAGASTREAM_DASHBOARD_TOKEN": None, **env})
    assert done.exit_code == code
    return done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_where_others_can_reach_it_it_needs_a_token(host: str) -> None:
    said = refused("--host", host)
    assert f"others can reach {host}: give the dashboard a token, by --token-file FILE or" in " ".join(said.split())


def test_a_token_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short\n")
    assert "token: the token has 5 characters: take 16 or more" in refused("--token-file", str(tmp_path / "token"))
    for arguments in ((), ("--allow-actions",)):
        empty = refused(*arguments, SAGASTREAM_DASHBOARD_TOKEN="")
        assert "SAGASTREAM_DASHBOARD_TOKEN is empty: set it, or unset it if nobody needs a token" in empty
    assert "SAGASTREAM_DASHBOARD_TOKEN: the token has 3 characters" in refused(SAGASTREAM_DASHBOARD_TOKEN="abc")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "No such file" in refused("--token-file", str(tmp_path / "nothing"))


def test_the_extra_is_named_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert "needs the package uvicorn: pip install 'sagastream[dashboard]'" in " ".join(refused(code=1).split())
