"""Everything that reaches the broker through Sentinels goes on at the new master by itself."""

import asyncio
import html
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from sagastream import AsyncSagaClient
from sagastream.broker.connection import connect
from sagastream.broker.failures import is_outage
from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from sagastream.store import lineage
from sagastream.store.roles import Role
from support.processes import Commands, Talk
from support.scenes import do
from support.sentinels import SentinelSet
from support.servers import KINDS, free_port
from support.stores import KEYS
from support.users import Users
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

FAILOVER = (Path(__file__).parents[2] / "docs" / "failover.md").read_text()

#: A service that keeps its effects where its own client of the broker leads to.
SHOP = """
from sagastream import Service, connect

service = Service("shop", lease_ms=2000)


@service.command("Do", compensation="Undo")
def do(params, context):
    with connect() as db:
        db.hset("effects", context.key, params)
    return params


@service.command("Pack", compensation="Undo", via="rq", queue="parcels")
def pack(params, context):
    return do(params, context)


@service.compensation("Undo")
def undo(params, context):
    pass
"""


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.redis] if kind == "redis" else []) for kind in KINDS])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SentinelSet]:
    made = SentinelSet(request.param, tmp_path)
    try:
        yield made
    finally:
        made.stop()


def steps(*params: Any) -> list[Any]:
    return [do(one, service="shop") for one in params]


def begun(client: SagaClient, saga_id: str, asked: Any = None) -> None:
    """Begin it, again after each failure that passes: the client tells of an outage, and does not wait for its end."""

    def accepted() -> bool:
        try:
            client.begin(saga_id, asked or steps(1, 2))
        except redis.RedisError as error:
            if not is_outage(error):
                raise
            return False
        return True

    until(accepted, what="it is accepted")


async def begun_in_loop(client: AsyncSagaClient, saga_id: str) -> None:
    while True:
        try:
            await client.begin(saga_id, steps(1))
        except redis.RedisError as error:
            if not is_outage(error):
                raise
            await asyncio.sleep(0.05)
        else:
            return


def said_at_its_end(process: "subprocess.Popen[bytes]") -> list[str]:
    process.terminate()
    _, err = process.communicate(timeout=60)
    return err.decode().splitlines()


def moved(watched: SentinelSet, lines: list[str]) -> list[str]:
    return [line for line in lines if f"the master mymaster is at {watched.new_master} now" in line]


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["killed", "paused"])
def test_workers_services_and_clients_go_on_at_the_new_master(
    watched: SentinelSet, commands: Commands, ends: str
) -> None:
    (commands.folder / "shop.py").write_text(SHOP)
    env = {"REDIS_URL": watched.url}
    devnull = subprocess.DEVNULL
    processes = [
        commands.start(*arguments, env=env, stdout=devnull) for arguments in (("worker",), ("service", "shop:service"))
    ]

    async def in_loop(blocking: SagaClient) -> None:
        """A client in an event loop, which waits for a saga while the master changes."""
        async with AsyncSagaClient(watched.url) as client:
            await begun_in_loop(client, "loop-before")
            assert (await client.wait("loop-before", 60)).status is SagaStatus.COMPLETED
            await client.begin("later", steps(1), start_at=datetime.now(UTC) + timedelta(days=1))
            waits = asyncio.create_task(client.wait("later", 120))
            await asyncio.to_thread(end)
            await asyncio.gather(asyncio.to_thread(begun, blocking, "after"), begun_in_loop(client, "loop-after"))
            assert (await client.wait("loop-after", 60)).status is SagaStatus.COMPLETED
            await client.cancel("later", "enough", 60)
            assert (await waits).status is SagaStatus.ABORTED

    def end() -> None:
        watched.wait()
        if ends == "killed":
            watched.kill_master()
        else:
            watched.pause_master()

    with SagaClient(watched.url) as client:
        begun(client, "before")
        assert client.wait("before", 60).status is SagaStatus.COMPLETED
        asyncio.run(in_loop(client))
        assert client.wait("after", 60).status is SagaStatus.COMPLETED
        if ends == "paused":
            watched.resume_master()
            for n in range(3):
                begun(client, f"resumed-{n}")
                assert client.wait(f"resumed-{n}", 60).status is SagaStatus.COMPLETED
    with connect(watched.replica.url) as store:
        assert store.hexists("effects", "after/2/transaction")
    for process in processes:
        lines = said_at_its_end(process)
        assert len(moved(watched, lines)) == 1, lines
        assert sum("the broker is away (" in line for line in lines) == 1, lines
        assert sum("the broker is back" in line for line in lines) == 1, lines


