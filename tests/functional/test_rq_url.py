"""RQ on another server than the broker: what is where, what each of them survives if the other goes away, and what is
said of a server that RQ cannot use."""

import asyncio
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Queue
from rq.job import Job

from sagastream import AsyncSagaClient, SagaClient
from sagastream.broker.connection import connect
from sagastream.core.saga import SagaStatus
from sagastream_bridge.inspection.doctor import Doctor
from sagastream_bridge.inspection.findings import Finding
from support.clusters import Cluster
from support.processes import Commands
from support.rq_workers import JOBS, SHOP, Fleet, Stage
from support.scenes import do
from support.sentinels import SentinelSet
from support.servers import OwnServer, Server, free_port, start_server
from support.stores import ONLY, divided, in_each
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

LONG_MS = 600_000


@pytest.fixture
def rq_server(server: Server, tmp_path: Path) -> Iterator[OwnServer]:
    """RQ's server, of the same kind as the broker."""
    folder = tmp_path / "of-rq"
    folder.mkdir()
    started = start_server("redis" if server.binary == "redis-server" else "valkey", folder, OwnServer)
    yield started
    started.stop()


@pytest.fixture
def stage(server: Server, rq_server: OwnServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("RQ_URL", rq_server.url)
    folder = tmp_path / "team"
    folder.mkdir()
    fleet = Fleet(folder, server.url, RQ_URL=rq_server.url)
    try:
        yield Stage(server.broker(), fleet)
    finally:
        fleet.end()


def of_rq(stage: Stage) -> list[Finding]:
    return [one for one in Doctor(stage.broker).examine() if one.about == "rq" or one.about.startswith("queue")]


def put(folder: Path) -> None:
    (folder / "shop.py").write_text(SHOP)
    (folder / "jobs.py").write_text(JOBS)


def keys(client: "redis.Redis", pattern: str) -> list[str]:
    return sorted(key.decode() for key in client.scan_iter(pattern))


def test_jobs_are_on_one_server_and_all_that_is_known_of_sagas_on_the_other(
    stage: Stage, rq_server: OwnServer, commands: Commands
) -> None:
    stage.begin("s1", do(1), do({"user": "u1"}, "Charge"), do(2, "Now"), do("fail"))
    queue = Queue("steps", connection=stage.rq)
    stage.all_until(lambda: queue.count == 1, what="its first step is a job")
    told = "Do waits as a job, and no RQ worker works on queue steps"
    start = 'SAGASTREAM_SERVICES=MODULE:NAME rq worker -w sagastream.rq_runner.SagaWorker --url "$RQ_URL" steps'
    (cause,) = stage.client.why("s1")
    assert cause.text == told
    assert cause.do[1] == f"{start}  # so does this, if REDIS_URL and RQ_URL are set"

    async def why() -> str:
        async with AsyncSagaClient(stage.broker) as client:
            with pytest.raises(TimeoutError, match="no RQ worker works on queue steps"):
                await client.wait("s1", 0.05)
            return (await client.why("s1"))[0].text

    assert asyncio.run(why()) == told
    env = {"REDIS_URL": stage.broker.url, "RQ_URL": rq_server.url}
    assert told in commands.run("show", "s1", **env).stdout
    fine, waits = of_rq(stage)
    assert (fine.level, fine.text) == ("ok", f"its jobs are on {rq_server.url}, as RQ_URL says")
    assert (waits.about, waits.text) == ("queue steps", "no RQ worker works on it; jobs that wait: 1")
    stage.fleet.worker()
    assert stage.play("s1").reason == "Step 4 failed: as asked"
    assert stage.effects_on_rq() == [
        "done s1/1/transaction",
        "charged u1 1 as saga-work-s1-2-transaction",
        "refunded u1 1",
        "undone s1/1/transaction",
    ]
    assert keys(stage.redis, "rq:*") == []
    assert [key for key in keys(stage.rq, "*") if not key.startswith("rq:")] == []


def test_while_rq_is_away_other_steps_go_on_and_what_runs_there_is_done_once_it_is_back(
    stage: Stage, rq_server: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that runs meanwhile answers, too: its answer goes to the broker."""
    stage.fleet.worker()
    stage.begin("runs", do("wait"))
    stage.begun()
    rq_server.kill()
    stage.begin("waits", do(1, timeout_ms=LONG_MS))
    stage.begin("now", do(1, "Now"))
    assert stage.play("now").status is SagaStatus.COMPLETED
    stage.all_until(lambda: len(pending(stage)) == 2, what="the process holds both")
    (cause,) = stage.client.why("waits")
    assert "(RQ's server does not say whether it is out as a job: " in cause.text
    (finding,) = of_rq(stage)
    assert finding.level == "problem"
    assert finding.text.startswith(f"RQ_URL {rq_server.url}: RQ's server does not answer, since nobody listens there: ")
    assert finding.text.endswith("Connection refused. Steps that run on RQ wait for it")  # what helps is told once
    assert finding.do == ("start it, or set RQ_URL to the server of RQ, in all processes",)
    stage.redis.rpush("go", "1")
    assert stage.play("runs").status is SagaStatus.COMPLETED
    rq_server.start()
    assert stage.play("waits").status is SagaStatus.COMPLETED
    assert stage.state("waits").steps[0].attempt == 1
    assert sorted(stage.effects_on_rq()) == ["done runs/1/transaction", "done waits/1/transaction"]
    said = [line for line in caplog.messages if "RQ's server" in line]
    assert [line.partition(" (")[0] for line in said] == [
        f"RQ's server {rq_server.url} is away",
        f"RQ's server {rq_server.url} is back",
    ]
    assert "rq worker: RQ's server is away (" in stage.fleet.said
    assert "rq worker: RQ's server is back" in stage.fleet.said


def pending(stage: Stage) -> list[Any]:
    return list(stage.redis.xpending_range(ONLY.commands("work"), "work", "-", "+", 100))


def test_a_process_that_rq_goes_away_from_keeps_its_commands_for_longer_than_a_lease(
    stage: Stage, rq_server: OwnServer
) -> None:
    """So nobody else takes them over. A lease is two seconds here."""
    rq_server.kill()
    other = stage.dispatcher()
    stage.begin("s1", do(1, timeout_ms=LONG_MS))
    stage.all_until(lambda: len(pending(stage)) == 1, what="a process holds it")
    (held,) = pending(stage)
    until_s = stage.redis.time()[0] + 3

    def turned() -> bool:
        stage.runner.turn(block_ms=1)
        other.turn(block_ms=1)
        return bool(stage.redis.time()[0] > until_s)

    until(turned, what="a lease and a half has passed")
    assert [(one["consumer"], one["times_delivered"]) for one in pending(stage)] == [(held["consumer"], 1)]
    rq_server.start()
    stage.fleet.worker()
    assert stage.play("s1").status is SagaStatus.COMPLETED


def test_a_dispatcher_that_dies_before_or_after_it_has_sent_a_job_leaves_it_to_another(
    stage: Stage, rq_server: OwnServer
) -> None:
    """Before: RQ's server was away when it was to send it. After: it has sent it, and does not know that."""
    before, after = stage.dispatcher(), stage.dispatcher()
    rq_server.kill()
    stage.begin("s1", do(1))
    stage.turns_until(lambda: stage.redis.xlen(ONLY.commands("work")) == 1)
    before.turn(block_ms=1)
    assert len(pending(stage)) == 1
    rq_server.start()
    stage.begin("s2", do(2))
    stage.turns_until(lambda: stage.redis.xlen(ONLY.commands("work")) == 2)
    assert after._dispatcher is not None
    jobs: Any = after._dispatcher
    enqueue = jobs._jobs.enqueue

    def cut(*args: Any, **options: Any) -> None:
        enqueue(*args, **options)
        with jobs._server.asking():
            raise redis.ConnectionError("its answer is lost")

    jobs._jobs.enqueue = cut
    after.turn(block_ms=1)
    assert Job.exists("saga-work-s2-1-transaction", stage.rq)
    jobs._jobs.enqueue = enqueue
    stage.fleet.worker()
    assert stage.play("s2").status is SagaStatus.COMPLETED
    assert stage.play("s1").status is SagaStatus.COMPLETED
    assert [stage.state(one).steps[0].attempt for one in ("s1", "s2")] == [1, 1]
    assert sorted(stage.effects_on_rq()) == ["done s1/1/transaction", "done s2/1/transaction"]


def test_jobs_that_rq_has_lost_are_unknown_outcomes_and_tried_again(stage: Stage) -> None:
    """One has had its effect and was answered, one runs, one waits in its queue."""
    stage.fleet.worker()
    stage.begin("done", do(1))
    assert stage.play("done").status is SagaStatus.COMPLETED
    stage.begin("runs", do("wait", backoff_ms=1, timeout_ms=LONG_MS))
    stage.begun(2)
    stage.begin("queued", do(1, backoff_ms=1, timeout_ms=LONG_MS))
    queue = Queue("steps", connection=stage.rq)
    stage.all_until(lambda: queue.count == 1, what="it is in the queue")
    stage.rq.flushall()
    stage.all_until(lambda: queue.count == 2, what="both are sent again")
    stage.redis.rpush("go", "1", "1")
    assert stage.play("runs").status is SagaStatus.COMPLETED
    assert stage.play("queued").status is SagaStatus.COMPLETED
    assert stage.state("queued").steps[0].attempt == 2
    assert sorted(stage.effects_on_rq()) == [f"done {one}/1/transaction" for one in ("done", "queued", "runs")]


@pytest.mark.own_server
def test_a_broker_that_is_killed_while_a_job_runs_gets_its_answer_later(stage: Stage, server: OwnServer) -> None:
    """RQ's server is there all the time, and keeps the job."""
    stage.fleet.worker()
    stage.begin("s1", do("wait"), do("fail"))
    stage.begun()
    server.kill()
    server.start()
    stage.redis.rpush("go", "1", "1")  # the handler loses its own connection, too, and is called again

    def ended() -> Any:
        try:
            stage.worker.turn(block_ms=1)
            stage.runner.turn(block_ms=1)
            state = stage.client.get("s1")
        except redis.ConnectionError:
            return None
        return state is not None and state.ended and state

    state = until(ended, what="it has ended")
    assert (state.reason, state.steps[0].attempt) == ("Step 2 failed: as asked", 1)
    assert stage.effects_on_rq() == ["done s1/1/transaction", "undone s1/1/transaction"]


# --- servers that RQ cannot use


@pytest.fixture
def odd(tmp_path: Path, server: Server) -> Iterator[Callable[..., str]]:
    """Starts a server that is no single one; returns its url."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> str:
        port = free_port()
        folder = tmp_path / str(port)
        folder.mkdir()
        (folder / "conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n")
        devnull = subprocess.DEVNULL
        process = subprocess.Popen([server.binary, str(folder / "conf"), *options], stdout=devnull, stderr=devnull)
        running.append(process)

        def answers() -> bool:
            try:
                with redis.Redis(port=port) as client:
                    return bool(client.ping())
            except redis.ConnectionError:
                return False

        until(answers, what="it answers")
        return f"redis://127.0.0.1:{port}"

    yield start
    for process in running:
        process.kill()
        process.wait()


SINGLE = "RQ's keys have no common slot, so it needs a single server"


def test_a_server_that_rq_cannot_use_is_told_in_one_line(
    server: Server, odd: Callable[..., str], commands: Commands
) -> None:
    put(commands.folder)
    node = odd("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    watcher = odd("--sentinel")
    for url, told in (
        (node, f"RQ_URL {node} names a node of a cluster. {SINGLE}: name one"),
        (watcher, f"RQ_URL {watcher} names a Sentinel: it is asked for the master with a url like redis+sentinel://"),
        ("http://x", "RQ_URL is not usable: it must begin with redis://, rediss:// or unix://"),
    ):
        env = {"REDIS_URL": server.url, "RQ_URL": url}
        for command in ("service", "rq-worker"):
            done = commands.run(command, "shop:service", **env)
            assert done.returncode == 1
            assert told in done.stderr
            assert "Traceback" not in done.stderr
            assert done.stderr.count("\n") == 1
        assert f"problem   rq            {told[:40]}" in commands.run("doctor", **env).stdout
        fleet = Fleet(commands.folder, server.url, RQ_URL=url)
        assert fleet.worker().wait(60) == 1
        assert fleet.said.count("\n") == 1, fleet.said
        assert fleet.said.startswith(f"rq worker: {told}")
        (commands.folder / "rq.log").unlink()


def test_an_rq_worker_says_of_rqs_server_what_is_wrong_with_rqs_server(
    server: Server, rq_server: OwnServer, commands: Commands
) -> None:
    """And never blames REDIS_URL, which is right."""
    put(commands.folder)
    at = rq_server.url.removeprefix("unix://")
    with connect(rq_server.url) as jobs:
        jobs.execute_command("ACL", "SETUSER", "weak", "on", ">p", "+@all", "-sadd", "~*", "&*")
    nowhere, weak = f"redis://127.0.0.1:{free_port()}", f"unix://weak:***@{at}"
    for url, shown, told in (
        (nowhere, nowhere, "RQ's server does not answer, since nobody listens there: "),
        (f"unix://weak:x@{at}", weak, "RQ's server refuses the login: invalid username-password pair or user is disab"),
        (f"unix://weak:p@{at}", weak, "the user in RQ_URL may not do this: "),
    ):
        done = commands.run("rq-worker", "shop:service", REDIS_URL=server.url, RQ_URL=url)
        (line,) = [one for one in done.stderr.splitlines() if "runs steps of" not in one]
        assert done.returncode == 1
        assert line.partition(": ")[2][: len(f"RQ_URL {shown}: {told}")] == f"RQ_URL {shown}: {told}"
        assert "REDIS_URL" not in line


def test_a_service_on_a_cluster_says_that_rq_needs_another_server(cluster: Cluster, commands: Commands) -> None:
    put(commands.folder)
    url = cluster.nodes[0].url
    told = f"the broker is a cluster. {SINGLE}: set RQ_URL to one, like redis://HOST:6379"
    for command in ("service", "rq-worker"):
        done = commands.run(command, "shop:service", REDIS_URL=url)
        assert (done.returncode, done.stderr.splitlines()[-1].partition(": ")[2]) == (1, told), done.stderr


def test_steps_of_sagas_on_a_cluster_run_on_a_server_of_rq(
    cluster: Cluster, shared_valkey: Server, commands: Commands
) -> None:
    put(commands.folder)
    shared_valkey.clear()
    url = cluster.nodes[0].url
    env = {"REDIS_URL": url, "RQ_URL": shared_valkey.url}
    assert commands.run("init", "--partitions", "6", **env).returncode == 0
    for arguments in (("worker",), ("service", "shop:service"), ("rq-worker", "shop:service")):
        commands.quiet(*arguments, env=env)
    with SagaClient(url) as client:
        for number in range(6):
            client.begin(f"s{number}", [do(number, timeout_ms=LONG_MS), do(number, "Now"), do("fail")])
        for number in range(6):
            assert client.wait(f"s{number}", 120).reason == "Step 3 failed: as asked"
    with connect(url) as store, connect(shared_valkey.url) as jobs:
        assert Counter(store.lrange("effects", 0, -1)) == {
            f"{what} s{number}/1/transaction".encode(): 1 for number in range(6) for what in ("done", "undone")
        }
        assert not any(key.startswith(b"rq:") for node in cluster.nodes for key in node.connect().scan_iter("*"))
        assert keys(jobs, "saga*") == []
        assert len(keys(jobs, "rq:job:*")) > 6


def test_a_job_waits_for_a_node_that_denies_something(
    cluster: Cluster, shared_valkey: Server, commands: Commands
) -> None:
    put(commands.folder)
    shared_valkey.clear()
    keys = divided(cluster.broker(), 3)
    first, second = in_each(keys)[1], in_each(keys, "t")[1]
    node, queue = cluster.node_of(keys.partitions[1].timers), Queue("steps", connection=shared_valkey.broker().client)
    env = {"REDIS_URL": cluster.nodes[0].url, "RQ_URL": shared_valkey.url}
    for arguments in (("worker",), ("service", "shop:service")):
        commands.quiet(*arguments, env=env)
    log = commands.folder / "log"
    denies = f"the node 127.0.0.1:{node.port} of the cluster denies this to the user in REDIS_URL"
    with SagaClient(env["REDIS_URL"]) as client, connect(env["REDIS_URL"]) as store, log.open("wb") as file:
        client.begin(first, [do(2, timeout_ms=LONG_MS)])
        until(lambda: queue.count == 1, what="its job is sent")
        node.ask("ACL", "SETUSER", "default", "-xrange")
        try:
            commands.start("rq-worker", "shop:service", env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
            until(lambda: f"{denies}: " in log.read_text(), what="the job says why it waits")
        finally:
            node.ask("ACL", "SETUSER", "default", "+@all")
        assert client.wait(first, 60).status == "COMPLETED"
        # The node denies what the answer needs.
        client.begin(second, [do("wait", timeout_ms=LONG_MS)])
        until(lambda: store.llen("begun") == 2, what="its handler runs")
        node.ask("ACL", "SETUSER", "default", "-evalsha", "-eval")
        try:
            store.rpush("go", 1)
            until(lambda: store.llen("effects") == 2, what="its handler is done")
            until(lambda: log.read_text().count(f"{denies}: ") == 2, what="the job says why it waits")
        finally:
            node.ask("ACL", "SETUSER", "default", "+@all")
        assert client.wait(second, 60).status == "COMPLETED"
        assert store.llen("effects") == 2
        until(lambda: queue.finished_job_registry.count == 2, what="RQ has both as finished")
    assert queue.failed_job_registry.count == 0
    assert "Traceback" not in log.read_text()


def test_stores_with_one_prefix_take_no_answer_of_each_other(
    stage: Stage, rq_server: OwnServer, server: Server, tmp_path: Path
) -> None:
    """Two stores share a server in the way that docs/rq.md warns about. Both have a saga of the same id: its jobs
    have one id, too."""
    (folder := tmp_path / "others").mkdir()
    theirs = start_server("redis" if server.binary == "redis-server" else "valkey", folder, OwnServer)
    others = Stage(theirs.broker(), Fleet(folder, theirs.url, RQ_URL=rq_server.url))
    try:
        queue = Queue("steps", connection=stage.rq)
        for one, params in ((stage, "ours"), (others, "theirs")):
            one.begin("s1", do(params, backoff_ms=1, timeout_ms=LONG_MS))
            one.all_until(lambda: queue.count == 1, what="the job of both is there")
            one.runner.turn(block_ms=1)
        stage.fleet.worker()
        assert stage.play("s1").status is SagaStatus.COMPLETED
        assert others.effects_on_rq() == []
        # It sends its own job now. The worker of the other store would find no such command, and may get all attempts.
        stage.fleet.end()
        others.fleet.worker()
        assert others.play("s1").status is SagaStatus.COMPLETED
        assert [one.state("s1").steps[0].result for one in (stage, others)] == [b'"ours"', b'"theirs"']
        assert [one.effects_on_rq() for one in (stage, others)] == [["done s1/1/transaction"]] * 2
    finally:
        others.fleet.end()
        theirs.stop()


def test_a_server_of_rq_that_may_drop_jobs_is_told_by_the_doctor(stage: Stage) -> None:
    stage.rq.config_set("maxmemory-policy", "allkeys-lru")
    (finding,) = of_rq(stage)
    assert finding.level == "warning"
    assert finding.text.endswith("Its maxmemory-policy is allkeys-lru, so it may drop jobs; each is an unknown outcome")


def test_the_server_of_rq_may_be_the_master_that_sentinels_name(
    server: Server, tmp_path: Path, commands: Commands
) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    watched = SentinelSet("redis" if server.binary == "redis-server" else "valkey", folder)
    try:
        put(commands.folder)
        env = {"REDIS_URL": server.url, "RQ_URL": watched.url}
        for arguments in (("worker",), ("service", "shop:service"), ("rq-worker", "shop:service")):
            commands.quiet(*arguments, env=env)
        with SagaClient(server.url) as client:
            client.begin("before", [do(1)])
            assert client.wait("before", 60).status is SagaStatus.COMPLETED
            watched.switch()
            until(lambda: watched.at_new_master, what="the replica is the master")
            client.begin("after", [do(1, timeout_ms=LONG_MS)])
            assert client.wait("after", 60).status is SagaStatus.COMPLETED
    finally:
        watched.stop()
    with connect(server.url) as broker:
        assert keys(broker, "rq:*") == []
