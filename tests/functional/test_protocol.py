"""What docs/protocol.md tells a person to type, word for word, on real servers."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import redis

from sagastream import Service
from sagastream.broker.connection import connect
from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import StepStatus
from sagastream.service.runner import ServiceRunner
from sagastream.store import published
from support.page import PAGE, Shell, shell
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

TILL = ONLY.commands("till")


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


@pytest.fixture
def bash(server: Server, tmp_path: Path) -> Shell:
    return Shell(server, tmp_path)


def waiting_for_till(scene: Scene) -> None:
    """The saga of the page. Nobody has taken its first command."""
    scene.begin("o-1", do({"amount": 5}, "ChargeCard", "till"))
    scene.turns_until(lambda: scene.redis.xlen(TILL) == 1)


def ended(scene: Scene) -> SagaState:
    def has_ended() -> bool:
        state = scene.client.get("o-1")
        return state is not None and state.ended

    scene.turns_until(has_ended)
    state = scene.client.get("o-1")
    assert state is not None
    return state


@pytest.mark.parametrize("held", [False, True], ids=["nobody has it", "its holder has died"])
def test_a_person_answers_a_command_with_ten_lines_of_redis_cli(scene: Scene, bash: Shell, held: bool) -> None:
    [script] = shell("Answering by hand")
    assert len(script.splitlines()) == 10
    waiting_for_till(scene)
    sent: Any = scene.redis.xrange(TILL)
    if held:
        scene.redis.xgroup_create(TILL, "till", id="0")
        scene.redis.xreadgroup("till", "victim", {TILL: ">"})
        scene.redis.xclaim(TILL, "till", "victim", 0, [sent[0][0]], idle=60_000)
        [claim] = re.findall(r"`(redis-cli XAUTOCLAIM .*?)`", PAGE)
        script = re.sub(r"redis-cli XREADGROUP .*? \|", lambda _: f"{claim} |", script)
    said = bash.run(script).splitlines()
    assert json.loads(said[said.index("body") + 1])["type"] == "ChargeCard"
    state = ended(scene)
    assert state.status is SagaStatus.COMPLETED
    assert state.steps[0].result == b'{"payment_id":"by hand"}'
    # It is recorded too: if the command comes again, no handler runs.
    calls: list[str] = []
    service = Service("till")
    service.command("ChargeCard", compensation=None)(lambda params, context: calls.append(context.key))
    scene.redis.xadd(TILL, sent[0][1])
    ServiceRunner(scene.broker, service, scene.stop).turn(block_ms=1)
    summary: Any = scene.redis.xpending(TILL, "till")
    assert (calls, scene.redis.xlen(TILL), summary["pending"]) == ([], 0, 0)


def test_a_person_undoes_a_step_with_the_same_lines(scene: Scene, bash: Shell) -> None:
    """With the two changes that the page describes."""
    [script] = shell("Answering by hand")
    [key, tombstone] = re.findall(r'`(key=\S+)`, and `"(HSET .*?)"`', PAGE, re.DOTALL)[0]
    script = script.replace("key=o-1/1/transaction", key).replace("ChargeCard", "RefundCard")
    script = script.replace("printf '%s\\n' MULTI", f"printf '%s\\n' MULTI \"{tombstone}\"")
    script = script.replace(""","result":'$result""", "'").replace("""{"payment_id":"by hand"}""", "")
    published.publish(scene.redis, KEYS, "till", {"ChargeCard": "RefundCard"})
    scene.begin("o-1", do({"amount": 5}, "ChargeCard", "till"), do("fail"))
    scene.turns_until(lambda: scene.redis.xlen(TILL) == 1)
    command: Any = scene.redis.xrange(TILL)
    scene.redis.xdel(TILL, command[0][0])
    scene.redis.xadd(ONLY.replies("till"), {"body": '{"type":"ChargeCard_ok","saga_id":"o-1","step":1}'})

    def is_asked_to_undo() -> bool:
        scene.runner.turn(block_ms=1)
        return scene.redis.xlen(TILL) == 1

    scene.turns_until(is_asked_to_undo)
    bash.run(script)
    state = ended(scene)
    assert (state.status, state.steps[0].status) == (SagaStatus.ABORTED, StepStatus.COMPENSATED)
    records = ONLY.done("till", state.begun_ms)
    assert scene.redis.hget(records, "o-1/1/transaction/(void)") == b"1"
    assert scene.redis.hget(records, "o-1/1/compensation/RefundCard") == b"ok "


def test_without_the_scripts_a_reply_is_one_transaction(scene: Scene) -> None:
    [block] = re.findall(r"\n    MULTI\n(.*?)    EXEC\n", PAGE, re.DOTALL)
    waiting_for_till(scene)
    scene.redis.xgroup_create(TILL, "till", id="0")
    entry: Any = scene.redis.xreadgroup("till", "me", {TILL: ">"})
    entry_id = entry[0][1][0][0].decode()
    transaction = scene.redis.pipeline(transaction=True)
    for line in block.replace(" ID\n", f" {entry_id}\n").replace(",…}", ',"saga_id":"o-1","step":1}').splitlines():
        transaction.execute_command(*line.split())  # type: ignore[no-untyped-call]
    transaction.execute()
    assert ended(scene).status is SagaStatus.COMPLETED
    assert scene.redis.xlen(TILL) == 0


def test_the_two_calls_record_reply_and_acknowledge(scene: Scene, bash: Shell) -> None:
    [copy], [calls] = shell("A service in any language"), shell("The two calls")
    bash.run(copy)
    waiting_for_till(scene)
    said = bash.run(calls).splitlines()
    assert said[-1] == ""  # nothing was overruled
    state = ended(scene)
    assert state.status is SagaStatus.COMPLETED
    assert state.steps[0].result == b'{"payment_id":"p1"}'
    assert scene.redis.xlen(TILL) == 0
    hour = int(state.begun_ms / 3600_000)
    record: Any = scene.redis.hget(f"saga:{{0}}:done:till:{hour}", "o-1/1/transaction/ChargeCard")
    assert record == b'ok {"payment_id":"p1"}'


def test_a_saga_is_begun_with_redis_cli(scene: Scene, bash: Shell) -> None:
    [script] = shell("Beginning a saga")
    for _ in range(2):
        bash.run(script)
    scene.turns_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    assert scene.redis.xlen(TILL) == 1
    assert scene.redis.xlen(ONLY.quarantine) == 0


SHOP = textwrap.dedent("""
    from sagastream import Service

    service = Service("notification")


    @service.command("Do", compensation="Undo")
    def do(params, context):
        return params


    @service.compensation("Undo")
    def undo(params, context):
        pass
