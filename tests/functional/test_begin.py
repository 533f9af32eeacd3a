"""`sagastream begin` and operators' commands while the broker takes nothing, and what one who waits is told."""

import json
import signal
from typing import Any

import pytest

from sagastream.broker.connection import connect
from support.processes import Commands
from support.scenes import do
from support.servers import OwnServer, Server
from support.waiting import takes_less_than, until

pytestmark = pytest.mark.both_in_soak

SAGA: dict[str, Any] = {"saga_id": "s1", "steps": [do(1, "Fly", "airlnie")]}
SHOP = """
from sagastream import Service

service = Service("till")

@service.command("Do", compensation="Undo")
def do(params, context):
    return params

@service.compensation("Undo")
def undo(params, context):
    pass
"""
WAITS = ("begin", "-", "--timeout", "1")
FULL = (
    "the request to begin saga s1 was not taken, the store is full: all of maxmemory is used; "
    "begin it again later, with the same id, or see sagastream doctor"
)


def begun(commands: Commands, server: Server, *arguments: str) -> str:
    """What a begin says that is given up."""
    with takes_less_than(5):
        done = commands.run(*arguments, given=json.dumps(SAGA), REDIS_URL=server.url)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_a_begin_into_a_full_store_is_refused_at_once(server: Server, commands: Commands) -> None:
    """There may be no room for days."""
    commands.run("init", REDIS_URL=server.url)
    with connect(server.url) as client:
        client.config_set("maxmemory", 1)
    said = begun(commands, server, "begin", "-")
    assert said == f"Error: {FULL}\n"


def test_a_begin_with_a_time_limit_waits_for_room(server: Server, commands: Commands) -> None:
    commands.run("init", REDIS_URL=server.url)
    with connect(server.url) as client:
        client.config_set("maxmemory", 1)
        said = begun(commands, server, *WAITS)
        assert said == f"{FULL}; trying again for 1 s\nError: {FULL}\n"
        process = commands.start("begin", "-", "--timeout", "300", env={"REDIS_URL": server.url})
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(SAGA).encode())
        process.stdin.close()
        assert process.stderr.readline().decode() == f"{FULL}; trying again for 300 s\n"
        client.config_set("maxmemory", 0)
    assert process.wait(60) == 0


@pytest.mark.own_server
@pytest.mark.parametrize("wait", [(), ("--wait",)])
def test_a_begin_ends_when_its_time_is_up_though_the_broker_has_died(
    server: OwnServer, commands: Commands, wait: tuple[str, ...]
) -> None:
    """It dies after the command has looked at the store, which takes no writes until then."""
    commands.run("init", REDIS_URL=server.url)
    with connect(server.url) as client:
        client.config_set("min-replicas-to-write", 1)
        client.config_set("min-replicas-max-lag", 10)
    process = commands.start("begin", "-", "--timeout", "3", *wait, env={"REDIS_URL": server.url})
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(json.dumps(SAGA).encode())
    process.stdin.close()
    assert b"the broker takes no writes" in process.stderr.readline()
    server.kill()
    assert process.wait(20) == 1
    last = process.stderr.read().decode().splitlines()[-1]
    assert "saga s1 was not begun within 3 s: the broker does not answer, since nobody listens there" in last


@pytest.mark.own_server
def test_who_gives_up_a_frozen_broker_is_told_that_the_request_may_have_arrived(
    server: OwnServer, commands: Commands
) -> None:
    commands.run("init", REDIS_URL=server.url)
    done = commands.run("begin", "-", given=json.dumps(SAGA), REDIS_URL=server.url)
    assert done.returncode == 0
    with connect(server.url) as client:
        client.client_pause(60_000, all=False)  # it answers what reads, and holds back what writes
        for arguments in (WAITS, ("cancel", "s1", "--reason", "why")):
            done = commands.run(*arguments, given=json.dumps(SAGA | {"saga_id": "s2"}), REDIS_URL=server.url)
            assert done.returncode == 1
            assert "the broker does not answer: it hangs, was stopped" in done.stderr
            assert "may have arrived" in done.stderr.splitlines()[-1]
        client.client_unpause()


