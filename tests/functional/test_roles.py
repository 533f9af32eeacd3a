"""Each role under a user of its own: it does all its work, and nothing is refused to it."""

import json
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaState
from sagastream.store.roles import Role
from support.clusters import Cluster
from support.processes import Commands, Talk
from support.scenes import do
from support.servers import KINDS, Server
from support.stores import KEYS, ONLY
from support.users import Users
from support.waiting import until

#: A service whose refunds work once a file exists, and which says what stands.
TILL = """
import time
from pathlib import Path
from sagastream import Reject, Service

service = Service("till", lease_ms=1000, concurrency=4)
standing = []


@service.command("Charge", compensation="Refund")
def charge(params, context):
    if params == "fail":
        raise Reject("no money")
    if params == "hang":
        Path("hangs").touch()
        while not Path("go").exists():
            time.sleep(0.01)
    return params


@service.compensation("Refund")
def refund(params, context):
    if not Path("open").exists():
        raise Reject("the bank is closed")
"""


class Stage:
    """A worker and a service, each as its own user."""

    def __init__(self, server: Server | Cluster, commands: Commands, users: Users) -> None:
        self.server = server
        self.commands = commands
        self.users = users
        self.redis = server.broker().client
        (commands.folder / "till.py").write_text(textwrap.dedent(TILL))
        self.worker = self.start("worker", url=users.url(Role.WORKER))
        until(lambda: self.redis.exists(KEYS.store), what="the worker makes the store")
        self.till_url = users.url(Role.SERVICE, "till")
        self.till = self.start("service", "till:service", url=self.till_url)

    def start(self, *arguments: str, url: str) -> "subprocess.Popen[bytes]":
        return self.commands.quiet(*arguments, env={"REDIS_URL": url})

    def run(self, role: Role, *arguments: str, given: str = "") -> "subprocess.CompletedProcess[str]":
        return self.commands.run(*arguments, given=given, REDIS_URL=self.users.url(role))

    def park(self, client: SagaClient, saga_id: str) -> SagaState:
        client.begin(saga_id, [charge(1, compensation_attempts=1, backoff_ms=1), charge("fail")])
        return client.wait(saga_id, 60)

    def end(self) -> None:
        for process in self.commands.running:
            process.terminate()
        assert [process.wait(60) for process in self.commands.running if process.returncode != -signal.SIGKILL]


def charge(params: Any = None, **more: Any) -> Any:
    return do(params, "Charge", "till", **more)


@pytest.fixture
def users(server: Server) -> Users:
    return Users(server)


@pytest.fixture
def stage(server: Server, commands: Commands, users: Users) -> Stage:
    return Stage(server, commands, users)


