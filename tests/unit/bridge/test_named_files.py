"""Every option and argument that names a file to be read: whatever stands there, the command ends with one line."""

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sagastream import files
from sagastream_bridge.commands.main import cli

#: What reads a file, with {} for its name.
READS = (
    "begin {}",
    "begin order --input @{}",
    "check-service desk --cases {}",
    "dashboard --token-file {}",
    "deploy {}",
    "explore {}",
    "graph {}",
    "import {}",
    "lint {}",
    "lint --services {} sound.json",
    "signal s1 go --payload @{}",
)
SOUND = '{"name": "order", "version": 1, "steps": [{"transaction": "Do", "service": "work", "params": 1}]}'
#: What stands there. The pipe is first: reading a device without end would fill the memory.
PLACES = {
    "pipe.json": "nothing came out of it for 0.05 seconds: does something write into this pipe?",
    "device.json": "it is a device, not a file",
    "folder.json": "Is a directory",
    "huge.json": "it is larger than 16 MiB",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with those places, and a broker that is not there."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "device.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "sound.json").write_text(SOUND)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "SILENCE_S", 0.05)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")


@pytest.mark.parametrize("command", READS)
@pytest.mark.usefixtures("here")
def test_a_command_that_reads_a_file_ends_with_one_line(command: str) -> None:
    for place, words in PLACES.items():
        done = CliRunner().invoke(cli, command.format(place).split())
        told = (done.exit_code, done.stdout, done.stderr)
        if (command, place) == ("import {}", "huge.json"):  # a store may be so large
            said = "Error: huge.json: line 1 is not JSON, so this is no file of sagastream export"
            assert (*told[:2], told[2].startswith(said), told[2].count("\n")) == (1, "", True, 1)
            continue
        assert told == (2, "", f"Error: {place}: {words}\n"), (command, place)


def test_the_table_has_every_option_that_names_a_file() -> None:
    named = {"begin", "deploy", "explore", "graph", "lint"}  # also what is no file, so click does not know
    named |= {
        name
        for name, command in cli.commands.items()
        for parameter in command.params
        if isinstance(parameter.type, click.Path | click.File) or "@FILE" in str(parameter.metavar)
    }
    writes = {"export", "worker", "service", "rq-worker", "up", "bench"}
    assert named - writes == {one.split()[0] for one in READS}


def test_files_of_a_url_are_looked_at_before_they_are_read(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        for place in ("pipe.json", "device.json", "huge.json"):
            monkeypatch.setenv("REDIS_URL", f"rediss://127.0.0.1:1?ssl_certfile=sound.json&{option}={place}")
            done = CliRunner().invoke(cli, ["list"])
            assert done.exit_code == 1
            said = done.stderr.splitlines()
            assert len(said) == 1
            assert "its certificates cannot be used" in said[0]
            assert said[0].endswith(("it is not a regular file", "it is larger than 16 MiB")), said


@pytest.mark.usefixtures("here")
def test_standard_input_without_an_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 1 << 20)
    done = CliRunner().invoke(cli, ["deploy", "-"], input=b"x" * ((1 << 20) + 1))
    assert (done.exit_code, done.stderr) == (2, "Error: standard input: it is larger than 1 MiB\n")