def test_one_who_waits_is_told_why_and_that_the_saga_goes_on(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    process = commands.start("begin", "-", "--wait", env=env)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(json.dumps(SAGA).encode())
    process.stdin.close()
    lines: list[bytes] = []
    until(lambda: lines.append(process.stderr.readline()) or b"saga s1 waits" in lines[-1], what="it says why")  # type: ignore[union-attr, func-returns-value]
    assert b"no process of service airlnie is listening, and none ever was" in lines[-1]
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr.read().decode().endswith("saga s1 goes on without this command: sagastream show s1\n")


def test_one_who_begins_is_told_of_misspelt_names_and_of_a_saga_that_was_begun_before(
    server: Server, commands: Commands
) -> None:
    """It is accepted all the same: the service may come. And whoever begins an ended saga must not think that it runs
    again."""
    env = {"REDIS_URL": server.url}
    (commands.folder / "shop.py").write_text(SHOP)
    commands.quiet("up", "--service", "shop:service", env=env)
    good = {"saga_id": "s1", "steps": [do(1, "Do", "till")]}
    assert commands.run("begin", "-", "--wait", "--timeout", "60", given=json.dumps(good), **env).returncode == 0
    misspelt = {
        "saga_id": "s2",
        "steps": [do(1, "Do", "till"), do(2, "Do", "tlil", compensation=None), do(3, "Doo", "till")],
    }
    done = commands.run("begin", "-", given=json.dumps(misspelt), **env)
    assert (done.returncode, done.stdout) == (0, "s2 accepted\n")
    assert done.stderr.splitlines() == [
        "warning: no process of service tlil is listening, and none ever was; is it a misspelling of till?",
        "warning: service till publishes no command Doo; is it a misspelling of Do?",
        "         sagastream cancel s2 --now --reason TEXT  # takes it back; begin another with the right names",
    ]
    until(lambda: "for tlil to answer" in commands.run("show", "s2", **env).stdout, what="it waits for a stranger")
    done = commands.run("cancel", "s2", "--reason", "wrong name", **env)
    assert done.stderr == (
        "note: no process of service tlil is listening, and none ever was; is it a misspelling of till?\n"
        "      sagastream cancel s2 --now --reason TEXT  # abandon it if it is parked then; begin another with the "
        "right name\n"
    )
    commands.run("cancel", "s2", "--now", "--reason", "wrong name", **env)
    done = commands.run("begin", "-", "--wait", given=json.dumps(misspelt), **env)
    assert (done.returncode, done.stdout) == (3, "s2 ABORTED: Cancelled: wrong name\n")
    assert done.stderr.startswith("s2 was begun before: it is ")
    done = commands.run("begin", "-", given=json.dumps(misspelt), **env)
    before = "s2 was begun before: it is ABORTED: Cancelled: wrong name\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, before, "")


def test_one_who_waits_for_some_time_is_told_once_what_helps(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    done = commands.run("begin", "-", "--wait", "--timeout", "5", given=json.dumps(SAGA), **env)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert "saga s1 waits: no process of service airlnie is listening" in done.stderr
    assert lines[-1].startswith("Error: saga s1 has not ended within 5 s: no process of service airlnie is listening")
    assert sum(line.startswith("sagastream ") for line in lines) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("doctor", "--settled", "--after-failover"), "--settled goes alone: it examines nothing"),
        (("doctor", "--settled", "--repair"), "--settled goes alone: it examines nothing"),
        (("doctor", "--settled", "--json"), "--settled goes alone: it examines nothing"),
        (("doctor", "--hours", "3"), "--hours goes with --after-failover"),
        (("cancel", "s1", "--reason", "why", "--actor", ""), "--actor must be a text of 1 to 128 characters"),
        (("retry", "s1", "--reason", "why", "--parked-at", "x"), "--parked-at must be where the saga was seen parked"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    server: Server, commands: Commands, arguments: tuple[str, ...], complaint: str
) -> None:
    done = commands.run(*arguments, REDIS_URL=server.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_what_is_done_is_said(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url, "SAGASTREAM_PREFIX": "other"}
    assert commands.run("init", "--partitions", "3", **env).stdout == "made the store other, with 3 partitions\n"
    assert commands.run("init", **env).stdout == "the store other is there already, with 3 partitions\n"
    done = commands.run("init", "--partitions", "2", **env)
    assert "sagastream export and import move what is in it into another one" in done.stderr
    done = commands.run("doctor", "--settled", **env)
    assert (done.returncode, done.stdout) == (0, "nothing was lost, as far as any process has noticed\n")
    # With another prefix, a saga is looked for in another store.
    done = commands.run("show", "s1", **env)
    assert f"in the store {server.url} with the prefix other\n" in done.stderr
    done = commands.run("export", "file", **env)
    assert (done.returncode, done.stderr) == (0, "0 sagas exported\n")
    done = commands.run("export", "file", **env)
    assert (done.returncode, done.stderr) == (1, "Error: file exists: name another file, or remove it\n")
    (commands.folder / "shop.py").write_text("from sagastream import Service\n")
    done = commands.run("import", "shop.py", **env)
    assert done.stderr.startswith("Error: shop.py: line 1 is not JSON, so this is no file of sagastream export: ")
    with connect(server.url) as client:
        client.hset("other:{0}:saga:s1", mapping={"status": "PENDING"})
    done = commands.run("show", "s1", **env)
    assert done.stderr.startswith("Error: the hash of saga s1 is damaged: it has no field ")