@pytest.mark.parametrize("partitions", [1, 3])
def test_workers_services_and_clients_do_all_their_work(
    server: Server, commands: Commands, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", str(partitions))
    do_all_work(server, commands, partitions)


@pytest.mark.both_in_soak
@pytest.mark.parametrize("kind", KINDS)
def test_they_do_so_on_a_cluster(
    kind: str, tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", "3")
    cluster = Cluster(kind, tmp_path, masters=1)
    try:
        do_all_work(cluster, commands, 3)
        look_around(cluster, commands)
    finally:
        cluster.stop()


def look_around(cluster: Cluster, commands: Commands) -> None:
    """What people who look and act ask of a store on a cluster."""
    users = Users(cluster, partitions=3)
    asked: list[tuple[Role, tuple[str, ...]]] = [
        *((Role.INSPECTOR, (what,)) for what in ("doctor", "list", "operations", "paused", "bulk")),
        (Role.INSPECTOR, ("metrics", "--once")),
        (Role.OPERATOR, ("pause", "till", "--reason", "by hand")),
        (Role.OPERATOR, ("erase", "s1", "--reason", "asked for")),
        (Role.DOCTOR, ("doctor", "--repair")),
    ]
    told = {}
    for role, arguments in asked:
        done = commands.run(*arguments, REDIS_URL=users.url(role))
        assert "no permissions" not in done.stdout + done.stderr, done
        told[role, arguments[0]] = done.stdout
    assert "1 master, 0 replicas; each slot has a node" in told[Role.INSPECTOR, "doctor"]
    assert "1 saga, " in told[Role.OPERATOR, "erase"]
    assert users.refused() == []


def do_all_work(server: Server | Cluster, commands: Commands, partitions: int) -> None:
    """All that a worker, a service and clients do, as users of their roles, on a store with that many partitions."""
    users = Users(server, partitions=partitions)
    stage = Stage(server, commands, users)
    begin_only, client = SagaClient(users.broker(Role.BEGIN_ONLY)), SagaClient(users.broker(Role.CLIENT))
    begin_only.begin("s1", [charge(1), charge(2)])
    assert begin_only.wait("s1", 60).status == "COMPLETED"
    begin_only.begin_many([{"saga_id": f"m{n}", "steps": [charge(n), charge("fail")]} for n in range(20)])
    (commands.folder / "open").touch()
    for n in range(20):
        assert begin_only.wait(f"m{n}", 60).status == "ABORTED"
    (commands.folder / "open").unlink()
    assert begin_only.get("nobody") is None

    for saga_id, verb in (("p1", "skip"), ("p2", "abandon"), ("p3", "retry")):
        assert stage.park(client, saga_id).parked
        assert getattr(client, verb)(saga_id, "by hand", 20)
    client.begin("c1", [charge("hang")])
    until((commands.folder / "hangs").exists, what="the handler runs")
    assert client.cancel("c1", "never mind", 20, now=True)
    assert client.why("c1")
    assert len(list(client.list())) == 25

    # What a killed process held is taken over, the server forgets its scripts, and a message makes no sense.
    stage.till.kill()
    stage.till.wait()
    stage.worker.kill()
    stage.worker.wait()
    stage.redis.script_flush("SYNC")
    stage.redis.xadd(ONLY.replies("till"), {"body": "{"})
    stage.redis.xadd(ONLY.commands("till"), {"body": "{"})
    for name in ("go", "open"):
        (commands.folder / name).touch()
    stage.worker = stage.start("worker", url=users.url(Role.WORKER))
    stage.till = stage.start("service", "till:service", url=stage.till_url)
    assert client.wait("c1", 60).status == "ABORTED"
    until(lambda: stage.redis.xlen(ONLY.quarantine), what="the worker sets the message aside")
    until(lambda: stage.redis.xlen(ONLY.quarantine_of("till")), what="the service does so too")
    stage.end()
    assert users.refused() == []


def test_an_inspector_looks_at_everything_and_an_operator_acts(stage: Stage, users: Users, commands: Commands) -> None:
    client = SagaClient(stage.server.broker())
    for saga_id in ("p1", "p2", "p3", "p4"):
        stage.park(client, saga_id)
    client.begin("w1", [do(1, "Fly", "nobody", compensation=None)])
    client.begin("w2", [charge("hang")])
    stage.redis.xadd(ONLY.replies("till"), {"body": "{"})
    stage.redis.xadd(ONLY.replies("till"), {"body": "["})
    stage.redis.xadd(ONLY.commands("till"), {"body": "{"})
    aside = (ONLY.quarantine, ONLY.quarantine_of("till"))
    until(lambda: [stage.redis.xlen(name) for name in aside] == [2, 1], what="all three are set aside")
    looks: list[tuple[str, ...]] = [
        *(("show", saga_id) for saga_id in ("p1", "w1", "w2")),
        *(("list",), ("list", "--json"), ("quarantine", "list"), ("doctor",)),
    ]
    messages = [
        json.loads(line)["id"] for line in stage.run(Role.INSPECTOR, "quarantine", "list", "--json").stdout.splitlines()
    ]
    looks.append(("quarantine", "show", messages[0]))
    for arguments in looks:
        done = stage.run(Role.INSPECTOR, *arguments)
        assert "no permissions" not in done.stdout + done.stderr, done
        assert done.stdout
        assert stage.run(Role.OPERATOR, *arguments).stdout
    assert users.refused() == []
    for verb, saga_id in (("skip", "p1"), ("abandon", "p2"), ("retry", "p3")):
        done = stage.run(Role.OPERATOR, verb, saga_id, "--reason", "by hand")
        assert done.returncode in (0, 3), done
    assert stage.run(Role.OPERATOR, "cancel", "w2", "--reason", "by hand", "--now").returncode == 0
    assert stage.run(Role.OPERATOR, "abandon", "w1", "--reason", "by hand").returncode == 1  # it is not parked
    assert stage.run(Role.OPERATOR, "cancel", "w1", "--reason", "by hand", "--now").returncode == 0
    for message in messages[:2]:
        assert stage.run(Role.OPERATOR, "quarantine", "replay", message).returncode == 0
    assert stage.run(Role.OPERATOR, "quarantine", "drop", messages[2]).returncode == 0
    stage.redis.xadd(ONLY.commands("ghost"), {"body": "{}"})
    stage.redis.sadd(KEYS.services, "ghost")
    assert stage.run(Role.OPERATOR, "drop-commands", "ghost").returncode == 0
    (commands.folder / "go").touch()
    stage.end()
    assert users.refused() == []


def test_an_operator_pauses_and_resumes_and_workers_heed_it(stage: Stage, users: Users) -> None:
    client = SagaClient(stage.server.broker())
    refused = stage.run(Role.CLIENT, "pause", "till", "--reason", "by hand")
    assert (refused.returncode, "only a user with the role operator may pause and resume" in refused.stderr) == (
        1,
        True,
    )
    by_design = users.refused()
    # Who may not know which services there are is told of none that it is misspelt.
    begins = json.dumps({"saga_id": "b1", "steps": [charge(1)]})
    begun = stage.run(Role.BEGIN_ONLY, "begin", "-", given=begins)
    assert (begun.returncode, begun.stdout, begun.stderr) == (0, "b1 accepted\n", "")
    assert users.refused() == by_design
    for verb in ("pause", "resume"):
        done = stage.run(Role.OPERATOR, verb, "till", "--reason", "by hand")
        assert done.returncode == 0, done
        if verb == "pause":
            client.begin("h1", [charge(1)])
            client.begin("h2", [charge(1)], attributes={"customer": "c9"})
            until(lambda: (state := client.get("h2")) and state.step.is_held, what="it is held, too")
            acts_on_many(stage, client)
            until(lambda: (state := client.get("h1")) and state.step.is_held, what="it is held")
            looked = stage.run(Role.INSPECTOR, "paused")
            assert "by hand" in looked.stdout
    assert client.wait("h1", 60).status == "COMPLETED"
    assert users.refused() == by_design


def test_who_only_begins_sagas_sees_them_and_is_refused_nothing(stage: Stage, users: Users) -> None:
    waits = json.dumps({"saga_id": "n1", "steps": [do(1, "Fly", "nobody", compensation=None)]})
    begun = stage.run(Role.BEGIN_ONLY, "begin", "-", "--wait", "--timeout", "1", given=waits)
    assert (begun.returncode, begun.stderr) == (1, "Error: saga n1 has not ended within 1 s\n")
    shown = stage.run(Role.BEGIN_ONLY, "show", "n1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "n1" in shown.stdout
    assert "why it waits cannot be told: this user may not look at the rest of the store" in shown.stdout
    absent = stage.run(Role.BEGIN_ONLY, "show", "n2")
    assert absent.returncode == 1
    assert absent.stderr.startswith("Error: there is no saga n2 in the store ")
    assert users.refused() == []


def test_who_may_not_do_it_is_told_the_role_that_may(stage: Stage, users: Users, commands: Commands) -> None:
    stage.end()
    begins = json.dumps({"saga_id": "b1", "steps": [charge(1)]})
    for role, arguments, needed in (
        (Role.INSPECTOR, ("begin", "-"), "begin-only"),
        (Role.INSPECTOR, ("cancel", "b1", "--reason", "by hand"), "client"),
        (Role.DEPLOYER, ("list",), "inspector"),
        (Role.DEPLOYER, ("quarantine", "list"), "inspector"),
        (Role.INSPECTOR, ("doctor", "--settled"), "doctor"),
        (Role.INSPECTOR, ("worker",), "worker"),
        (Role.INSPECTOR, ("service", "till:service"), "service --service NAME [--queue QUEUE]"),
    ):
        done = stage.run(role, *arguments, given=begins)
        (told,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert done.returncode == 1, done
        assert told.startswith("Error: the user in REDIS_URL may not do this: "), done
        assert told.count(f"; sagastream acl {needed} prints one") == told.count("sagastream acl") == 1, done


def acts_on_many(stage: Stage, client: SagaClient) -> None:
    """An operator has a worker cancel a saga that a search finds, and an inspector sees it."""
    many = ("cancel", "--where", "customer=c9", "--reason", "by hand", "--yes")
    begun = stage.run(Role.OPERATOR, *many)
    assert begun.returncode == 0, begun
    bulk_id = begun.stdout.splitlines()[-1].split()[1]
    assert client.wait("h2", 60).status == "ABORTED"
    until(lambda: client.bulk(bulk_id).ended, what="the bulk has ended")
    assert [one.refused for one in client.bulk_results(bulk_id)] == [None]
    for arguments in (("bulk",), ("bulk", bulk_id, "--json"), ("doctor",)):
        looked = stage.run(Role.INSPECTOR, *arguments)
        assert "no permissions" not in looked.stdout + looked.stderr, looked
    stopped = stage.run(Role.OPERATOR, "bulk", bulk_id, "--stop")
    assert f"bulk {bulk_id} is DONE: there is nothing to stop" in stopped.stderr


def test_an_operator_erases_a_saga_out_of_every_stream(stage: Stage, users: Users) -> None:
    client = SagaClient(stage.server.broker())
    client.begin("e1", [charge("mine")])
    client.wait("e1", 60)
    stage.end()
    message = {"body": '{"saga_id":"e1"}'}
    groups = {ONLY.commands("till"): "till", ONLY.replies("till"): "orchestrator", ONLY.requests: "orchestrator"}
    for stream in (*groups, ONLY.interventions, ONLY.quarantine, ONLY.quarantine_of("till"), ONLY.events):
        gone, *_ = [stage.redis.xadd(stream, {"body": name}) for name in ("gone", "held", "unread")]
        stage.redis.xdel(stream, gone)
        if stream in groups:
            stage.redis.xreadgroup(groups[stream], "somebody", {stream: ">"}, count=1)
    for stream in (ONLY.commands("till"), ONLY.quarantine, ONLY.quarantine_of("till")):
        stage.redis.xadd(stream, message)  # type: ignore[arg-type]
    users.refused()
    done = stage.run(Role.OPERATOR, "erase", "e1", "--reason", "asked for")
    assert done.returncode == 0, done
    assert "1 saga, 1 record, 1 unread command, 2 quarantined messages, " in done.stdout
    assert stage.redis.xpending(ONLY.commands("till"), "till")["pending"] == 1
    assert users.refused() == []


def test_a_doctor_sets_right_what_can_be(stage: Stage, users: Users, commands: Commands) -> None:
    client = SagaClient(stage.server.broker())
    (commands.folder / "open").touch()
    client.begin("s1", [charge(1)])
    client.wait("s1", 60)
    client.begin("w1", [do(1, "Fly", "nobody", compensation=None)])
    until(lambda: stage.redis.xlen(ONLY.commands("nobody")), what="it waits for nobody")
    stage.redis.zrem(ONLY.timers, "w1")
    stage.redis.zadd(ONLY.timers, {"gone": 1e15, "no id!": 1e15, "s1": 1e15})
    stage.redis.zrem(ONLY.ended, "s1")
    stage.redis.persist(ONLY.saga("s1"))
    stage.till.send_signal(signal.SIGSTOP)
    stage.redis.xadd(ONLY.commands("till"), {"body": "{"})
    stage.redis.xgroup_setid(ONLY.commands("till"), "till", "$")
    stage.redis.hset(KEYS.losses, "x", json.dumps({"since_ms": 0, "evidence": "e", "found_ms": 1, "found_by": "me"}))
    done = stage.run(Role.DOCTOR, "doctor", "--repair")
    assert "no permissions" not in done.stdout + done.stderr, done
    assert done.stdout.count("repaired") >= 4, done.stdout
    stage.till.send_signal(signal.SIGCONT)
    for options in (["--after-failover"], ["--after-failover", "--repair"], ["--settled"]):
        done = stage.run(Role.DOCTOR, "doctor", *options)
        assert "no permissions" not in done.stdout + done.stderr, done
    assert not stage.redis.exists(KEYS.losses)
    stage.end()
    assert users.refused() == []


def test_a_bridge_begins_follows_and_plays_a_service(stage: Stage, users: Users, commands: Commands) -> None:
    bridge = commands.start("bridge", "--outcomes", env={"REDIS_URL": users.url(Role.BRIDGE)})
    talk = Talk(bridge)
    begin = {"type": "saga_begin", "saga_id": "b1", "steps": [charge(1)], "msg_id": 1}
    talk.say("me", begin)
    assert talk.hear()[2]["status"] == "COMPLETED"
    talk.say("me", begin | {"saga_id": "b2", "steps": [charge("hang")], "msg_id": 2})
    until((commands.folder / "hangs").exists, what="the handler runs")
    talk.say("me", {"type": "saga_cancel", "saga_id": "b2", "reason": "never mind", "msg_id": 3})
    assert talk.hear()[2]["in_reply_to"] == 3
    talk.say("me", {"type": "saga_status", "saga_id": "b2", "msg_id": 4})
    assert talk.hear()[2]["in_reply_to"] == 4
    for name in ("go", "open"):
        (commands.folder / name).touch()
    assert talk.hear()[2]["status"] == "ABORTED"
    talk.finish()
    url = users.url(Role.BRIDGE, "payment")
    player = Talk(commands.start("bridge", "--outcomes", "--serve", "payment", env={"REDIS_URL": url}))
    player.say("me", begin | {"saga_id": "b3", "steps": [do(1, "ChargePayment", "payment")]})
    command = player.hear()[2]
    player.say("payment", {"type": "ChargePayment_ok", "saga_id": "b3", "step": 1})
    assert (command["type"], player.hear()[2]["status"]) == ("ChargePayment", "COMPLETED")
    player.finish()
    stage.end()
    assert users.refused() == []


#: A service whose step runs on RQ.
PACKER = """
from sagastream import Service

service = Service("packer")


@service.command("Pack", compensation=None, via="rq", queue="parcels")
def pack(params, context):
    return params
"""


def test_a_step_that_waits_on_rq_is_looked_at_by_all_who_look(stage: Stage, users: Users, commands: Commands) -> None:
    (commands.folder / "packer.py").write_text(PACKER)
    stage.start("service", "packer:service", url=users.url(Role.SERVICE, "packer", queues=("parcels",)))
    client = SagaClient(users.broker(Role.CLIENT))
    client.begin("r1", [do(1, "Pack", "packer")])
    until(lambda: stage.redis.llen("rq:queue:parcels"), what="the job waits for an RQ worker")
    assert "no RQ worker works on queue parcels" in client.why("r1")[0].text
    for role in (Role.INSPECTOR, Role.OPERATOR, Role.DOCTOR):
        assert "no RQ worker works on queue parcels" in stage.run(role, "show", "r1").stdout
        assert "SagaWorker parcels" in stage.run(role, "doctor").stdout
    stage.end()
    assert users.refused() == []