""")


def test_a_service_works_as_the_user_of_the_page_and_can_do_nothing_else(
    server: Server, commands: Commands, bash: Shell
) -> None:
    for script in shell("A user of its own"):
        bash.run(script)
    url = server.url.replace("unix://", "unix://notification:secret@")
    (commands.folder / "shop.py").write_text(SHOP)
    refused = commands.run("service", "shop:service", REDIS_URL=url)
    assert refused.stderr.endswith("there is no store saga yet, and this user may not make it: start a worker first\n")
    commands.quiet("worker", env={"REDIS_URL": server.url})
    sagas = SagaClient(server.broker())
    until(lambda: sagas._redis.exists(KEYS.store), what="the worker makes the store")
    service = commands.start("service", "shop:service", env={"REDIS_URL": url})
    sagas.begin("s1", [do(1, "Do", "notification"), do(2, "Fly", "notification")])
    assert sagas.wait("s1", 60).reason == "Step 2 failed: unknown_command: service notification has no command Fly"
    sagas._redis.xadd(ONLY.commands("notification"), {"body": "{"})
    until(
        lambda: sagas._redis.xlen(ONLY.quarantine_of("notification")),
        what="an entry that is not a command is set aside",
    )
    service.terminate()
    said = service.communicate(timeout=60)[1].decode()
    assert service.returncode == 0
    assert "NOPERM" not in said
    with connect(url) as client:
        for forbidden in (
            ["XADD", ONLY.requests, "*", "body", "{}"],
            ["XADD", ONLY.commands("payment"), "*", "body", "{}"],
            ["XREADGROUP", "GROUP", "orchestrator", "me", "STREAMS", ONLY.replies("notification"), ">"],
            ["XADD", ONLY.replies("payment"), "*", "body", "{}"],
            ["XADD", ONLY.quarantine, "*", "body", "{}"],
            ["HSET", KEYS.store, "partitions", "2"],
            ["HGETALL", ONLY.saga("s1")],
            ["XRANGE", ONLY.commands("notification"), "-", "+"],
            ["DEL", ONLY.commands("notification")],
            ["EVAL", "return redis.call('XRANGE', KEYS[1], '-', '+')", 1, ONLY.replies("notification")],
            ["EVAL", "return redis.call('XDEL', KEYS[1], '1-1')", 1, ONLY.replies("notification")],
            ["KEYS", "*"],
            ["FLUSHALL"],
        ):
            with pytest.raises(redis.ResponseError, match=r"permission|The user executing the script can't"):
                client.execute_command(*forbidden)
