"""A store that is exported and imported: sagas in every state go on in the other store as they would have in theirs."""

import json
import re
import signal
import stat
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sagastream import Definition, SagaClient
from sagastream.broker.connection import Broker
from sagastream.store import layout, published
from sagastream.store.keys import StoreKeys
from support.clock import ServerClock
from support.clusters import Cluster
from support.processes import Commands
from support.scenes import do
from support.servers import KINDS, OwnServer, start_server
from support.stores import ONLY
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.both_in_soak]

#: A service that writes down what it does in a file, which moves with nobody.
SHOP = """
import os
from pathlib import Path
from sagastream import Reject, Service

service = Service("shop", lease_ms=2_000)
BOOK = Path(os.environ["BOOK"])


def note(what, key):
    with BOOK.open("a") as book:
        book.write(f"{what} {key}\\n")


@service.command("Do", compensation="Undo")
def do(params, context):
    if params == "fail":
        raise Reject("as asked")
    note("did", context.key)
    return params


@service.compensation("Undo")
def undo(params, context):
    note("undid", context.transaction_key)


@service.command("Park", compensation="Never")
def park(params, context):
    note("did", context.key)


@service.compensation("Never")
def never(params, context):
    raise Reject("the bank is closed")
"""


class Place:
    """A server, or a cluster of three nodes, with one store; and the processes on it."""

    def __init__(self, kind: str, folder: Path, commands: Commands, partitions: int) -> None:
        folder.mkdir()
        is_cluster = kind == "cluster"
        self.server = Cluster("valkey", folder) if is_cluster else start_server(kind, folder, OwnServer)
        self._commands = commands
        self.env = {
            "REDIS_URL": self.server.url,
            "BOOK": str(commands.folder / "book"),
            "SAGASTREAM_PARTITIONS": str(partitions),
        }
        self.running: list[subprocess.Popen[bytes]] = []
        self.broker = Broker(self.server.url)

    @property
    def keys(self) -> StoreKeys:
        return layout.look(self.broker)

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        self.running.append(self._commands.quiet(*arguments, env=self.env))
        return self.running[-1]

    def rest(self) -> None:
        """Have the processes end, in order."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(60)
        self.running.clear()

    def run(self, *arguments: str, given: str | bytes = b"") -> "subprocess.CompletedProcess[str]":
        return self._commands.run(*arguments, given=given, **self.env)

    def end(self) -> None:
        self.rest()
        self.broker.close()
        self.server.stop()


MANY = range(8)


def hashes(place: Place) -> dict[str, Any]:
    """The sagas that have begun."""
    ids = [f"{how}{n}" for n in MANY for how in ("completed", "aborted", "parked", "held")]
    return {saga_id: place.broker.client.hgetall(place.keys.saga(saga_id)) for saga_id in ids}


def without_ttl(lines: str) -> str:
    """Without what is of the moment: what is left of the time to live, and the hash of it all."""
    return re.sub(r'"ttl_ms":[0-9]+|"sha256":"[0-9a-f]+"', "", lines)


def fill(place: Place) -> None:
    """Bring sagas into every state, and messages onto every stream; nothing runs at the end."""
    sagas, client = SagaClient(place.broker), place.broker.client
    place.start("worker")
    until(lambda: client.exists(place.keys.store), what="the worker has made the store")
    service = place.start("service", "shop:service")
    for n in MANY:
        sagas.begin(f"completed{n}", [do(n, service="shop")])
        sagas.begin(f"aborted{n}", [do(n, service="shop"), do("fail", service="shop")])
        parks = do(n, "Park", "shop", compensation_attempts=1)
        sagas.begin(f"parked{n}", [do(n, service="shop"), parks, do("fail", service="shop")])
    ended = [sagas.wait(f"{how}{n}", 60) for n in MANY for how in ("completed", "aborted", "parked")]
    assert all(state.ended or state.parked for state in ended)
    odd = place.keys.of("odd")
    client.xadd(odd.replies("shop"), {"body": json.dumps({"type": "Do_ok", "saga_id": "odd", "step": 1})})
    until(lambda: client.xlen(odd.quarantine) == 1, what="a reply is set aside")
    # Commands, some of which a process holds that has not begun with them …
    service.send_signal(signal.SIGKILL)
    service.wait()
    # They wait until the store has moved. If their time were up by then, they would be undone, though nothing was done.
    for n in MANY:
        sagas.begin(f"held{n}", [do(n, service="shop", timeout_ms=3_600_000), do("fail", service="shop")])
    streams = [partition.commands("shop") for partition in place.keys.partitions]
    until(lambda: sum(map(client.xlen, streams)) == len(MANY), what="the commands are out")
    assert client.xreadgroup("shop", "somebody", dict.fromkeys(streams, ">"), count=4)
    # … and begins, interventions and a reply that no worker has read.
    place.rest()
    for n in MANY:
        sagas.begin(f"unread{n}", [do(n, service="shop")])
        with pytest.raises(TimeoutError):
            sagas.cancel(f"held{n}", "moved away", 0.01)
    for version in (1, 2):
        order = Definition("order", version=version)
        order.step("Do", service="shop", params=version)
        sagas.deploy(order, actor="ada")
    stranger = place.keys.of("stranger")
    client.xadd(stranger.replies("shop"), {"body": json.dumps({"type": "Do_ok", "saga_id": "stranger", "step": 1})})
    client.hset(stranger.done("shop", 3_600_000), "stranger/1/transaction/Do", b"ok \xff")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("redis", 1), ("valkey", 3)),
        (("valkey", 3), ("redis", 1)),
        (("redis", 1), ("cluster", 4)),
        pytest.param(("cluster", 4), ("valkey", 1), marks=pytest.mark.soak),
        pytest.param(("valkey", 3), ("valkey", 2), marks=pytest.mark.soak),
    ],
    ids=lambda side: "-".join(map(str, side)),
)
def test_sagas_in_every_state_go_on(
    commands: Commands, tmp_path: Path, before: tuple[str, int], after: tuple[str, int]
) -> None:
    (commands.folder / "shop.py").write_text(SHOP)
    old = Place(before[0], tmp_path / "old", commands, before[1])
    new = Place(after[0], tmp_path / "new", commands, after[1])
    file, book = commands.folder / "store.jsonl", commands.folder / "book"
    try:
        fill(old)
        until(lambda: not old.run("export", str(file)).returncode, what="nobody is alive any more")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert without_ttl(file.read_text()) == without_ttl(old.run("export", "-").stdout)
        done = new.run("import", str(file))
        assert (done.returncode, done.stderr) == (0, f"32 sagas imported into {new.server.url}\n")
        assert len(new.keys.partitions) == after[1]
        assert hashes(new) == hashes(old)
        assert all(hashes(new).values())
        client = new.broker.client
        assert SagaClient(new.broker).definitions() == SagaClient(old.broker).definitions() != []
        record = new.keys.of("stranger").done("shop", 3_600_000)
        assert client.hgetall(record) == {b"stranger/1/transaction/Do": b"ok \xff"}
        assert 0 < client.pttl(new.keys.saga("completed0")) <= 7 * 24 * 3600 * 1000
        (aside,) = map(json.loads, new.run("quarantine", "list", "--json").stdout.splitlines())
        assert aside["stream"] == new.keys.of("odd").replies("shop")
        assert new.run("quarantine", "replay", aside["id"]).returncode == 0
        assert client.xlen(aside["stream"]) == 1 + (new.keys.of("odd") == new.keys.of("stranger"))
        before_that = Counter(book.read_text().splitlines())
        new.start("worker")
        new.start("service", "shop:service")
        sagas = SagaClient(new.broker)
        assert {sagas.wait(f"unread{n}", 60).status for n in MANY} == {"COMPLETED"}
        assert {sagas.wait(f"held{n}", 60).status for n in MANY} == {"ABORTED"}
        for n in MANY:
            assert sagas.skip(f"parked{n}", "it is all right", 60)
        assert {sagas.wait(f"parked{n}", 60).status for n in MANY} == {"ABORTED"}
        since = Counter(book.read_text().splitlines()) - before_that
        assert set(since.values()) == {1}, "each effect is there once"
        keys = {verb: {line.split()[1] for line in since if line.startswith(f"{verb} ")} for verb in ("did", "undid")}
        assert {key for key in keys["did"] if key.startswith("unread")} == {f"unread{n}/1/transaction" for n in MANY}
        assert {f"parked{n}/1/transaction" for n in MANY} <= keys["undid"]
        held = [{key for key in keys[verb] if key.startswith("held")} for verb in ("did", "undid")]
        assert held[0] == held[1], "what was done of a cancelled saga is undone"
        assert "there is no saga stranger" in new.run("quarantine", "list").stdout
    finally:
        old.end()
        new.end()


def test_on_a_server_whose_clock_is_behind_no_saga_stands_still(commands: Commands, tmp_path: Path) -> None:
    old, new = (Place("valkey", tmp_path / name, commands, 1) for name in ("old", "new"))
    try:
        assert isinstance(new.server, OwnServer)
        ServerClock(new.server).set_back(2 * 3600 * 1000)
        old.start("worker")
        sagas = SagaClient(old.broker)
        sagas.begin("s1", [do(1, service="nobody", timeout_ms=5_000, attempts=1, compensation=None)], deadline_ms=9_000)
        until(lambda: (state := sagas.get("s1")) is not None and state.times_out_ms, what="a command is out")
        old.rest()
        exported = old.run("export", "-").stdout
        done = new.run("import", "-", given=exported)
        assert (done.returncode, done.stdout) == (0, "")
        assert "the clock of this server is behind: the waits of 1 saga begin now" in done.stderr
        new.start("worker")
        ended = SagaClient(new.broker).wait("s1", 60)
        assert (ended.status, ended.steps[0].attempt) == ("ABORTED", 1)
        assert ended.set_back_ms > 7_100_000
    finally:
        old.end()
        new.end()


@pytest.mark.parametrize("server", KINDS, indirect=True)
@pytest.mark.own_server
def test_a_store_at_work_or_in_use_is_refused(server: OwnServer, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    SagaClient(server.broker()).begin("s1", [do(1)])
    worker = commands.quiet("worker", env=env)
    client = server.broker().client
    until(lambda: commands.run("export", "-", **env).returncode == 1, what="the worker is heard")
    done = commands.run("export", "file", **env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {server.url} is at work: ")
    assert not (commands.folder / "file").exists()
    worker.terminate()
    worker.wait(60)
    assert commands.run("export", "file", **env).returncode == 0
    assert commands.run("export", "file", **env).stderr == "Error: file exists: name another file, or remove it\n"
    done = commands.run("import", "file", **env)
    assert done.returncode == 1
    assert f"Error: the store {server.url} is not empty, it has " in done.stderr
    assert client.exists(layout.look(server.broker()).saga("s1"))


#: What happened to the lines of a file, and what is said of it.
DAMAGES: list[tuple[Callable[[list[bytes]], list[bytes]], str]] = [
    (lambda lines: lines[:-1], "the file ends too early, after line "),
    (lambda lines: [*lines[:-2], lines[-1]], "lines are before the last one, which says "),
    (lambda lines: [*lines, lines[1]], " is out of place"),
    (lambda lines: lines[1:], "line 1, of type "),
    (lambda lines: [], "the file ends too early, after line 0"),
    (lambda lines: [lines[0], b"{\n", *lines[1:]], "line 2 is not JSON, so this is no file of sagastream export: "),
    (lambda lines: [lines[0], b"[1]\n", *lines[1:]], "line 2 is not a line of an exported store"),
    (lambda lines: [lines[0], b'{"type": "saga", "saga_id": 1}\n', *lines[1:]], "line 2, of type saga: saga_id is "),
    (lambda lines: [line.replace(b"s1", b"z1") for line in lines], "changed or damaged after its export"),
    (lambda lines: [lines[1], *lines[1:]], "line 1, of type "),
    (lambda lines: [lines[0].replace(b'"protocol":2', b'"protocol":3'), *lines[1:]], "the file is of protocol 3"),
]


def test_a_damaged_file_changes_nothing(commands: Commands) -> None:
    """Each is imported into the same store, which is as empty afterwards: it takes the whole file in the end."""
    commands.run("begin", "-", given='{"saga_id": "s1", "steps": [{"transaction": "A", "service": "a"}]}')
    whole = commands.run("export", "-").stdout.encode()
    home = {"SAGASTREAM_HOME": "other"}
    with closing(Broker(home=commands.folder / "other")) as other:  # so that its server starts once
        for change, complaint in DAMAGES:
            (commands.folder / "file").write_bytes(b"".join(change(whole.splitlines(keepends=True))))
            done = commands.run("import", "file", **home)
            assert (done.returncode, complaint in done.stderr) == (1, True), (complaint, done.stderr)
            assert other.client.dbsize() == 0, complaint
        assert commands.run("import", "-", given=whole, **home).returncode == 0
    assert "requests that no worker has read: 1" in commands.run("show", "s1", **home).stderr


def test_an_import_that_does_not_fit_says_that_it_is_incomplete(commands: Commands, tmp_path: Path) -> None:
    with closing(Broker(home=tmp_path / "home")) as broker:
        SagaClient(broker).begin_many({"saga_id": f"s{number}", "steps": [do("x" * 100_000)]} for number in range(100))
    whole = commands.run("export", "-", SAGASTREAM_HOME=str(tmp_path / "home")).stdout.encode()
    server = start_server("valkey", tmp_path, OwnServer)
    try:
        env = {"REDIS_URL": server.url}
        client = server.broker().client
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 5_000_000)
        done = commands.run("import", "-", given=whole, **env)
        assert done.returncode == 1
        assert "the import is incomplete: the store is full: " in done.stderr
        assert "then import again" in done.stderr
        client.flushall()
        client.config_set("maxmemory", 0)
        assert commands.run("import", "-", given=whole, **env).returncode == 0
        assert client.xlen(ONLY.requests) == 100
    finally:
        server.stop()


@pytest.mark.parametrize("instead", [None, "a string"])
def test_services_whose_names_were_deleted_are_exported(
    commands: Commands, tmp_path: Path, instead: str | None
) -> None:
    server = start_server("valkey", tmp_path, OwnServer)
    try:
        store, keys = server.broker().client, layout.check(server.broker())
        published.publish(store, keys, "till", {"Do": "Undo"})
        [partition] = keys.partitions
        store.xadd(partition.commands("bank"), {"body": "x"})
        store.xadd(partition.replies("mail"), {"body": "x"})
        store.delete(keys.services)
        if instead is not None:
            store.set(keys.services, instead)
        done = commands.run("export", "-", REDIS_URL=server.url)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["service"] for line in lines if line["type"] == "service"] == ["bank", "mail", "till"]
        entries = [(line["what"], line["service"]) for line in lines if line["type"] == "entry"]
        assert sorted(entries) == [("commands", "bank"), ("replies", "mail")]
        assert (f"left out {keys.services}" in done.stderr) == (instead is not None)
    finally:
        server.stop()


def test_what_holds_something_else_is_left_out_and_named(commands: Commands, tmp_path: Path) -> None:
    server = start_server("valkey", tmp_path, OwnServer)
    try:
        broker = server.broker()
        SagaClient(broker).begin("s1", [do(1)])
        keys = layout.look(broker)
        broker.client.set(keys.saga("odd"), "x")
        broker.client.set(keys.definition("odd"), "x")
        done = commands.run("export", "file", REDIS_URL=server.url)
        assert done.returncode == 0
        assert f"left out {keys.saga('odd')}" in done.stderr
        assert f"left out {keys.definition('odd')}" in done.stderr
    finally:
        server.stop()
