"""`sagastream show ID` on real processes: it names what a saga waits for, and the line that helps."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import pytest
import redis

from sagastream import AsyncSagaClient, CorruptSaga, UnknownSaga
from sagastream.broker.leases import HANDED_BACK_MS
from sagastream.client.blocking import SagaClient
from sagastream.codecs.keyring import Keyring
from sagastream.console import printable
from sagastream.core.causes import Cause, CauseKind
from sagastream.store import heartbeat
from sagastream.store.columns import iso
from sagastream.store.losses import Loss
from sagastream_bridge.inspection.doctor import Doctor
from support.processes import Commands
from support.scenes import do
from support.servers import OwnServer, Server
from support.stores import KEYS
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

#: A service as a new user writes it.
SHOP = """
import os, sys, threading, time
from sagastream import Reject, Service

service = Service("shop", lease_ms=1000, concurrency=1)

@service.command("Quick", compensation="Undo")
def quick(params, context):
    return params

@service.command("Slow", compensation=None)
def slow(params, context):
    time.sleep(params)

@service.command("Hang", compensation="Undo")
def hang(params, context):
    threading.Event().wait()

@service.command("Raise", compensation=None)
def raises(params, context):
    raise RuntimeError("boom")

@service.command("Refuse", compensation=None)
def refuse(params, context):
    raise Reject("no")

@service.command("Die", compensation=None)
def dies(params, context):
    os._exit(1)

@service.compensation("Undo")
def undo(params, context):
    raise RuntimeError("cannot")
