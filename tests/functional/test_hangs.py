"""Handlers that hang, in real processes: what is told, what others see, and that the process ends and comes again."""

import json
import os
import subprocess
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from sagastream.broker.exchange import run
from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from sagastream.service.declaration import EXIT_HANGS
from sagastream.store import heartbeat, running
from sagastream.store.heartbeat import Heartbeat, Kind
from sagastream.store.running import Busy
from support.processes import Commands
from support.scenes import do
from support.servers import Server
from support.stores import KEYS
from support.waiting import until, until_no_more

pytestmark = pytest.mark.both_in_soak

HOTELS = textwrap.dedent("""
    import asyncio, threading
    from sagastream import Service, connect

    service = Service("work", concurrency=SLOTS, lease_ms=500, hard_timeout_ms=HARD)
    redis = connect()

    def begins(params, context):
        return redis.incr(f"{context.saga_id}:calls")

    @service.command("Do", compensation="Undo")
    def do(params, context):
        calls = begins(params, context)
        if params == "hang" or (params == "hang once" and calls == 1):
            threading.Event().wait()  # it hangs here
        if params == "long":
            redis.blpop("go on")
        return params

    @service.command("DoAsync", compensation=None)
    async def do_async(params, context):
        if begins(params, context) == 1:
            await asyncio.Event().wait()

    @service.compensation("Undo")
    def undo(params, context):
        if begins(params, context) == 2 and params == "fail":
            threading.Event().wait()

    @service.command("Fail", compensation=None)
    def fail(params, context):
        from sagastream import Reject
        raise Reject("as asked")
""")


class Hotels:
    """A worker, the service above, and a client. `slots` and `hard_timeout_ms`: of the service."""

    def __init__(
        self, server: Server, commands: Commands, *, slots: int = 1, hard_timeout_ms: int | None = None
    ) -> None:
        module = HOTELS.replace("SLOTS", str(slots)).replace("HARD", str(hard_timeout_ms))
        (commands.folder / "hotels.py").write_text(module)
        self.env = {"REDIS_URL": server.url}
        self.commands = commands
        self.log = commands.folder / "log"
        self.client = SagaClient(server.broker())
        self.redis = self.client._redis
        commands.quiet("worker", env=self.env)

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return self.commands.start(
                *(arguments or ("service", "hotels:service")), stdout=log, stderr=log, env=self.env
            )

    def begins(self, saga_id: str, params: str, name: str = "Do", **options: Any) -> None:
        """Begin a saga once a process of the service is there, so that only what follows takes of the time of its
        steps, and wait until its handler is called."""
        until(lambda: [one for one in heartbeat.processes(self.redis, KEYS) if one.service], what="the service starts")
        self.client.begin(saga_id, [do(params, name, **{"timeout_ms": 60_000, **options})])
        until(lambda: self.redis.get(f"{saga_id}:calls"), what=f"the handler of {saga_id} is called")

    def says(self, text: str, times: int = 1) -> None:
        until(lambda: self.log.read_text().count(text) >= times, what=f"the log says {text!r}")

    def busy(self) -> dict[str, Busy]:
        return run(self.redis, running.look(KEYS))