def page(url: str) -> str:
    """What is at this url; empty if it cannot be told now."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@pytest.mark.slow
def test_all_other_programs_go_on_after_a_planned_switch(watched: SentinelSet, commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(SHOP)
    env = {"REDIS_URL": watched.url}
    of_pages, of_metrics = free_port(), free_port()
    for arguments in (
        ("worker",),
        ("service", "shop:service"),
        ("rq-worker", "shop:service"),
        ("dashboard", "--port", str(of_pages)),
        ("metrics", "--port", str(of_metrics)),
    ):
        commands.quiet(*arguments, env=env)
    talk = Talk(commands.start("bridge", "--outcomes", env=env, stderr=subprocess.DEVNULL))

    def ends(saga_id: str) -> None:
        body = {"type": "saga_begin", "saga_id": saga_id, "msg_id": 1, "steps": [do(1, "Pack", "shop")]}
        talk.say("ann", body)
        assert talk.hear()[2]["status"] == "COMPLETED"
        until(lambda: saga_id in page(f"http://127.0.0.1:{of_pages}/sagas"), what="the dashboard shows it")
        until(
            lambda: "sagastream_store_up 1" in page(f"http://127.0.0.1:{of_metrics}/metrics"), what="metrics are told"
        )

    ends("before")
    doctor = commands.run("doctor", **env).stdout
    assert f"ok        replicas      in step: {watched.new_master}, " in doctor
    assert "warning   replicas      min-replicas-to-write is 0" in doctor
    assert "ok        sentinels     3 of 3 that the url names answer: the master is at " in doctor
    watched.want_replicas()  # the Sentinels tell the former master last; what it takes until then is lost
    watched.switch()
    until(lambda: watched.at_new_master, what="the replica is the master")
    ends("after")
    items = page(f"http://127.0.0.1:{of_pages}/sagas/after").split("</li>")
    look = next(html.unescape(re.sub("<[^>]+>", "", item)).splitlines()[-1] for item in items if "HGETALL" in item)
    done = subprocess.run(["bash", "-c", look], capture_output=True, text=True, timeout=60, check=True)
    assert "COMPLETED" in done.stdout, (look, done)
    assert "  after\n" in commands.run("list", **env).stdout
    assert f"the master is at {watched.new_master}; 3 watch it, quorum 2" in commands.run("doctor", **env).stdout
    with connect(watched.replica.url) as store:
        assert lineage.losses(store, KEYS) == []
    for number in range(3):
        watched.kill_sentinel(number)
    done = commands.run("show", "after", **env)
    asked = ", ".join(f"127.0.0.1:{port}" for port in watched.sentinels)
    told = f"no Sentinel leads to the master mymaster: {asked} could not be asked: nobody listens there"
    assert (done.returncode, done.stderr) == (1, f"Error: the broker does not answer: {told}\n")


@pytest.mark.slow
def test_a_begin_waits_while_the_sentinels_have_no_master(watched: SentinelSet, commands: Commands) -> None:
    env = {"REDIS_URL": watched.url}
    commands.run("init", **env)
    watched.wait()
    watched.master.kill()  # the Sentinels are patient, so that it is down for long
    body = json.dumps({"type": "saga_begin", "saga_id": "s1", "steps": [do(1)]})
    done = commands.run("begin", "-", "--timeout", "1", given=body, **env)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, "the saga was not begun within 1 s: the broker does not answer: no Sen" in last) == (
        1,
        True,
    )
    done = commands.run("show", "s1", **env)  # other commands end at once
    assert (done.returncode, "waiting" in done.stderr, "no Sentinel leads to" in done.stderr) == (1, False, True)
    process = commands.start("begin", "-", env=env)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(body.encode())
    process.stdin.close()
    assert b"waiting" in process.stderr.readline()
    watched.kill_master()
    assert process.wait(60) == 0
    assert "the broker is back" in process.stderr.read().decode()


def test_a_service_in_javascript_goes_on_at_the_new_master(
    watched: SentinelSet, commands: Commands, node_sample: Path
) -> None:
    """Its own client, too: the sample keeps its notifications in the store."""
    env = {"REDIS_URL": watched.url}
    commands.quiet("worker", env=env)
    service = subprocess.Popen(
        ["node", "notification.mjs"], cwd=node_sample, env=commands.environment(**env), stderr=subprocess.PIPE
    )
    commands.running.append(service)
    step = do({"to": "ann@example.com", "text": "hello"}, "SendNotification", "notification")
    with SagaClient(watched.url) as client:
        begun(client, "before", [step])
        assert client.wait("before", 60).status is SagaStatus.COMPLETED
        watched.wait()
        watched.kill_master()
        begun(client, "after", [step])
        assert client.wait("after", 60).status is SagaStatus.COMPLETED
    lines = said_at_its_end(service)
    assert service.returncode == 0
    told = [sum(what in line for line in lines) for what in ("Redis is away (", "Redis is back")]
    assert told == [1, 1], lines


def test_the_master_and_the_sentinels_have_users_of_their_own(watched: SentinelSet, commands: Commands) -> None:
    (rule,) = re.findall(r"`ACL SETUSER NAME on >secret (.*)`", FAILOVER)
    for port in watched.sentinels:
        with redis.Redis(port=port) as sentinel:
            sentinel.execute_command("ACL", "SETUSER", "looks", "on", ">secret", *rule.split())
    with SagaClient(watched.url) as client:
        begun(client, "first")  # it makes the store
    for role in (Role.CLIENT, Role.DOCTOR):
        Users(watched.master).url(role)
    named = watched.url.removeprefix("redis+sentinel://") + "?sentinel_username=looks&sentinel_password="
    with SagaClient(f"redis+sentinel://client:secret@{named}secret") as client:
        client.begin("s1", steps(1))
        assert client.get("s1") is None  # no worker runs
    doctor = commands.run("doctor", REDIS_URL=f"redis+sentinel://doctor:secret@{named}secret").stdout
    assert "ok        sentinels     3 of 3 that the url names answer" in doctor
    for url, wrong in (
        (
            f"redis+sentinel://client:secret@{named}guess",
            "no Sentinel leads to .*; look at sentinel_username and sentinel_password in REDIS_URL$",
        ),
        (
            f"redis+sentinel://client:guess@{named}secret",
            "the broker refuses the login: .*; look at the user and the password in REDIS_URL$",
        ),
    ):
        done = commands.run("show", "s1", REDIS_URL=url)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert re.match(f"Error: {wrong}", done.stderr), done
        assert "guess" not in done.stderr