"""


#: The causes of which the doctor tells, too.
OF_THE_DOCTOR = frozenset(
    {
        CauseKind.NO_WORKER,
        CauseKind.NO_SERVICE,
        CauseKind.NO_COMMAND,
        CauseKind.HANGS,
        CauseKind.KILLS,
        CauseKind.CANNOT_OPEN,
        CauseKind.NO_RQ_WORKER,
        CauseKind.PAUSED,
        CauseKind.BROKER_DISK,
        CauseKind.BROKER_READ_ONLY,
        CauseKind.BROKER_REPLICAS,
    }
)
#: Which tests provoke each cause. What a test says here is checked when it ends.
TOLD: dict[CauseKind, list[str]] = {}
Test = TypeVar("Test", bound=Callable[..., None])


def tells(*kinds: CauseKind) -> Callable[[Test], Test]:
    """A test in which `show` and the client tell of these causes in the same words, and the doctor if it tells them."""

    def marked(test: Test) -> Test:
        for kind in kinds:
            TOLD.setdefault(kind, []).append(test.__name__)
        return test

    return marked


def timeless(text: str) -> str:
    """A text without its numbers: times go on between two looks."""
    return re.sub(r"\d[\d.]*( (ms|s|min|h|days?))?", "#", text)


class Shop:
    """A store, and the processes of a shop."""

    def __init__(self, server: Server, commands: Commands) -> None:
        self.server = server
        self.commands = commands
        self.env = {"REDIS_URL": server.url, "PYTHONPATH": str(commands.folder)}
        self.broker = server.broker()
        self.client = SagaClient(self.broker)
        self.told: set[CauseKind] = set()  # the causes that show and the client told alike, and the doctor if it tells
        self.write(SHOP)

    def write(self, text: str, name: str = "shop") -> None:
        (self.commands.folder / f"{name}.py").write_text(text)

    def worker(self) -> "subprocess.Popen[bytes]":
        return self.commands.quiet("worker", env=self.env)

    def service(self, where: str = "shop:service") -> "subprocess.Popen[bytes]":
        return self.commands.quiet("service", where, env=self.env)

    def begin(self, saga_id: str, *steps: Any) -> None:
        self.client.begin(saga_id, steps)

    def is_out(self, saga_id: str) -> None:
        """Wait until its command is out."""
        until(lambda: (state := self.client.get(saga_id)) and state.step.in_flight, what=f"{saga_id} is out")

    def show(self, saga_id: str, *, lines: int = 24) -> str:
        before = self.why(saga_id)
        done = self.commands.run("show", saga_id, **self.env)
        assert len((done.stdout + done.stderr).splitlines()) < lines, "it is more than one screen"
        self.compare([*before, *self.why(saga_id)], done.stdout)
        return done.stdout + done.stderr

    def why(self, saga_id: str) -> tuple[Cause, ...]:
        try:
            return self.client.why(saga_id)
        except (redis.RedisError, UnknownSaga):
            return ()  # the broker is away, or there is no such saga

    def compare(self, causes: Sequence[Cause], shown: str) -> None:
        """Note the causes that are shown as the client tells them."""
        shown = timeless(shown)
        kinds = {cause.kind for cause in causes if timeless(printable(cause.text)) in shown} - self.told
        if examined := kinds & OF_THE_DOCTOR:
            kinds -= examined - {finding.kind for finding in Doctor(self.broker).examine()}
        self.told |= kinds

    def shows(self, saga_id: str, *parts: str, lines: int = 24) -> str:
        """Wait until `show` says all of this, on fewer lines than so many."""
        shown = [""]

        def says() -> bool:
            shown[0] = self.show(saga_id, lines=lines)
            return all(part in shown[0] for part in parts)

        try:
            until(says, what="show says it")
        except AssertionError:
            raise AssertionError(f"show never said {parts}, but at last:\n{shown[0]}") from None
        return shown[0]


@pytest.fixture
def shop(server: Server, commands: Commands, request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(server, commands)
    yield shop
    claimed = {kind for kind, tests in TOLD.items() if request.function.__name__ in tests}
    assert claimed <= shop.told, f"never told: {claimed - shop.told}"


def test_every_cause_is_provoked_by_a_test() -> None:
    assert {kind for kind in CauseKind if kind not in TOLD} == set()


# --- the processes


@tells(CauseKind.NO_WORKER)
def test_no_worker_and_a_dead_worker(shop: Shop) -> None:
    shop.begin("s1", do(1, "Quick", "shop"))
    text = shop.show("s1")
    assert f"there is no saga s1 in the store {shop.server.url} yet; no worker is running" in text
    assert "sagastream worker" in text
    worker = shop.worker()
    shop.is_out("s1")
    worker.send_signal(signal.SIGSTOP)
    try:
        shop.shows("s1", "why      no worker is running that answers: ", "you can  sagastream worker")
    finally:
        worker.kill()


@tells(CauseKind.NO_SERVICE)
def test_a_service_that_does_not_run_one_that_died_and_one_that_never_was(shop: Shop) -> None:
    shop.worker()
    process = shop.service()
    until(lambda: shop.client._redis.exists("saga:services:shop"), what="it has published")
    process.terminate()
    process.wait(60)
    shop.begin("s1", do(1, "Quick", "shop"))
    shop.shows("s1", "why      no process of service shop is listening\n", "sagastream service MODULE:NAME")
    shop.service()
    shop.begin("s2", do(1, "Quick", "shpo"))
    text = shop.shows("s2", "no process of service shpo is listening, and none ever was; is it a misspelling of shop?")
    assert "you can  sagastream cancel s2 --now --reason TEXT" in text
    killed = shop.service()
    killed.kill()


def test_a_bad_deploy_that_does_not_start(shop: Shop) -> None:
    shop.worker()
    process = shop.service()
    shop.begin("s1", do(1, "Quick", "shop"))
    until(lambda: (state := shop.client.get("s1")) and state.ended, what="it runs")
    process.terminate()
    process.wait(60)
    shop.write("raise ImportError('no module named stripe')")
    assert shop.service().wait(60) != 0
    shop.begin("s2", do(1, "Quick", "shop"))
    shop.shows("s2", "no process of service shop is listening", "if it ends at once, its log says why")


@tells(CauseKind.NO_COMMAND)
def test_a_command_that_the_service_does_not_have(shop: Shop) -> None:
    shop.worker()
    shop.service()
    until(lambda: shop.client._redis.exists("saga:services:shop"), what="it has published")
    shop.begin("hold", do(30, "Slow", "shop", timeout_ms=60_000))
    shop.shows("hold", "running: Slow has run for")
    shop.begin("s1", do(1, "Qiuck", "shop"))
    shop.shows("s1", "service shop has no command Qiuck; is it a misspelling of Quick?")


def test_a_command_that_no_process_at_work_has(shop: Shop) -> None:
    shop.worker()
    newer = '\n@service.command("New", compensation=None)\ndef new(params, context):\n    return 1\n'
    shop.write(SHOP + newer, "newer")
    release = shop.service("newer:service")
    shop.begin("s1", do(1, "New", "shop"))
    until(lambda: (state := shop.client.get("s1")) and state.ended, what="the newer release does it")
    release.terminate()
    release.wait(60)
    shop.service()  # a deploy was rolled back
    shop.begin("s2", do(1, "New", "shop"))
    text = shop.shows("s2", "why      service shop publishes New, and no process at work has it; at work: ")
    assert "you can  start a release of service shop that has New" in text
    assert "no process at work has it" in shop.commands.run("doctor", **shop.env).stdout


@tells(CauseKind.QUEUED, CauseKind.RUNNING)
def test_a_queue_and_what_runs_in_front_of_it(shop: Shop) -> None:
    shop.worker()
    shop.service()
    shop.begin("busy", do(60, "Slow", "shop", timeout_ms=120_000))
    shop.shows("busy", "has run for", "its deadline comes in")
    for number in range(4):
        shop.begin(f"s{number}", do(1, "Quick", "shop", timeout_ms=120_000))
        shop.is_out(f"s{number}")
    text = shop.shows("s3", "queued for", "processes of service shop at work: 1; Slow of saga busy has run for")
    before = int(text.partition("commands before it: ")[2].partition(";")[0])
    assert before <= 3
    *rows, _ = [json.loads(line) for line in shop.commands.run("list", "--json", **shop.env).stdout.splitlines()]
    assert {row["saga_id"]: row["why"][0]["kind"] for row in rows}["s3"] == "queued"
    (cause,) = json.loads(shop.commands.run("show", "s3", "--json", **shop.env).stdout)["why"]
    assert cause["kind"] == "queued"
    assert cause["since_at"].endswith("Z")
    assert [cause.kind for cause in shop.client.why("s3")] == ["queued"]


@tells(CauseKind.HANGS)
def test_a_hung_handler_and_the_queue_behind_it(shop: Shop) -> None:
    shop.worker()
    shop.service()
    shop.begin("stuck", do(1, "Hang", "shop", timeout_ms=1_500, attempts=50, backoff_ms=100))
    shop.shows("stuck", "the handler of Hang, step 1, hangs: it has run for", "past its deadline", "you can  kill ")
    shop.begin("behind", do(1, "Quick", "shop", timeout_ms=120_000))
    shop.shows("behind", "handlers hang: Hang of saga stuck has run for", "you can  kill ")
    doctor = shop.commands.run("doctor", **shop.env)
    assert doctor.returncode == 1
    assert "(behind)" in doctor.stdout
    assert "problem   service shop  saga stuck: the handler of Hang, step 1, hangs" in doctor.stdout


@tells(CauseKind.BACKING_OFF, CauseKind.PROCESS_DEAD)
def test_a_handler_that_raises_and_one_that_kills_its_process(shop: Shop) -> None:
    shop.worker()
    shop.service()
    shop.begin("s1", do(1, "Raise", "shop", attempts=20, backoff_ms=60_000))
    shop.shows("s1", "it is sent again in", "attempt 1 of 20 of Raise failed: RuntimeError: boom")
    shop.begin("s2", do(1, "Die", "shop", timeout_ms=300_000))
    shop.shows("s2", "has Die", "dead or hung", "no process of service shop is listening", "its log says why")


@tells(CauseKind.PARKED)
def test_a_parked_saga_and_what_each_verb_would_do(shop: Shop) -> None:
    shop.worker()
    shop.service()
    last = do(1, "Raise", "shop", attempts=1)
    shop.begin("s1", do(1, "Quick", "shop", compensation_attempts=1, backoff_ms=1), last)
    text = shop.shows("s1", "PARKED", "parked   Undo of step 1 failed", "sagastream retry s1 --reason TEXT")
    assert "sagastream skip s1 --reason TEXT --parked-at 1/compensation/1  # go on as if step 1 were undone" in text
    assert "sagastream abandon s1 --reason TEXT --parked-at 1/compensation/1  # end ABORTED as it is; what" in text
    assert "these steps did stays: 1" in text


@tells(CauseKind.ANSWERED)
def test_a_reply_that_waits_for_a_worker(shop: Shop) -> None:
    worker = shop.worker()
    shop.begin("s1", do(1, "Quick", "shop"))
    shop.is_out("s1")
    worker.send_signal(signal.SIGSTOP)
    try:
        shop.service()
        shop.shows("s1", "no worker is running that answers", "Quick was answered; replies that wait for a worker: 1")
    finally:
        worker.send_signal(signal.SIGCONT)
    shop.shows("s1", "COMPLETED")


@tells(CauseKind.LOST)
def test_an_entry_that_nobody_will_read_and_one_that_is_gone(shop: Shop) -> None:
    shop.worker()
    redis = shop.client._redis
    stream = "saga:{0}:commands:shop"
    for saga_id in ("s1", "s2"):
        shop.begin(saga_id, do(1, "Quick", "shop"))
        shop.is_out(saga_id)
        redis.xgroup_create(stream, "shop", id="$") if saga_id == "s1" else None
    shop.shows("s1", "Quick is in the stream of service shop, and nobody will read it", "sagastream doctor --repair")
    entries: Any = redis.xrange(stream)
    entry_id = entries[-1][0]
    redis.xdel(stream, entry_id)
    shop.shows("s2", "Quick is not in the stream of service shop any more, and no reply waits", "not answered in")


# --- RQ


@tells(CauseKind.NO_RQ_WORKER)
def test_a_job_whose_queue_no_rq_worker_reads(shop: Shop) -> None:
    shop.write(
        'from sagastream import Service\nservice = Service("later")\n'
        '@service.command("Pack", compensation=None, via="rq", queue="parcels")\ndef pack(params, context): return 1\n',
        "later",
    )
    shop.worker()
    shop.service("later:service")
    shop.begin("s1", do(1, "Pack", "later"))
    shop.shows("s1", "Pack waits as a job, and no RQ worker works on queue parcels", "rq worker -w", "parcels")
    assert "you can  sagastream rq-worker MODULE:NAME  # starts one" in shop.show("s1")


def test_a_job_that_runs(shop: Shop) -> None:
    shop.write(
        'import time\nfrom sagastream import Service\nservice = Service("later")\n'
        '@service.command("Pack", compensation=None, via="rq", queue="parcels")\n'
        "def pack(params, context): time.sleep(60)\n",
        "later",
    )
    shop.worker()
    shop.service("later:service")
    shop.commands.quiet("rq-worker", "later:service", env=shop.env)
    shop.begin("s1", do(1, "Pack", "later", timeout_ms=120_000))
    text = shop.shows("s1", "Pack is a job of queue parcels: started ", " ago by RQ worker ", "; it may take ")
    assert re.search(rf"by RQ worker \w+ \({re.escape(socket.gethostname())}, pid \d+\)", text)


# --- the broker


@tells(CauseKind.BROKER_FULL)
def test_a_broker_that_is_full(shop: Shop) -> None:
    shop.worker()
    shop.begin("s1", do(1, "Quick", "shop"))
    shop.is_out("s1")
    shop.client._redis.config_set("maxmemory", "1mb")
    try:
        shop.shows("s1", "why      the broker is full, and takes only what sagas need", "raise maxmemory")
    finally:
        shop.client._redis.config_set("maxmemory", "0")


@tells(CauseKind.BROKER_DISK)
@pytest.mark.own_server
def test_a_broker_that_cannot_write_to_its_disk(shop: Shop) -> None:
    shop.worker()
    shop.begin("s1", do(1, "Quick", "shop"))
    shop.is_out("s1")
    redis = shop.client._redis
    redis.config_set("save", "3600 1")
    shutil.rmtree(shop.server.folder)  # in which it would save
    redis.bgsave()
    shop.shows("s1", "why      the broker cannot write to its disk, and takes no writes", "look at its log")
    doctor = shop.commands.run("doctor", **shop.env)
    assert doctor.returncode == 1
    assert "the broker cannot write to its disk" in doctor.stdout


@tells(CauseKind.BROKER_READ_ONLY)
def test_a_broker_that_is_a_replica(shop: Shop) -> None:
    shop.worker()
    shop.begin("s1", do(1, "Quick", "shop"))
    shop.is_out("s1")
    redis = shop.client._redis
    redis.config_set("replica-serve-stale-data", "yes")
    redis.replicaof("127.0.0.1", "1")
    try:
        shop.shows("s1", "why      the broker is a replica, and takes no writes", "set REDIS_URL to its master")
    finally:
        redis.replicaof("NO", "ONE")


@tells(CauseKind.BROKER_REPLICAS)
def test_a_broker_without_the_replicas_that_it_wants(shop: Shop) -> None:
    shop.worker()
    shop.begin("s1", do(1, "Quick", "shop"))
    shop.is_out("s1")
    shop.client._redis.config_set("min-replicas-to-write", 1)
    try:
        shop.shows("s1", "why      the broker has too few replicas, and takes no writes", "look at its replicas")
        until(lambda: not heartbeat.worker_is_alive(shop.client._redis, KEYS), what="no heartbeat is written")
        assert [cause.kind for cause in shop.client.why("s1")] == [CauseKind.BROKER_REPLICAS]
        doctor = shop.commands.run("doctor", **shop.env)
        assert doctor.returncode == 1
        assert "the broker has too few replicas" in doctor.stdout
        listed = shop.commands.run("list", **shop.env)
        assert "the broker has too few replicas" in listed.stderr
        for text in (doctor.stdout, listed.stdout + listed.stderr):
            assert "no worker" not in text
            assert "no process of service" not in text
    finally:
        shop.client._redis.config_set("min-replicas-to-write", 0)


@pytest.mark.own_server
def test_a_frozen_broker_and_one_that_is_away(shop: Shop) -> None:
    assert isinstance(shop.server, OwnServer)
    shop.worker()
    shop.begin("s1", do(1, "Quick", "shop"))
    shop.is_out("s1")
    shop.server.pause()
    try:
        began = time.monotonic()
        text = shop.show("s1")
        assert time.monotonic() - began < 20
    finally:
        shop.server.resume()
    assert f"the broker of {shop.server.url} does not answer: it hangs, was stopped, or is too busy" in text
    shop.server.kill()
    assert "the broker does not answer" in shop.show("s1")


def test_a_client_says_it_too(shop: Shop) -> None:
    async def in_a_loop() -> list[str]:
        async with AsyncSagaClient(shop.server.broker()) as client:
            return [cause.kind for cause in await client.why("s1")]

    shop.begin("s1", do(1, "Quick", "shop"))
    assert [cause.kind for cause in shop.client.why("s1")] == ["no_worker", "queued"]
    assert asyncio.run(in_a_loop()) == ["no_worker", "queued"]
    shop.client._redis.hset("saga:{0}:saga:s2", "version", "x")
    with pytest.raises(CorruptSaga):
        shop.client.why("s2")


# --- what a stranger met


def test_a_hung_undo_and_a_hung_handler_that_must_succeed(shop: Shop) -> None:
    """Neither has a deadline, so its process cannot tell that it hangs: the time of its step does."""
    shop.write(SHOP.replace('raise RuntimeError("cannot")', "threading.Event().wait()"))
    shop.worker()
    shop.service()
    few = {"timeout_ms": 1500, "backoff_ms": 100, "compensation_attempts": 50}
    shop.begin("u1", do(1, "Quick", "shop", **few), do(1, "Raise", "shop", attempts=1, timeout_ms=1500))
    text = shop.shows("u1", "the handler of Undo, step 1, hangs: it has run for ", "you can  kill ")
    assert "longer than the 1.5 s for which its answer is waited for" in text
    shop.begin("u2", do(1, "Quick", "shop", timeout_ms=120_000))
    shop.shows("u2", "handlers hang: Undo of saga u1 has run for ", "you can  kill ")
    doctor = shop.commands.run("doctor", **shop.env)
    assert doctor.returncode == 1
    assert "saga u1: the handler of Undo, step 1, hangs" in doctor.stdout


def test_a_saga_that_is_parked_while_its_handler_still_hangs(shop: Shop) -> None:
    shop.worker()
    shop.service()
    must = do(1, "Hang", "shop", kind="retriable", timeout_ms=1500, attempts=2, backoff_ms=1)
    shop.begin("r1", do(1, "Quick", "shop", kind="pivot"), must)
    text = shop.shows("r1", "PARKED", "the handler of Hang, step 2, hangs: it has run for ", "you can  kill ")
    assert text.index("you can  kill ") > text.index("sagastream retry r1")


@tells(CauseKind.KILLS)
def test_a_command_that_kills_its_processes(shop: Shop) -> None:
    shop.worker()
    shop.begin("s1", do(1, "Die", "shop", timeout_ms=300_000))
    for deaths in range(1, 4):
        assert shop.service().wait(60) == 1
        if deaths == 1:
            assert "seems to have killed" not in shop.show("s1")
            continue
        text = shop.shows("s1", f"Die seems to have killed {deaths} processes", "you can  sagastream cancel s1 --now")
        assert "you can  look at the log of service shop" in text
        assert f"Die seems to have killed {deaths} processes" in shop.commands.run("list", **shop.env).stdout
        doctor = shop.commands.run("doctor", **shop.env)
        assert doctor.returncode == 1
        assert f"Die seems to have killed {deaths} processes" in doctor.stdout
    for _ in range(2):
        assert shop.service().wait(60) == 1
    shop.service()  # it gives up: the outcome of the first attempt is unknown, and the second one kills it again
    shop.shows("s1", "Die seems to have killed ", "attempt 1 of 3 failed: 5 processes took Die and did not live")


def test_attempts_that_fail_are_a_finding(shop: Shop) -> None:
    shop.worker()
    shop.service()
    shop.begin("s1", do(1, "Raise", "shop", attempts=20, backoff_ms=800))
    text = shop.shows("s1", " of 20 of Raise failed: RuntimeError: boom", "you can  look at the log of service shop")
    assert "you can  sagastream cancel s1 --now" in text
    doctor = shop.commands.run("doctor", **shop.env)
    assert "warning   service shop  attempts of Raise fail: RuntimeError: boom; sagas: 1 (s1)" in doctor.stdout
    # While the command is paused, a saga between two attempts waits for that, too.
    shop.begin("s2", do(1, "Raise", "shop", attempts=20, backoff_ms=60_000))
    shop.shows("s2", "attempt 1 of 20 of Raise failed")
    shop.client.pause("shop", "Raise", reason="it only fails", actor="ada")
    shop.shows("s2", "waits    for the time to send Raise, step 1 again", ", and then for shop/Raise to be resumed")
    doctor = shop.commands.run("doctor", **shop.env)
    assert re.search(r"; between two attempts, and held when .* next one: \d+ \(.*s2.*\)", doctor.stdout)


def test_a_service_that_is_missing_is_named_between_two_attempts_too(shop: Shop) -> None:
    shop.worker()
    shop.service()
    until(lambda: shop.client._redis.exists("saga:services:shop"), what="it has published")
    shop.begin("s1", do(1, "Quick", "shpo", timeout_ms=500, backoff_ms=60_000, attempts=20))
    text = shop.shows("s1", "it is sent again in ", "no process of service shpo is listening, and none ever was")
    assert "is it a misspelling of shop?" in text
    assert "you can  sagastream cancel s1 --now --reason TEXT" in text
    assert "no process of service shpo is listening" in shop.commands.run("list", **shop.env).stdout
    doctor = shop.commands.run("doctor", **shop.env).stdout
    assert "sagastream cancel s1 --now --reason TEXT" in doctor
    assert "sagastream service MODULE:NAME" not in doctor
    # What never ran has no log to look at, however often its attempts time out.
    shop.begin("s2", do(1, "Quick", "shpo", timeout_ms=200, backoff_ms=100, attempts=20))
    until(lambda: (s := shop.client.get("s2")) is not None and s.step.attempt > 3, what="three attempts have timed out")
    doctor = shop.commands.run("doctor", **shop.env).stdout
    assert "no process of service shpo is listening, and none ever was" in doctor
    assert "attempts of Quick fail" not in doctor
    assert "look at the log" not in doctor


def test_a_broker_that_takes_no_writes_says_nothing_of_who_is_at_work(shop: Shop) -> None:
    """Nobody can write a heartbeat then, however alive."""
    shop.worker()
    shop.service()
    shop.begin("s1", do(60, "Slow", "shop", timeout_ms=120_000))
    shop.shows("s1", "running: Slow has run for")
    redis = shop.client._redis
    redis.replicaof("127.0.0.1", "1")
    try:
        until(lambda: not heartbeat.worker_is_alive(redis, KEYS), what="the worker's last heartbeat is old")
        said = shop.commands.run("doctor", **shop.env).stdout
        assert "no worker is running" not in said
        assert "sagastream worker" not in said
        assert "who is at work cannot be told: the broker takes no writes, so no process is heard" in said
        listed = shop.commands.run("list", **shop.env).stderr
        assert "no worker is running" not in listed
        assert "the broker is a replica, and takes no writes" in listed
    finally:
        redis.replicaof("NO", "ONE")


def test_the_doctor_tells_a_hang_once(shop: Shop) -> None:
    shop.worker()
    shop.service()
    shop.begin("stuck", do(1, "Hang", "shop", timeout_ms=1_500, attempts=50, backoff_ms=60_000))
    shop.shows("stuck", "the handler of Hang, step 1, hangs")
    for number in range(3):
        shop.begin(f"s{number}", do(1, "Quick", "shop", timeout_ms=120_000))
    shop.shows("s2", "handlers hang: Hang of saga stuck has run for ", "it ends within 25 s")
    lines = shop.commands.run("doctor", **shop.env).stdout.splitlines()
    (line,) = [line for line in lines if "has run for" in line]
    assert line.startswith("problem   service shop  saga stuck: the handler of Hang, step 1, hangs")
    assert "sagas that wait for Quick: 3 (s0, s1, s2); kill " in line
    assert not any(line.startswith("ok        service shop ") for line in lines)
    found = [json.loads(line) for line in shop.commands.run("doctor", "--json", **shop.env).stdout.splitlines()]
    (told,) = [one for one in found if one["kind"] == "hangs"]
    assert "kill" not in told["text"]
    assert told["do"][0].startswith("kill ")


def test_a_process_that_died_while_its_successor_hangs(shop: Shop) -> None:
    shop.write(SHOP.replace("lease_ms=1000", "lease_ms=30_000"))
    shop.worker()
    process = shop.service()
    shop.begin("q1", do(60, "Slow", "shop", timeout_ms=120_000))
    shop.shows("q1", "running: Slow has run for")
    process.kill()
    shop.shows("q1", "running: Slow has run for", "its process was last heard ", "it may be dead or hung")
    shop.service()
    shop.begin("q2", do(1, "Hang", "shop", timeout_ms=10_000, attempts=50, backoff_ms=60_000))
    shop.shows("q2", "the handler of Hang, step 1, hangs")
    text = shop.shows("q1", "No other process takes it over, since handlers hang: Hang of saga q2", "you can  kill ")
    assert "has Slow, and was last heard" in text


def test_a_clock_that_was_set_back_is_told(shop: Shop) -> None:
    shop.worker()
    shop.begin("s1", do(1, "Quick", "shop"))
    shop.is_out("s1")
    now: Any = shop.client._redis.time()
    ahead = iso((now[0] + 3600) * 1000)  # as if the saga had begun before
    shop.client._redis.hset(KEYS.saga("s1"), mapping={"begun_at": ahead, "updated_at": ahead})
    shop.shows(
        "s1", "note     the broker's clock was set back by 60 m or more. What waits for a time begins to wait again"
    )


def test_what_was_lost_is_told_of_the_sagas_that_may_differ_alone(shop: Shop) -> None:
    shop.worker()
    shop.service()
    shop.begin("before", do(1, "Quick", "shop"))
    until(lambda: (state := shop.client.get("before")) and state.ended, what="it runs")
    now: Any = shop.client._redis.time()
    since_ms = now[0] * 1000 + 2000
    loss = Loss(since_ms=since_ms, evidence="as a test says", found_ms=since_ms + 60_000, found_by="a test")
    shop.client._redis.hset(KEYS.losses, "history", msgspec.json.encode(loss))
    assert "the store has lost" not in shop.show("before")
    shop.begin("open", do(60, "Slow", "shop", timeout_ms=120_000))
    shop.shows("open", "may say other than what was done; see sagastream doctor --after-failover")
    assert "; see sagastream doctor --after-failover" in shop.show("gone")


@tells(CauseKind.PAUSED)
def test_a_saga_is_held_by_whom_and_why_and_the_line_that_resumes_it_sends_it(shop: Shop) -> None:
    shop.worker()
    shop.service()
    alive = shop.server.broker().client
    until(lambda: alive.zcard(KEYS.alive) == 2, what="both are alive")
    done = shop.commands.run("pause", "shop", "--reason", "the till\x1b[31m is open", "--actor", "ada", **shop.env)
    assert done.stdout == "service shop is paused; workers that know it: 1\n"
    assert "no process of service" not in done.stderr
    shop.begin("s1", do(1, name="Quick", service="shop"))
    shown = shop.shows(
        "s1", "waits    for shop to be resumed, to send Quick, step 1", "service shop has been paused for "
    )
    assert "by ada: the till\\x1b[31m is open; Quick is sent once it is resumed" in shown
    advice = re.search(r"you can  (sagastream resume shop --reason TEXT)  # ", shown)
    assert advice is not None
    (cause,) = shop.client.why("s1")
    assert (cause.kind, cause.facts["actor"]) == (CauseKind.PAUSED, "ada")
    listed = shop.commands.run("list", **shop.env).stdout
    assert "service shop has been paused for " in listed
    examined = shop.commands.run("doctor", **shop.env).stdout
    assert re.search(
        r"warning +service shop +service shop has been paused for .* by ada: .*; sagas that are held: 1 \(s1\)",
        examined,
    )
    paused = json.loads(shop.commands.run("paused", "--json", **shop.env).stdout)
    assert (paused["service"], paused["command"], paused["actor"]) == ("shop", None, "ada")
    resumed = shop.commands.run(*advice[1].replace("TEXT", "mended").split()[1:], **shop.env)
    assert resumed.stdout == "service shop is resumed; workers that know it: 1\n"
    until(lambda: (state := shop.client.get("s1")) and state.ended, what="it goes on")
    assert shop.commands.run("paused", **shop.env).stdout == "nothing is paused\n"
    again = shop.commands.run("resume", "shop", "--reason", "x", **shop.env)
    assert (again.returncode, again.stderr) == (1, "Error: service shop is not paused\n")
    mistyped = shop.commands.run("pause", "shop", "Quik", "--reason", "x", **shop.env)
    assert mistyped.stderr.startswith(
        "warning: service shop publishes no command Quik; is it a misspelling of Quick?\n"
    )
    assert "sagastream resume shop Quik --reason TEXT  # takes it back: it holds nothing now" in mistyped.stderr
    assert "held: none; service shop publishes no command Quik" in shop.commands.run("doctor", **shop.env).stdout
    assert "holds nothing: service shop publishes no command Quik" in shop.commands.run("paused", **shop.env).stdout
    first = shop.commands.run("pause", "shop", "--reason", "one", "--actor", "ada", **shop.env)
    second = shop.commands.run("pause", "shop", "--reason", "two", "--actor", "bob", **shop.env)
    assert first.stderr == ""
    assert re.match("note: service shop has been paused for .* by ada: one; it stays paused since then", second.stderr)
    left = shop.commands.run("resume", "shop", "--reason", "x", **shop.env).stderr
    assert left.startswith("note: Quik of service shop has been paused for ")
    assert "sagastream resume shop Quik --reason TEXT" in left


@tells(
    CauseKind.NOT_STARTED,
    CauseKind.AWAITS_SIGNAL,
    CauseKind.AWAITS_RETRY,
    CauseKind.PAUSES,
    CauseKind.SETTLES,
    CauseKind.SENT,
    CauseKind.LATE,
)
def test_what_a_graph_waits_for_and_a_time_that_nobody_has_seen_to(shop: Shop) -> None:
    worker = shop.worker()
    shop.service()
    until(lambda: shop.client._redis.zcard(KEYS.alive) == 2, what="both are alive")
    few = {"attempts": 1, "timeout_ms": 120_000}
    shop.client.begin("later", [do(1, "Quick", "shop")], start_at_ms=4_000_000_000_000)
    shop.begin("signalled", {"wait": "approve", "timeout_ms": 600_000})
    shop.begin("retried", do(1, "Refuse", "shop", retry_on="again", retry_within_ms=600_000, **few))
    shop.begin("paused", {"wait_ms": 600_000})
    shop.begin("many", *(do(1, "Quick", "nobody", id=f"s{number}", after=[], **few) for number in range(12)))
    shop.shows("later", "it begins in ")
    shop.shows("signalled", "it waits for the signal approve; if none comes within ")
    shop.shows("retried", "Refuse failed: no; it is sent again when the signal again comes")
    shop.shows("paused", "it pauses for ")
    shop.shows("many", "so do more steps: s10, s11", lines=200)
    both = do(1, "Refuse", "shop", id="a", after=[], **few), do(60, "Slow", "shop", id="b", after=[], **few)
    shop.begin("settles", *both)
    shop.shows("settles", "it goes back as soon as what is out is answered or times out: step b", lines=60)
    worker.kill()
    long_ago = iso(int(time.time() * 1000) - 60_000)
    shop.client._redis.hset(KEYS.saga("paused"), "step1.due_at", long_ago)
    shop.shows("paused", "a worker should have seen to it ", "no worker is running that answers")


@tells(CauseKind.HANDED_BACK)
def test_a_command_that_a_process_gave_back_and_no_other_has_taken_yet(shop: Shop) -> None:
    shop.worker()
    process = shop.service()
    client, stream = shop.client._redis, KEYS.partitions[0].commands("shop")
    until(lambda: client.zcard(KEYS.alive) == 2, what="both are alive")
    until(lambda: client.exists(stream) and client.xinfo_groups(stream), what="it has a group to read from")
    process.send_signal(signal.SIGSTOP)  # it counts as alive for a while, and takes nothing
    try:
        shop.begin("s1", do(1, "Quick", "shop", timeout_ms=120_000))
        shop.is_out("s1")
        # The server gave it to the stopped process, if that had asked; or else it gives it to another one now. That one
        # takes it over and is told to end: it hands it back, see broker/leases.py.
        name = "web1-4711-5f0c2a9e"
        client.xreadgroup("shop", name, {stream: ">"})
        (held,) = client.xpending_range(stream, "shop", "-", "+", 1)
        client.xclaim(stream, "shop", name, 0, [held["message_id"]], idle=HANDED_BACK_MS)
        shop.shows("s1", "process web1-4711-5f0c2a9e handed Quick back; another takes it over within 2 s")
    finally:
        process.kill()


@tells(CauseKind.CANNOT_OPEN)
def test_a_command_that_no_process_can_open(shop: Shop) -> None:
    shop.worker()
    shop.service()
    sealing = SagaClient(shop.broker, codec=Keyring({"k1": Keyring.new_key()}))
    sealing.begin("s1", [do({"card": "4711"}, "Quick", "shop", timeout_ms=120_000)])
    assert "k1" in shop.shows("s1", "cannot open Quick")