def ran_ms(hotels: Hotels) -> int:
    """How long what runs longest has run, as others see it."""
    seconds, micros = hotels.redis.time()
    return max(
        (seconds * 1000 + micros // 1000 - busy.oldest[0].since_ms for busy in hotels.busy().values()), default=0
    )


def age_s(file: Path) -> float:
    return time.time() - file.stat().st_mtime


@pytest.mark.slow
def test_what_hangs_is_told_and_shown_and_the_health_file_gets_old(server: Server, commands: Commands) -> None:
    hotels, health = Hotels(server, commands, slots=2), commands.folder / "healthy"
    hotels.start("service", "hotels:service", "--health-file", str(health))
    hotels.begins("s1", "hang", timeout_ms=1500, attempts=1)
    hotels.says("Do of saga s1, step 1, attempt 1 (handler hotels.do) still runs after ")
    line = 1 + HOTELS.splitlines().index("        threading.Event().wait()  # it hangs here")
    assert f"hotels.py:{line}; declare hard_timeout_ms" in hotels.log.read_text()
    [busy] = until(lambda: [*hotels.busy().values()], what="others see it")
    assert (busy.slots, busy.long, busy.hangs) == (2, 1, False)
    assert (busy.oldest[0].saga_id, busy.oldest[0].step, busy.oldest[0].command) == ("s1", 1, "Do")
    # One slot is free: the service works on, and says so.
    os.utime(health, (1, 1))
    hotels.client.begin("s2", [do("now")])
    assert hotels.client.wait("s2", 60).status is SagaStatus.COMPLETED
    until(lambda: age_s(health) < 60, what="it is healthy, since one slot is free")
    hotels.begins("s3", "hang", timeout_ms=1500, attempts=1)
    hotels.says("handlers: all 2 should have ended by now; this process does nothing more: start it again")
    until(lambda: [busy.hangs for busy in hotels.busy().values()] == [True], what="others see that too")

    def is_touched() -> bool:
        if touched := age_s(health) < 60:
            os.utime(health, (1, 1))
        return touched

    until_no_more(is_touched, within_s=2.5, what="the health file is touched")
    assert [process.is_alive for process in heartbeat.processes(hotels.redis, KEYS, ["work"]) if process.service] == [
        True
    ]


@pytest.mark.slow
def test_past_a_hard_timeout_the_process_ends_after_its_other_handlers_and_another_goes_on(
    server: Server, commands: Commands
) -> None:
    hotels = Hotels(server, commands, slots=2, hard_timeout_ms=1500)
    process = hotels.start()
    hotels.begins("s1", "hang once")
    hotels.says("ran for longer than its hard timeout of 1.5 s")
    assert process.wait(60) == EXIT_HANGS
    assert hotels.busy() == {}
    # Before its lease has ended: it was handed back.
    hotels.start()
    assert hotels.client.wait("s1", 60).status is SagaStatus.COMPLETED
    assert hotels.redis.get("s1:calls") == b"2"


@pytest.mark.slow
def test_other_handlers_may_finish_before_the_process_ends(server: Server, commands: Commands) -> None:
    hotels = Hotels(server, commands, slots=2, hard_timeout_ms=6000)
    process = hotels.start()
    hotels.begins("s1", "hang once")
    # Half of the hard timeout passes between the two: a busy machine, too, has done all that is to be done in a half.
    until(lambda: ran_ms(hotels) > 3000, what="the first has run for some time")
    hotels.begins("s2", "long")
    hotels.says("ran for longer than its hard timeout")
    assert process.poll() is None
    hotels.redis.rpush("go on", 1)
    assert process.wait(60) == EXIT_HANGS
    assert hotels.client.wait("s2", 60).status is SagaStatus.COMPLETED
    assert hotels.redis.get("s2:calls") == b"1"


@pytest.mark.slow
@pytest.mark.parametrize("starts", ["up", "reload"])
def test_whoever_watches_over_it_starts_it_again(server: Server, commands: Commands, starts: str) -> None:
    hotels = Hotels(server, commands, hard_timeout_ms=1000)
    hotels.start(*(("up", "--service") if starts == "up" else ("service", "--reload")), "hotels:service")
    hotels.begins("s1", "hang once", "DoAsync")
    assert hotels.client.wait("s1", 60).status is SagaStatus.COMPLETED
    hotels.says(f"ended with exit code {EXIT_HANGS}")


@pytest.mark.slow
def test_a_compensation_that_hangs_ends_its_process_and_is_called_again(server: Server, commands: Commands) -> None:
    hotels = Hotels(server, commands, hard_timeout_ms=1000)
    hotels.start("up", "--service", "hotels:service")
    hotels.client.begin("s1", [do("fail"), do(None, "Fail")])
    assert hotels.client.wait("s1", 60).status is SagaStatus.ABORTED
    hotels.says("Undo of saga s1, step 1, attempt 1 (handler hotels.undo) ran for longer than its hard timeout of 1 s")


def test_what_is_fast_is_never_written(server: Server, commands: Commands) -> None:
    hotels = Hotels(server, commands)
    hotels.start()
    for number in range(50):
        hotels.client.begin(f"s{number}", [do("now")])
    for number in range(50):
        assert hotels.client.wait(f"s{number}", 60).status is SagaStatus.COMPLETED
    commandstats: Any = hotels.redis.info("commandstats")
    assert not hotels.redis.exists(KEYS.running)
    assert "cmdstat_zadd" in commandstats


# --- the field of a process


BUSY = Busy(slots=1, long=1, overdue=0, oldest=())


def beat(server: Server, name: str, busy: Busy | None = BUSY) -> Heartbeat:
    """A process writes its heartbeat."""
    written = Heartbeat(name, Kind.SERVICE, "work", busy=lambda: busy)
    written.join(KEYS)
    run(server.broker().client, written.beat())
    return written


def test_the_field_of_a_process_goes_when_it_runs_nothing_for_long_or_ends(server: Server) -> None:
    redis = server.broker().client
    one, other = beat(server, "p-1"), beat(server, "p-2")
    assert redis.hkeys(KEYS.running) == [b"p-1", b"p-2"]
    beat(server, "p-1", None)
    assert redis.hkeys(KEYS.running) == [b"p-2"]
    run(redis, other.end(holds=False))
    assert not redis.exists(KEYS.running)
    beat(server, "p-1")
    run(redis, one.end(holds=True))
    assert not redis.exists(KEYS.running)


@pytest.mark.parametrize("heard", ["long ago", "far in the future"])
def test_who_is_forgotten_takes_its_field_along(server: Server, heard: str) -> None:
    redis = server.broker().client
    for number in range(700):
        redis.hset(KEYS.running, f"dead-{number}", running.encode(BUSY))
        score = 1 if heard == "long ago" else 10**14
        redis.zadd(KEYS.alive, {json.dumps({"name": f"dead-{number}", "kind": "service"}): score})
    redis.zadd(KEYS.alive, {b"\xff not JSON": 1, b'{"name":7}': 1, b"[" * 20_000: 1})
    process = beat(server, "p-1")
    run(redis, process.beat())  # each removes at most 500
    assert redis.hkeys(KEYS.running) == [b"p-1"]
    assert redis.zcard(KEYS.alive) == 1


def test_where_something_else_stands_at_its_key_the_process_is_alive_all_the_same(server: Server) -> None:
    redis = server.broker().client
    redis.set(KEYS.running, "x")
    process = beat(server, "p-1")
    assert [one.name for one in heartbeat.processes(redis, KEYS)] == ["p-1"]
    assert run(redis, running.look(KEYS)) == {}
    run(redis, process.end(holds=False))
    assert redis.zcard(KEYS.alive) == 0


def test_what_sagastream_did_not_write_hides_nothing(server: Server) -> None:
    redis = server.broker().client
    beat(server, "p-1")
    for name, value in {b"a": b"", b"\xff": running.encode(BUSY), b"b": b"[" * 9000, b"c": b'{"slots":"1"}'}.items():
        redis.hset(KEYS.running, name, value)
    assert run(redis, running.look(KEYS)) == {"p-1": BUSY}
