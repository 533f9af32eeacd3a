"""Several handlers at once in one process: real processes, on real servers."""

import json
import os
import shutil
import signal
import subprocess
import textwrap
import time
from collections import Counter
from typing import Any

import pytest
import redis

from support.processes import SAMPLES, Commands
from support.servers import OwnServer, Server, alive
from support.stores import ONLY
from support.waiting import slowness, until, until_no_more

pytestmark = pytest.mark.both_in_soak

#: The first lines of the services of these tests. `at_it` counts the handlers that run, and keeps the maximum.
PREAMBLE = """
import asyncio, os, time
from contextlib import contextmanager
from sagastream import Reject, Service, connect

redis = connect()

@contextmanager
def at_it(name, context):
    redis.rpush("begun", f"{os.getpid()} {context.saga_id}")
    running = redis.incr(f"running:{name}:{os.getpid()}")
    redis.zadd("most", {name: running}, gt=True)
    try:
        yield
    finally:
        redis.decr(f"running:{name}:{os.getpid()}")
        redis.rpush("done", context.saga_id)

def until_told(name):
    while not redis.exists(name):
        time.sleep(0.01)
"""


class Shop:
    """A service of a test, its processes, its stream."""

    def __init__(self, server: Server, commands: Commands, source: str) -> None:
        (commands.folder / "shop.py").write_text(PREAMBLE + textwrap.dedent(source))
        self.server = server
        self.commands = commands
        self.redis: redis.Redis = server.broker().client

    def start(self, *options: str, **streams: Any) -> "subprocess.Popen[bytes]":
        # Bytecode is written, as on a machine where nobody has thought of it.
        env = {"REDIS_URL": self.server.url, "PYTHONDONTWRITEBYTECODE": ""}
        start = self.commands.start if streams else self.commands.quiet
        return start("service", "shop:service", *options, env=env, **streams)

    def send(self, name: str, *saga_ids: str, **fields: Any) -> None:
        for saga_id in saga_ids:
            body = json.dumps({"type": name, "saga_id": saga_id, "step": 1})
            entry: dict[Any, Any] = {"body": body, "begun_ms": 1} | fields
            self.redis.xadd(ONLY.commands("work"), entry)

    def listed(self, name: str) -> list[str]:
        values: Any = self.redis.lrange(name, 0, -1)
        return [value.decode() for value in values]

    def replies(self) -> list[tuple[int, dict[str, Any]]]:
        """When each reply came, by the broker's clock, and what it says."""
        entries: Any = self.redis.xrange(ONLY.replies("work"))
        return [(int(entry_id.split(b"-")[0]), json.loads(fields[b"body"])) for entry_id, fields in entries]

    def answered(self, count: int, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        until(lambda: len(self.replies()) >= count, what=f"{count} answers", timeout_s=timeout_s)
        return [body for _, body in self.replies()]

    def begun(self, count: int) -> list[str]:
        until(lambda: len(self.listed("begun")) >= count, what=f"{count} handlers have begun")
        return self.listed("begun")

    def most(self, name: str) -> int:
        score: Any = self.redis.zscore("most", name)
        return int(score)

    def nothing_is_left(self) -> bool:
        summary: Any = self.redis.xpending(ONLY.commands("work"), "work")
        return summary["pending"] == 0 and self.redis.xlen(ONLY.commands("work")) == 0


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


#: The same handlers, plain and async. The slow ones run until the test ends them.
PLAIN = """
    service = Service("work", concurrency=4, lease_ms=2000)

    @service.command("Slow", compensation=None)
    def slow(params, context):
        with at_it("slow", context):
            until_told("go on")

    @service.command("Do", compensation=None)
    def do(params, context):
        with at_it("do", context):
            time.sleep(0.005)

    @service.command("Few", compensation=None, concurrency=2)
    def few(params, context):
        with at_it("few", context):
            time.sleep(0.02)
"""
ASYNC = (
    PLAIN.replace("    def ", "    async def ")
    .replace("time.sleep", "await asyncio.sleep")
    .replace('until_told("go on")', 'await asyncio.to_thread(until_told, "go on")')
)
both_kinds = pytest.mark.parametrize("source", [PLAIN, ASYNC], ids=["plain", "async"])


@both_kinds
def test_a_slow_handler_holds_up_no_other(server: Server, commands: Commands, source: str) -> None:
    shop = Shop(server, commands, source)
    shop.start()
    shop.send("Slow", "slow")
    shop.begun(1)
    slow = slowness()
    sent_ms = {}
    for saga_id in numbered("s", 30):
        sent_ms[saga_id] = int(time.time() * 1000)
        shop.send("Do", saga_id)
        until(lambda: len(shop.replies()) >= len(sent_ms), what=f"{saga_id} is answered")
    waited_ms = sorted(came_ms - sent_ms[body["saga_id"]] for came_ms, body in shop.replies())
    # Not the half second of a blocking read, nor the time of another handler.
    assert waited_ms[len(waited_ms) // 2] < 150 * max(slow, slowness())
    assert "slow" not in shop.listed("done")
    shop.redis.set("go on", 1)
    assert len(shop.answered(31)) == 31


@both_kinds
def test_no_more_run_at_once_than_the_process_and_each_command_allow(
    server: Server, commands: Commands, source: str
) -> None:
    shop = Shop(server, commands, source)
    shop.send("Few", *numbered("few", 30))
    shop.send("Do", *numbered("s", 60))
    shop.start()
    shop.answered(90)
    assert shop.most("few") == 2
    assert 2 <= shop.most("do") <= 4
    assert len(shop.listed("begun")) == 90
    assert until(shop.nothing_is_left, what="all is acknowledged")


def test_a_command_with_a_limit_is_left_to_others(server: Server, commands: Commands) -> None:
    """While one process runs as many of these commands as the limit allows, it holds no more than it could run."""
    shop = Shop(server, commands, PLAIN.replace("time.sleep(0.02)", 'until_told("go on")'))
    shop.send("Few", *numbered("few", 12))
    first = shop.start()
    shop.begun(2)
    second = shop.start()
    begun = Counter(int(line.split()[0]) for line in shop.begun(4))
    assert begun == {first.pid: 2, second.pid: 2}
    shop.redis.set("go on", 1)
    shop.answered(12)
    assert shop.most("few") == 2


def test_a_hundred_async_handlers_wait_at_once(server: Server, commands: Commands) -> None:
    shop = Shop(
        server,
        commands,
        """
        service = Service("work", concurrency=100)

        @service.command("Do", compensation=None)
        async def do(params, context):
            redis.rpush("begun", context.saga_id)
            while not redis.exists("go on"):
                await asyncio.sleep(0.05)
        """,
    )
    process = shop.start()
    shop.send("Do", *numbered("s", 100))
    shop.begun(100)
    threads = subprocess.run(
        ["ps", "-o", "nlwp=", "-p", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout
    assert int(threads) < 20
    shop.redis.set("go on", 1)
    shop.answered(100)


def test_copies_of_a_command_run_one_at_a_time_in_a_process(server: Server, commands: Commands) -> None:
    source = PLAIN.replace('at_it("do", context)', "at_it(context.saga_id, context)").replace("=4", "=8")
    shop = Shop(server, commands, source)
    for _ in range(5):
        shop.send("Do", *numbered("s", 10))
    shop.start()
    replies = shop.answered(50)
    assert Counter(reply["saga_id"] for reply in replies) == dict.fromkeys(numbered("s", 10), 5)
    assert {shop.most(saga_id) for saga_id in numbered("s", 10)} == {1}
    assert until(shop.nothing_is_left, what="all is acknowledged")


@both_kinds
def test_what_a_killed_process_had_in_hand_is_done_by_another(server: Server, commands: Commands, source: str) -> None:
    shop = Shop(server, commands, source.replace("lease_ms=2000", "lease_ms=500"))
    victim = shop.start()
    shop.send("Slow", *numbered("slow", 4))
    shop.begun(4)
    shop.send("Do", *numbered("s", 20))
    victim.kill()
    victim.wait()
    shop.redis.set("go on", 1)
    shop.start()
    shop.answered(24)
    calls = Counter(line.split()[1] for line in shop.listed("begun"))
    assert calls == dict.fromkeys(numbered("slow", 4), 2) | dict.fromkeys(numbered("s", 20), 1)
    assert until(shop.nothing_is_left, what="all is acknowledged")


@both_kinds
def test_sigterm_lets_handlers_finish_and_hands_the_rest_to_others_at_once(
    server: Server, commands: Commands, source: str
) -> None:
    # The lease is a minute, so nobody takes over what is not handed back.
    shop = Shop(server, commands, source.replace("lease_ms=2000", "lease_ms=60_000"))
    leaver = shop.start()
    shop.send("Slow", *numbered("slow", 4))
    shop.begun(4)
    shop.send("Do", *numbered("s", 20))
    leaver.send_signal(signal.SIGTERM)
    shop.start()
    shop.answered(20)
    assert leaver.poll() is None
    shop.redis.set("go on", 1)
    assert leaver.wait(60) == 0
    shop.answered(24)
    assert Counter(line.split()[1] for line in shop.listed("begun")).most_common(1)[0][1] == 1
    assert until(shop.nothing_is_left, what="all is acknowledged")


@both_kinds
def test_a_handler_that_does_not_end_is_ended_with_its_process_and_handed_to_others(
    server: Server, commands: Commands, source: str
) -> None:
    shop = Shop(server, commands, source.replace("lease_ms=2000", "lease_ms=60_000"))
    hanging = shop.start("--grace", "0.3", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    shop.send("Slow", "slow")
    shop.begun(1)
    hanging.send_signal(signal.SIGTERM)
    assert hanging.wait(60) == 1
    assert hanging.stderr is not None
    assert b"handlers: 1 still running 0.3 s after" in hanging.stderr.read()
    shop.redis.set("go on", 1)
    shop.start()
    shop.answered(1)
    assert len(shop.listed("begun")) == 2


def test_a_handler_that_does_not_end_is_ended_with_its_process_after_a_fault_too(
    server: Server, commands: Commands
) -> None:
    shop = Shop(server, commands, PLAIN.replace("concurrency=4, ", ""))
    hanging = shop.start("--grace", "0.3", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    shop.send("Slow", "slow")
    shop.begun(1)
    shop.redis.acl_setuser("default", enabled=True, commands=["-xreadgroup"])
    try:
        assert hanging.wait(60) == 1
    finally:
        shop.redis.acl_setuser("default", enabled=True, categories=["+@all"])
    assert hanging.stderr is not None
    said = hanging.stderr.read()
    assert b"ends by NoPermissionError: " in said
    assert b"handlers: 1 still running 0.3 s after that" in said


@pytest.mark.own_server
@both_kinds
def test_handlers_outlive_a_restart_of_the_broker(server: OwnServer, commands: Commands, source: str) -> None:
    # Its data are on another server: the handlers know nothing about it.
    source = source.replace("with at_it", "if True: #").replace('until_told("go on")', "time.sleep(0.01)")
    shop = Shop(server, commands, source.replace("lease_ms=2000", "lease_ms=1000"))
    process = shop.start()
    for half in ("a", "b", "c"):
        shop.send("Do", *numbered(half, 60))
        shop.answered(1)
        server.kill()
        server.start()
    until(
        lambda: {body["saga_id"] for _, body in shop.replies()} >= {*numbered("a", 60), *numbered("c", 60)}, what="all"
    )
    assert until(shop.nothing_is_left, what="all is acknowledged")
    assert process.poll() is None


@pytest.mark.slow
@pytest.mark.own_server
def test_a_service_that_hangs_or_loses_its_broker_goes_unhealthy_and_a_slow_one_does_not(
    server: OwnServer, commands: Commands
) -> None:
    shop = Shop(server, commands, PLAIN.replace("concurrency=4, ", ""))
    health = commands.folder / "healthy"
    health.touch()
    os.utime(health, (1, 1))  # a file that an earlier process left

    def is_healthy() -> bool:
        try:
            return time.time() - health.stat().st_mtime < 60
        except FileNotFoundError:  # the process has just removed the one before it
            return False

    def is_touched() -> bool:
        if touched := is_healthy():
            os.utime(health, (1, 1))
        return touched

    process = shop.start("--health-file", str(health), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until(is_healthy, what="it has heard from the broker")
    shop.send("Slow", "slow")
    shop.begun(1)
    for _ in range(2):
        os.utime(health, (1, 1))
        until(is_healthy, what="it is healthy, though its only handler runs on")
    process.send_signal(signal.SIGSTOP)
    until_no_more(is_touched, within_s=1.6, what="it touches its health file, though it hangs")
    process.send_signal(signal.SIGCONT)
    until(is_healthy, what="it is back")
    server.pause()
    until_no_more(is_touched, within_s=1.6, what="it touches its health file, though nobody answers")
    server.resume()
    until(is_healthy, what="the broker is back")
    shop.redis.set("go on", 1)
    shop.answered(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not health.exists()


def test_a_worker_has_a_health_file_too(server: Server, commands: Commands) -> None:
    health = commands.folder / "healthy"
    process = commands.quiet("worker", "--health-file", str(health), env={"REDIS_URL": server.url})
    until(health.exists, what="it has heard from the broker")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not health.exists()


@pytest.mark.parametrize(
    "command",
    [["worker"], ["service", SAMPLES[0]], ["service", SAMPLES[0], "--reload"]],
    ids=["worker", "service", "reload"],
)
def test_a_health_file_that_cannot_be_written_is_told_in_one_line(
    server: Server, commands: Commands, command: list[str]
) -> None:
    done = commands.run(*command, "--health-file", "/no/such/folder/healthy", REDIS_URL=server.url)
    assert done.returncode == 1
    complaint = "Error: cannot write --health-file /no/such/folder/healthy: No such file or directory\n"
    assert done.stderr == complaint


def test_a_service_with_reload_starts_again_when_its_code_changes(server: Server, commands: Commands) -> None:
    def version(number: int) -> str:
        return f'service = Service("work")\nservice.command("Do", compensation=None)(lambda params, context: {number})'

    shop = Shop(server, commands, version(1))

    def said(text: str) -> bool:
        return text in (commands.folder / "log").read_text()

    def child() -> int:
        return int(subprocess.check_output(["pgrep", "-P", str(parent.pid)]))

    with (commands.folder / "log").open("wb") as log:
        parent = shop.start("--reload", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    shop.send("Do", "s1")
    assert shop.answered(1)[-1]["result"] == 1
    module, old = commands.folder / "shop.py", child()
    # Saved again within the same second, with the same length: Python takes its bytecode for that of the new one.
    saved = commands.folder / "shop.new"
    saved.write_text(PREAMBLE + version(2))
    shutil.copystat(module, saved)
    saved.replace(module)
    until(lambda: said("shop.py changed; starting shop:service again"), what="it has seen the change")
    until(lambda: not alive(old), what="nothing runs the old code")
    shop.send("Do", "s2")
    assert shop.answered(2)[-1]["result"] == 2
    module.write_text("def\n")
    until(lambda: said("waiting for the next change"), what="it has met the error")
    assert said("Error: cannot import shop: SyntaxError")
    assert parent.poll() is None
    module.write_text(PREAMBLE + version(3))
    shop.send("Do", "s3")
    assert shop.answered(3)[-1]["result"] == 3
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(60) == 0
    assert shop.nothing_is_left()
