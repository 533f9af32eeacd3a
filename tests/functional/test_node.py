"""The sample service in JavaScript, with the real orchestrator: the protocol is enough to write a service."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from sagastream.client import requests
from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from sagastream.core.service_rules import MAX_TAKEOVERS, MAX_UNDOS
from sagastream.store import layout
from sagastream.store.quarantine import Quarantine
from support.page import Shell, shell
from support.processes import SAMPLES, Commands
from support.scenes import do
from support.servers import OwnServer, Server
from support.stores import KEYS, ONLY, divided, in_each
from support.switches import SWITCHES, Pair
from support.values import TRACEPARENT
from support.waiting import until
from support.worst import INVALID, VALID

pytestmark = pytest.mark.both_in_soak

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "stubs" / "node-notification"
OUTBOX = "stubs:{notification}:outbox"

#: A service on the sample's runtime. It does what its params say, and writes down what it did.
PROBE = """
import { connect } from './sagastream/broker.mjs'
import { stringify } from './sagastream/json.mjs'
import { Reject, Service } from './sagastream/service.mjs'

const machine = Date.now
Date.now = () => machine() + 60_000 // the clock of this machine is a minute ahead
const service = new Service('work', { leaseMs: Number(process.env.LEASE_MS) })
const redis = connect()

service.command('Do', { compensation: 'Undo' }, async (params, context) => {
  const { key } = context
  const calls = await redis.rPush(`done ${key}`, String(process.pid))
  if (params === 'die' && calls === 1) process.kill(process.pid, 'SIGKILL')
  if (params === 'slow') await new Promise((next) => setTimeout(next, 200))
  if (params === 'always die') {
    await new Promise((next) => setTimeout(next, 50)) // the others begin, too
    process.kill(process.pid, 'SIGKILL')
  }
  if (params === 'reject') throw new Reject({ code: 7 })
  if (params === 'throw') throw new Error('no luck \\x1b[31m')
  if (params === 'not JSON') return { size: NaN }
  if (params === 'remaining') return context.remainingMs
  if (params === 'trace') return [context.traceparent ?? 'none', context.tracestate ?? 'none']
  if (params === 'inexact') return 2 ** 64
  if (params === 'too large') return 2n ** 64n
  if (params?.add) return { sum: [params.add + 1n] }
  if (params?.reject) throw new Reject(params)
  if (params === 'wait') while (!(await redis.exists('go on'))) await new Promise((next) => setTimeout(next, 5))
  return params
})

service.compensation('Undo', async (params, { transactionKey, result }) => {
  if (params === 'slowly') await new Promise((next) => setTimeout(next, 2000))
  await redis.rPush('undone', `${transactionKey} ${stringify([params, result])}`)
  if (params === 'stuck') throw new Reject('the bank is closed')
})

service.command('Ask', { compensation: null }, (params) => params)

if (process.env.RELEASE === 'newer') {
  service.command('Pack', { compensation: 'Unpack' }, (params) => redis.rPush('packed', params).then(() => params))
  service.compensation('Unpack', () => redis.rPush('packed', 'undone'))
}

await service.run()
redis.destroy()
"""


@pytest.fixture
def sample(node_sample: Path) -> Path:
    """The folder of the sample, with the probe in it."""
    (node_sample / "probe.mjs").write_text(PROBE)
    return node_sample


class Node:
    """Starts services in JavaScript, and ends those that are left."""

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder = folder
        self._url = server.url
        layout.check(broker := server.broker())  # a worker makes the store
        self._client = broker.client
        self.running: list[subprocess.Popen[str]] = []

    def start(
        self, script: str, url: str | None = None, lease_ms: int = 300, release: str = "older"
    ) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            ["node", script],
            cwd=self._folder,
            env=os.environ | {"REDIS_URL": url or self._url, "LEASE_MS": str(lease_ms), "RELEASE": release},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def probe(self, lease_ms: int = 300, release: str = "older") -> "subprocess.Popen[str]":
        """One process of the service `work`, once it is at work. The newer release of it has a command more."""
        there = len(consumers(self._client))
        process = self.start("probe.mjs", lease_ms=lease_ms, release=release)
        until(lambda: len(consumers(self._client)) > there, what="it joins the group")
        return process

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def node(sample: Path, server: Server) -> Iterator[Node]:
    running = Node(sample, server)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture
def client(server: Server) -> redis.Redis:
    return server.broker().client


def consumers(client: redis.Redis) -> list[str]:
    try:
        found: Any = client.xinfo_consumers(ONLY.commands("work"), "work")
    except redis.ResponseError:
        return []
    return [consumer["name"].decode() for consumer in found]


def deliver(
    client: redis.Redis,
    params: Any = None,
    /,
    *,
    compensating: bool = False,
    name: str | None = None,
    saga_id: str = "s1",
    **fields: Any,
) -> bytes:
    """A command for the service `work`, in step 1 of a saga."""
    body = {"type": name or "Undo", "saga_id": saga_id, "step": 1, "compensating": True}
    if not compensating:
        body = {"type": name or "Do", "saga_id": saga_id, "step": 1, "params": params}
    entry: dict[Any, Any] = {"body": json.dumps(body), "begun_ms": 1} | fields
    entry_id: Any = client.xadd(ONLY.commands("work"), entry)
    return bytes(entry_id)


def soon(client: redis.Redis) -> int:
    """A time by the broker's clock until which a process can begin with a command, and not much longer."""
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000 + 2000


def handed_back(client: redis.Redis) -> int:
    """How many commands any process may take over at once."""
    return len(client.xpending_range(ONLY.commands("work"), "work", "-", "+", 1000, idle=10**6))


def answers(client: redis.Redis, number: int, service: str = "work") -> list[str]:
    """The replies, once there are so many."""

    def told() -> list[str]:
        entries: Any = client.xrange(ONLY.replies(service))
        bodies = [(json.loads(fields[b"body"]), b"unknown" in fields) for _, fields in entries]
        return [
            f"{body['type']} {body.get('error', body.get('result', ''))}".strip() + (", unknown" if unknown else "")
            for body, unknown in bodies
        ]

    until(lambda: len(told()) >= number, what=f"{number} replies")
    return told()


def calls(client: redis.Redis) -> int:
    return int(client.llen("done s1/1/transaction"))


def undone(client: redis.Redis) -> list[str]:
    found: Any = client.lrange("undone", 0, -1)
    return [one.decode() for one in found]


def nothing_is_left(client: redis.Redis) -> bool:
    summary: Any = client.xpending(ONLY.commands("work"), "work")
    return summary["pending"] == 0 and client.xlen(ONLY.commands("work")) == 0


REFUSED = "Do_failed cancelled: Do came after its compensation"


# --- with the orchestrator


def test_sagas_of_python_and_javascript_steps_complete_and_are_undone(
    server: Server, client: redis.Redis, commands: Commands, node: Node
) -> None:
    commands.quiet("up", "--service", SAMPLES[0], env={"REDIS_URL": server.url})
    node.start("notification.mjs")
    reserve = {"transaction": "ReserveInventory", "service": "inventory", "params": {"sku": "abc123", "quantity": 1}}
    too_many = reserve | {"params": {"sku": "abc123", "quantity": 10**9}}
    notify = {
        "transaction": "SendNotification",
        "service": "notification",
        "params": {"to": "ann@example.org", "text": "Ordered – ü"},
    }
    misdirected = notify | {"params": {"to": "ann", "text": ""}}
    sagas = SagaClient(server.broker())
    stories: dict[str, Any] = {
        "done": [reserve, notify],
        "first": [notify, too_many],
        "last": [reserve, misdirected],
    }
    for saga_id, steps in stories.items():
        sagas.begin(saga_id, steps)
    states = {saga_id: sagas.wait(saga_id, 60) for saga_id in ("done", "first", "last")}
    assert states["done"].status is SagaStatus.COMPLETED
    assert states["done"].steps[1].result == b'{"notification_id":"n-done/2/transaction"}'
    assert states["first"].status is SagaStatus.ABORTED
    assert states["last"].reason == "Step 2 failed: no_such_address"
    outbox: Any = client.hgetall(OUTBOX)
    assert json.loads(outbox[b"done/2/transaction"]) == notify["params"]
    assert outbox[b"first/1/transaction"] == b"withdrawn"
    assert b"last/2/transaction" not in outbox
    assert len(Quarantine(client, KEYS)) == 0


def test_a_service_in_javascript_takes_part_in_a_graph_and_knows_nothing_of_it(
    server: Server, client: redis.Redis, commands: Commands, node: Node
) -> None:
    commands.quiet("up", "--service", SAMPLES[0], env={"REDIS_URL": server.url})
    node.start("notification.mjs")
    sagas = SagaClient(server.broker())
    reserve = {"transaction": "ReserveInventory", "service": "inventory"}
    notify = {"transaction": "SendNotification", "service": "notification"}
    text = {"$concat": ["reserved: ", {"$ref": "/steps/reserve/result/reservation_id"}]}
    steps: list[dict[str, Any]] = [
        reserve | {"id": "reserve", "after": [], "params": {"sku": "abc123", "quantity": 1}},
        notify | {"id": "hint", "after": [], "params": {"to": {"$ref": "/input/to"}, "text": "it may take a while"}},
        notify
        | {
            "id": "tell",
            "after": ["reserve", "hint"],
            "when": {"eq": [{"$ref": "/input/told"}, True]},
            "params": {"to": {"$ref": "/input/to"}, "text": text},
            "compensation_params": {"why": {"$ref": "/failure/reason"}},
        },
        {"id": "go", "wait": "go", "timeout_ms": 60_000},
        reserve
        | {
            "id": "more",
            "params": {
                "sku": "abc123",
                "quantity": {"$ref": "/input/more"},
                "after": {"$ref": "/steps/tell/result/notification_id", "default": None},
            },
        },
    ]
    for saga_id, given in {
        "done": {"more": 1},
        "undone": {"more": 10**9},
        "bypassed": {"more": 1, "told": False},
    }.items():
        saga_input = {"to": "ann@example.org", "told": True} | given
        body: Any = {"saga_id": saga_id, "input": saga_input, "steps": steps}
        sagas.begin_request(requests.to_begin(body))
        sagas.signal(saga_id, "go", None, 60)
    states = {saga_id: sagas.wait(saga_id, 60) for saga_id in ("done", "undone", "bypassed")}
    assert [str(state.status) for state in states.values()] == ["COMPLETED", "ABORTED", "COMPLETED"]
    assert states["done"].results[2] == {"notification_id": "n-done/3/transaction"}
    outbox: Any = client.hgetall(OUTBOX)
    told = f"reserved: {states['done'].results[0]['reservation_id']}"
    assert json.loads(outbox[b"done/3/transaction"]) == {"to": "ann@example.org", "text": told}
    assert [outbox[b"undone/2/transaction"], outbox[b"undone/3/transaction"]] == [b"withdrawn"] * 2
    assert b"bypassed/3/transaction" not in outbox


def test_a_command_whose_process_is_killed_is_taken_over(
    server: Server, client: redis.Redis, commands: Commands, node: Node
) -> None:
    processes = [node.probe(), node.probe()]
    commands.quiet("worker", env={"REDIS_URL": server.url})
    sagas = SagaClient(server.broker())
    sagas.begin("s1", [do("die"), do("reject")])
    state = sagas.wait("s1", 60)
    assert state.status is SagaStatus.ABORTED
    assert calls(client) == 2
    assert undone(client) == ['s1/1/transaction ["die","die"]']
    until(lambda: -signal.SIGKILL in [process.poll() for process in processes], what="one of them was killed")


@pytest.mark.own_server
def test_a_service_waits_while_redis_is_restarted(
    server: OwnServer, client: redis.Redis, commands: Commands, node: Node
) -> None:
    process = node.probe()
    commands.quiet("worker", env={"REDIS_URL": server.url})
    sagas = SagaClient(server.broker())
    sagas.begin("s1", [do("wait"), do("b")])
    until(lambda: calls(client), what="the handler runs")
    server.kill()
    server.start()
    client.set("go on", 1)
    assert sagas.wait("s1", 60).status is SagaStatus.COMPLETED
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert said.count("Redis is away (") == said.count("Redis is back") == 1


OUTAGE = """
import { SocketClosedUnexpectedlyError } from '@redis/client'
import { Patience } from './sagastream/broker.mjs'

const [reader, writer] = [{ isReady: true }, { isReady: true }]
const broker = { name: 'Redis', get isReady() { return reader.isReady && writer.isReady } }
const patience = new Patience(console.log, new AbortController().signal, broker)
const fails = () => { throw new SocketClosedUnexpectedlyError() }

async function failsOnce() {
  let calls = 0
  await patience.patiently(() => (calls++ === 0 ? fails() : undefined))
}

writer.isReady = false
await failsOnce() // the reader is back first
await failsOnce() // the writer is not: this is no second outage
writer.isReady = true
await patience.patiently(() => undefined)
await patience.patiently(() => undefined)
await failsOnce() // this is one
"""


def test_an_outage_is_told_of_once_even_if_one_connection_is_back_before_the_other(sample: Path) -> None:
    (sample / "outage.mjs").write_text(OUTAGE)
    ran = subprocess.run(["node", "outage.mjs"], cwd=sample, capture_output=True, text=True, timeout=60, check=True)
    away, back = "Redis is away (Socket closed unexpectedly); waiting", "Redis is back"
    assert ran.stdout.splitlines() == [away, back, away, back]


@pytest.mark.parametrize("how", SWITCHES)
def test_a_service_follows_its_address_to_the_new_master(
    request: pytest.FixtureRequest, tmp_path: Path, commands: Commands, node: Node, how: str
) -> None:
    """Its connections stay open, and lead to a server that is a replica by then."""
    with Pair(request.node.callspec.params["server"], tmp_path) as pair:
        process = node.start("probe.mjs", pair.url)
        commands.quiet("worker", env={"REDIS_URL": pair.url})
        sagas = SagaClient(pair.url)
        sagas.begin("s1", [do("a")])
        assert sagas.wait("s1", 60).status is SagaStatus.COMPLETED
        pair.switch(how)
        with contextlib.suppress(redis.ReadOnlyError):
            sagas.begin("s2", [do("b")])
        sagas.begin("s2", [do("b")])
        assert sagas.wait("s2", 60).status is SagaStatus.COMPLETED
        assert pair.unblock()
        sagas.begin("s3", [do("c")])
        assert sagas.wait("s3", 60).status is SagaStatus.COMPLETED
        sagas.close()
        process.terminate()
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0
        assert said.count("Redis is away (") == said.count("Redis is back") >= 1


# --- what the protocol asks of a service, command by command


def test_what_comes_again_is_answered_from_the_record(client: redis.Redis, node: Node) -> None:
    for params in ("a", "another", "a third"):
        deliver(client, params)
    node.probe()
    assert answers(client, 3) == ["Do_ok a"] * 3
    deliver(client, "much later")
    assert answers(client, 4) == ["Do_ok a"] * 4
    assert calls(client) == 1
    until(lambda: nothing_is_left(client), what="all is acknowledged")
    assert client.hget(ONLY.done("work", 1), "s1/1/transaction/Do") == b'ok "a"'


def test_a_command_that_comes_after_its_compensation_is_refused(client: redis.Redis, node: Node) -> None:
    node.probe()
    for _ in range(2):
        deliver(client, compensating=True)
    assert answers(client, 2) == ["Undo_ok", "Undo_ok"]
    deliver(client, "late")
    assert answers(client, 3)[2] == REFUSED
    assert (calls(client), len(undone(client))) == (0, 1)


def test_a_compensation_is_told_the_params_and_the_result(client: redis.Redis, node: Node) -> None:
    node.probe()
    deliver(client, compensating=True, params='{"a":[1]}', result='{"id":7}')
    answers(client, 1)
    assert undone(client) == ['s1/1/transaction [{"a":[1]},{"id":7}]']


@pytest.mark.parametrize(
    ("params", "answer", "times"),
    [
        ("reject", "Do_failed {'code': 7}", 1),
        ("throw", "Do_failed Error: no luck \\u{1b}[31m, unknown", 3),
        (
            "not JSON",
            "Do_failed the result of Do is unusable: NaN and infinities have no place in JSON, unknown",
            1,
        ),
        (
            "inexact",
            "Do_failed the result of Do is unusable: the integer 18446744073709552000 is not exact, unknown",
            1,
        ),
        (
            "too large",
            f"Do_failed the result of Do is unusable: the integer {2**64} does not fit into 64 bits, unknown",
            1,
        ),
    ],
)
def test_what_a_handler_makes_of_a_command_is_told(
    client: redis.Redis, node: Node, params: str, answer: str, times: int
) -> None:
    deliver(client, params)
    process = node.probe()
    assert answers(client, 1) == [answer]
    assert calls(client) == times
    process.terminate()
    assert "\x1b" not in process.communicate(timeout=60)[1]


#: An integer that a double cannot hold, and that JSON.parse would read as 3544790567247868000.
ACCOUNT: Final = 3544790567247868102


def replies(client: redis.Redis, number: int) -> list[bytes]:
    """The bodies of the replies, once there are so many."""
    until(lambda: client.xlen(ONLY.replies("work")) >= number, what=f"{number} replies")
    entries: Any = client.xrange(ONLY.replies("work"))
    return [fields[b"body"] for _, fields in entries]


@pytest.mark.parametrize(
    "params",
    [
        {"account": ACCOUNT},
        [[{"a": [ACCOUNT, -ACCOUNT, 2**64 - 1, -(2**63), 2**53 + 1]}]],
        ACCOUNT,
        [0.1, 0.30000000000000004, 5e-324, 1.7976931348623157e308, 1e23, -1.5, 2**53 - 1, 4503599627370495.5],
    ],
)
def test_every_number_that_a_handler_is_told_and_returns_is_exact(
    client: redis.Redis, node: Node, params: object
) -> None:
    node.probe()
    for number in (1, 2):  # the second one is answered from the record
        deliver(client, params)
        replies(client, number)
    deliver(client, compensating=True, params=json.dumps(params), result=json.dumps({"r": params}))
    for body in replies(client, 3)[:2]:
        assert str(json.loads(body)["result"]) == str(params)
    assert undone(client) == [f"s1/1/transaction {json.dumps([params, {'r': params}], separators=(',', ':'))}"]


def test_what_a_handler_computes_with_large_integers_is_exact(client: redis.Redis, node: Node) -> None:
    node.probe()
    deliver(client, {"add": ACCOUNT})
    deliver(client, {"reject": ACCOUNT}, saga_id="s2")
    assert sorted(map(json.loads, replies(client, 2)), key=itemgetter("saga_id")) == [
        {"type": "Do_ok", "saga_id": "s1", "step": 1, "result": {"sum": [ACCOUNT + 1]}},
        {"type": "Do_failed", "saga_id": "s2", "step": 1, "error": {"reject": ACCOUNT}},
    ]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("1e400", "the number 1e400 is more than a Number can hold"),
        ("0.12345678901234567890", "the number 0.12345678901234567890 is more than a Number can hold"),
        ("9007199254740993.0", "the number 9007199254740993.0 is more than a Number can hold"),
        ("-1e-999", "the number -1e-999 is more than a Number can hold"),
        ("1" + "0" * 100_000, f"the integer 1{'0' * 23}… does not fit into 64 bits"),
    ],
)
def test_a_number_that_the_service_cannot_hold_is_set_aside_and_never_rounded(
    client: redis.Redis, node: Node, number: str, reason: str
) -> None:
    node.probe()
    transaction = '{"type":"Do","saga_id":"s1","step":1,"params":{"a":[NUMBER]}}'.replace("NUMBER", number)
    compensation = '{"type":"Undo","saga_id":"s1","step":1,"compensating":true}'
    client.xadd(ONLY.commands("work"), {"body": transaction})
    client.xadd(ONLY.commands("work"), {"body": transaction.replace('"step":1', f'"step":{number}')})
    client.xadd(ONLY.commands("work"), {"body": compensation, "params": number})
    client.xadd(ONLY.commands("work"), {"body": compensation, "result": number})
    until(lambda: len(Quarantine(client, KEYS)) == 4, what="they are set aside")
    reasons = sorted(message.reason for message in Quarantine(client, KEYS).newest_first())
    assert reasons == [f"body: {reason}", f"body: {reason}", f"params: {reason}", f"result: {reason}"]
    assert (calls(client), undone(client), client.xlen(ONLY.replies("work"))) == (0, [], 0)


def test_a_failure_that_is_tried_again_is_not_recorded(client: redis.Redis, node: Node) -> None:
    node.probe()
    deliver(client, "reject", retried=1)
    answers(client, 1)
    deliver(client, "yes", retried=1, attempt=2)
    assert answers(client, 2) == ["Do_failed {'code': 7}", "Do_ok yes"]


def test_a_command_that_nobody_waits_for_any_more_is_not_begun(client: redis.Redis, node: Node) -> None:
    deliver(client, "late", not_after_ms=1)
    node.probe()
    [answer] = answers(client, 1)
    assert answer.startswith("Do_failed Do came ")
    assert answer.endswith(" ms too late, and was not begun, unknown")
    assert calls(client) == 0
    assert client.exists(ONLY.done("work", 1)) == 0  # nothing is in doubt


def test_the_time_that_remains_goes_by_the_clock_of_redis(client: redis.Redis, node: Node) -> None:
    time_now: Any = client.time()
    node.probe()
    deliver(client, "remaining", not_after_ms=time_now[0] * 1000 + 300_000)
    answer = answers(client, 1)[0].split()
    assert 200_000 < float(answer[1]) <= 300_000


def test_a_handler_is_told_the_trace_and_the_reply_names_it_too(client: redis.Redis, node: Node) -> None:
    later = TRACEPARENT.replace("00-", "01-", 1) + "-more"
    state = "a=1,b@c=x y"
    of_sagas = {  # what a command names, and what of it is passed on
        (None, state): ("none", "none"),
        (TRACEPARENT, None): (TRACEPARENT, "none"),
        (later, state): (TRACEPARENT, state),
        (TRACEPARENT, f"{state},c=\x1b"): (TRACEPARENT, "none"),
        (TRACEPARENT, ",".join([f"a={'x' * 250}"] * 3)): (TRACEPARENT, "none"),
        (TRACEPARENT, ""): (TRACEPARENT, "none"),
    } | {
        (wrong, state): ("none", "none")
        for wrong in (f"{TRACEPARENT}-more", TRACEPARENT.upper(), f"{TRACEPARENT}\n", "")
    }
    for number, given in enumerate(of_sagas):
        fields: dict[str, Any] = dict(zip(("traceparent", "tracestate"), given, strict=True))
        deliver(client, "trace", saga_id=f"s{number}", **{name: one for name, one in fields.items() if one is not None})
    node.probe()
    told = answers(client, len(of_sagas))
    expected = [*of_sagas.values()]
    assert sorted(told) == sorted(f"Do_ok {[*one]}" for one in expected)
    entries: Any = client.xrange(ONLY.replies("work"))
    sent = {
        json.loads(fields[b"body"])["saga_id"]: tuple(
            fields.get(name, b"none").decode() for name in (b"traceparent", b"tracestate")
        )
        for _, fields in entries
    }
    assert [sent[f"s{number}"] for number in range(len(of_sagas))] == expected


def test_what_is_no_command_is_set_aside_and_what_is_not_known_fails(client: redis.Redis, node: Node) -> None:
    bodies = [b"", b"{", b"\xff", b"[]", b'{"type":"Do"}', b'{"type":"Do","saga_id":"s1","step":0}', b"{" * 100_000]
    bodies.append(b'{"type":"Do","saga_id":"s1","step":1,"params":"\xff"}')
    for body in bodies:
        client.xadd(ONLY.commands("work"), {"body": body})
    deliver(client, "a", attempt="x")
    client.xadd(ONLY.commands("work"), {"body": b'{"type":"Fly","saga_id":"s1","step":1}'})
    node.probe()
    assert answers(client, 1) == ["Fly_failed unknown_command: service work has no command Fly"]
    until(lambda: nothing_is_left(client), what="all is acknowledged")
    set_aside = list(Quarantine(client, KEYS).newest_first())
    assert [message.body for message in reversed(set_aside)][: len(bodies)] == bodies
    assert set_aside[0].reason == "the field attempt must be a whole number"
    Quarantine(client, KEYS).replay(set_aside[0].id)
    until(lambda: len(Quarantine(client, KEYS)) == len(bodies) + 1, what="it is set aside again")


def test_what_only_the_other_release_has_is_left_to_it(client: redis.Redis, node: Node) -> None:
    """… and hides nothing that stands behind it."""
    older = node.probe()
    newer = node.probe(release="newer")
    newer.kill()
    newer.wait()
    for number in range(20):
        deliver(client, str(number), saga_id=f"p{number}", name="Pack")
    deliver(client, saga_id="undone", name="Unpack", compensating=True)
    until(lambda: handed_back(client) == 21, what="they are handed back")
    held = deliver(client, "a")
    until(lambda: client.xpending(ONLY.commands("work"), "work")["pending"] == 21, what="it is done")
    assert answers(client, 1) == ["Do_ok a"]
    deliver(client, "b", saga_id="s2")
    client.xgroup_createconsumer(ONLY.commands("work"), "work", "dead")
    client.xclaim(ONLY.commands("work"), "work", "dead", 0, [held], idle=60_000)
    assert answers(client, 2) == ["Do_ok a", "Do_ok b"]
    newer = node.probe(release="newer")
    assert sorted(answers(client, 23)) == sorted(
        ["Do_ok a", "Do_ok b", "Unpack_ok", *(f"Pack_ok {n}" for n in range(20))]
    )
    until(lambda: nothing_is_left(client), what="all is acknowledged")
    older.terminate()
    said = older.communicate(timeout=60)[1]
    assert said.count("has no Pack, which another release has: leaves all of it to that release") == 1


def test_what_only_the_other_release_has_is_undone_by_it(client: redis.Redis, node: Node) -> None:
    """The one that does not know the command must not say that nothing is left of it."""
    node.probe(release="newer").kill()
    node.probe()
    entry_id = deliver(client, "a", name="Pack")
    until(lambda: handed_back(client) == 1, what="it is handed back")
    client.hset(ONLY.done("work", 1), "s1/1/transaction/(void)", 1)
    client.xclaim(ONLY.commands("work"), "work", "dead", 0, [entry_id], idle=60_000)
    until(lambda: handed_back(client) == 1, what="it is handed back again")
    assert client.xlen(ONLY.replies("work")) == 0
    node.probe(release="newer")
    assert answers(client, 1) == ["Pack_failed cancelled: Pack came after its compensation"]
    assert client.lrange("packed", 0, -1) == [b"undone"]


@pytest.mark.parametrize("how", ["DESTROY", "SETID"])
def test_an_undo_that_is_owed_is_not_forgotten_with_the_group(client: redis.Redis, node: Node, how: str) -> None:
    stream = ONLY.commands("work")
    process = node.probe(lease_ms=60_000)
    process.send_signal(signal.SIGSTOP)
    client.xreadgroup("work", "dead", {stream: ">"}, block=1200)  # what the stopped process asked for is over
    deliver(client, "a")
    client.xreadgroup("work", "dead", {stream: ">"})  # it has its effect, and dies
    process.send_signal(signal.SIGCONT)
    deliver(client, "b", saga_id="s2")
    assert answers(client, 1) == ["Do_ok b"]
    client.hset(ONLY.done("work", 1), "s1/1/transaction/(void)", 1)
    if how == "DESTROY":
        client.xgroup_destroy(stream, "work")
    else:
        client.xgroup_setid(stream, "work", "0")
    assert answers(client, 2) == ["Do_ok b", "Do_failed cancelled: Do came after its compensation"]
    assert client.llen("undone") == 1


def test_a_later_attempt_of_what_is_not_known_is_in_doubt(client: redis.Redis, node: Node) -> None:
    """A process of another release may have the earlier one, and what it publishes may have been deleted."""
    node.probe()
    deliver(client, "a", name="Fly", attempt=2)
    assert answers(client, 1) == ["Fly_failed unknown_command: service work has no command Fly, unknown"]


def test_a_compensation_that_another_release_publishes_stays(client: redis.Redis, node: Node) -> None:
    client.hset(KEYS.published("work"), "Ask", "Unask")
    node.probe()
    assert client.hget(KEYS.published("work"), "Ask") == b"Unask"
    client.hset(KEYS.published("work"), "Ask", "?")
    node.probe()
    assert client.hget(KEYS.published("work"), "Ask") == b""
    client.hdel(KEYS.published("work"), "Ask")
    node.probe()
    assert client.hget(KEYS.published("work"), "Ask") == b""


def test_a_command_of_a_newer_format_is_left_alone(client: redis.Redis, node: Node) -> None:
    process = node.probe()
    deliver(client, "a", format=9)
    until(lambda: handed_back(client) == 1, what="it is handed back")
    deliver(client, "b", saga_id="s2")
    assert answers(client, 1) == ["Do_ok b"]
    assert (calls(client), len(Quarantine(client, KEYS)), handed_back(client)) == (0, 0, 1)
    process.terminate()
    assert "met format 9, which only a newer release knows" in process.communicate(timeout=60)[1]


def test_a_command_with_a_sealed_value_is_left_alone(client: redis.Redis, node: Node) -> None:
    process = node.probe()
    sealed = {"$sealed": {"key": "2026-11", "from": "1/params", "data": "AAAA"}}
    deliver(client, sealed)
    deliver(client, {"order": [1, sealed]}, saga_id="s2")
    deliver(client, compensating=True, saga_id="s3", params=json.dumps(sealed))
    deliver(client, compensating=True, saga_id="s4", params="1", result=json.dumps(sealed))
    until(lambda: handed_back(client) == 4, what="all of them are handed back")
    like = {"$sealed": {"key": "2026-11"}}
    deliver(client, like, saga_id="s5")  # which is no sealed value
    assert len(answers(client, 1)) == 1
    assert (calls(client), undone(client), len(Quarantine(client, KEYS)), handed_back(client)) == (0, [], 0, 4)
    process.terminate()
    assert process.communicate(timeout=20)[1].count("sealed with key 2026-11, and opens none") == 1


def test_a_record_of_a_newer_release_is_left_alone(client: redis.Redis, node: Node) -> None:
    process = node.probe()
    key, record = ONLY.done("work", 1), b'v9 failed "no"'
    client.hset(key, "s1/1/transaction/Do", record)
    deliver(client, "a")
    until(lambda: handed_back(client) == 1, what="it is handed back")
    deliver(client, "wait", saga_id="s2")
    until(lambda: client.llen("done s2/1/transaction"), what="a handler runs")
    client.hset(key, "s2/1/transaction/Do", record)
    client.set("go on", 1)
    until(lambda: handed_back(client) == 2, what="what it has done is handed back, too")
    assert (calls(client), undone(client), client.xlen(ONLY.replies("work"))) == (0, [], 0)
    assert client.hmget(key, "s1/1/transaction/Do", "s2/1/transaction/Do") == [record] * 2
    process.terminate()
    assert process.communicate(timeout=60)[1].count("met format 9, which only a newer release knows") == 1


def test_a_handler_that_was_at_it_when_its_step_was_undone_is_undone_itself(client: redis.Redis, node: Node) -> None:
    node.probe()
    deliver(client, "wait")
    until(lambda: calls(client), what="the handler runs")
    deliver(client, compensating=True)
    assert answers(client, 1) == ["Undo_ok"]
    client.set("go on", 1)
    assert answers(client, 2) == ["Undo_ok", REFUSED]
    assert undone(client) == ["s1/1/transaction [null,null]", 's1/1/transaction ["wait","wait"]']
    until(lambda: nothing_is_left(client), what="all is acknowledged")


def test_whoever_takes_over_a_command_whose_step_was_undone_undoes_it_again(client: redis.Redis, node: Node) -> None:
    victim = node.probe()
    deliver(client, "die")
    until(lambda: victim.poll() is not None, what="it dies after its effect")
    deliver(client, compensating=True)
    node.probe(lease_ms=60_000)
    assert answers(client, 1) == ["Undo_ok"]
    node.probe()
    assert answers(client, 2) == ["Undo_ok", REFUSED]
    assert (calls(client), len(undone(client))) == (1, 2)


def test_a_process_that_is_told_to_end_leaves_the_undo_that_it_owes_to_others(client: redis.Redis, node: Node) -> None:
    owing = node.probe()
    deliver(client, "wait", later="is kept", not_after_ms=soon(client))
    until(lambda: calls(client), what="the handler runs")
    deliver(client, compensating=True)
    other = node.probe()
    assert answers(client, 2) == ["Undo_ok", REFUSED]
    until(lambda: nothing_is_left(client), what="another process has taken it over, and answered it")
    other.send_signal(signal.SIGTERM)
    owing.send_signal(signal.SIGTERM)
    assert other.wait(60) == 0
    before = len(undone(client))
    client.set("go on", 1)
    assert owing.wait(60) == 0
    assert len(undone(client)) == before
    left: Any = client.xrange(ONLY.commands("work"))
    [(_, fields)] = left
    assert (fields[b"replayed"], fields[b"result"], fields[b"later"]) == (b"1", b'"wait"', b"is kept")
    node.probe()
    until(lambda: nothing_is_left(client), what="it is undone")
    assert undone(client)[before:] == ['s1/1/transaction ["wait","wait"]']
    assert answers(client, 3) == ["Undo_ok", REFUSED, REFUSED]


def test_an_effect_that_cannot_be_undone_is_tried_again_and_then_left_to_a_person(
    client: redis.Redis, node: Node
) -> None:
    entry_id = deliver(client, "stuck")
    client.xgroup_create(ONLY.commands("work"), "work", id="0")
    client.xreadgroup("work", "victim", {ONLY.commands("work"): ">"})
    tried: dict[Any, Any] = {f"s1/1/transaction/Do/undos/{entry_id.decode()}": MAX_UNDOS - 2}
    client.hset(ONLY.done("work", 1), mapping={"s1/1/transaction/(void)": 1} | tried)
    node.probe()
    until(lambda: len(Quarantine(client, KEYS)), what="it is set aside")
    [message] = Quarantine(client, KEYS).newest_first()
    assert message.reason == "Do may have been done after it was refused, and could not be undone 10 times"
    assert (calls(client), len(undone(client)), client.xlen(ONLY.replies("work"))) == (0, 1, 0)
    assert nothing_is_left(client)


def test_a_command_that_kills_whoever_works_on_it_is_given_up(client: redis.Redis, node: Node) -> None:
    deliver(client, "a")
    client.xgroup_create(ONLY.commands("work"), "work", id="0")
    client.xreadgroup("work", "victim", {ONLY.commands("work"): ">"})
    client.hset(ONLY.done("work", 1), "s1/1/transaction/Do/takeovers", MAX_TAKEOVERS - 1)
    node.probe()
    assert answers(client, 1) == ["Do_failed 5 processes took Do and did not live to answer it, unknown"]
    assert calls(client) == 0


def test_what_takes_longer_than_the_lease_and_has_no_deadline_runs_once(client: redis.Redis, node: Node) -> None:
    for _ in range(3):
        node.probe()
    deliver(client, compensating=True, params='"slowly"')
    assert answers(client, 1) == ["Undo_ok"]
    assert nothing_is_left(client)
    assert undone(client) == ['s1/1/transaction ["slowly",null]']


def test_who_ran_beside_a_command_that_kills_completes(client: redis.Redis, node: Node) -> None:
    deliver(client, "slow", saga_id="healthy-1")
    deliver(client, "always die", saga_id="poison")
    deliver(client, "slow", saga_id="healthy-2")
    process = node.probe()

    def answered() -> bool:
        nonlocal process
        if process.poll() is not None:
            process = node.start("probe.mjs")
        return client.xlen(ONLY.replies("work")) == 3

    until(answered, what="all are answered", timeout_s=120)
    poison = f"Do_failed {MAX_TAKEOVERS} processes took Do and did not live to answer it, unknown"
    assert sorted(answers(client, 3)) == [poison, "Do_ok slow", "Do_ok slow"]
    assert client.llen("done poison/1/transaction") == MAX_TAKEOVERS
    assert nothing_is_left(client)


def test_sigterm_lets_a_service_answer_what_it_has_in_hand_and_leave(client: redis.Redis, node: Node) -> None:
    process = node.probe()
    deliver(client, "wait")
    until(lambda: calls(client), what="the handler runs")
    process.send_signal(signal.SIGTERM)
    client.set("go on", 1)
    assert process.wait(60) == 0
    assert answers(client, 1) == ["Do_ok wait"]
    assert consumers(client) == []


@pytest.mark.own_server
def test_what_it_was_given_but_never_received_is_read_again(server: OwnServer, client: redis.Redis, node: Node) -> None:
    """The answer to its read was lost with the connection."""
    process = node.probe(lease_ms=60_000)
    [name] = consumers(client)
    process.send_signal(signal.SIGSTOP)
    server.kill()
    server.start()
    deliver(client, "a")
    client.xreadgroup("work", name, {ONLY.commands("work"): ">"})
    process.send_signal(signal.SIGCONT)
    assert answers(client, 1) == ["Do_ok a"]


def test_a_group_that_was_deleted_is_made_anew(server: Server, client: redis.Redis, node: Node) -> None:
    node.probe()
    client.flushall()
    layout.check(server.broker())  # a worker makes the store anew
    deliver(client, "a")
    assert answers(client, 1) == ["Do_ok a"]
    assert client.hgetall(KEYS.published("work")) == {b"Do": b"Undo", b"Ask": b""}


def test_the_user_of_the_page_may_do_all_that_the_sample_does(
    server: Server, client: redis.Redis, node: Node, tmp_path: Path
) -> None:
    [script] = shell("A user of its own")
    Shell(server, tmp_path).run(script)
    stream = ONLY.commands("notification")
    client.xgroup_create(stream, "notification", id="0", mkstream=True)
    send = {"type": "SendNotification", "saga_id": "s1", "step": 1, "params": {"to": "a@b", "text": ""}}
    held: Any = client.xadd(stream, {"body": json.dumps(send)})
    client.xreadgroup("notification", "victim", {stream: ">"})
    client.xclaim(stream, "notification", "victim", 0, [held], idle=60_000)
    client.xadd(stream, {"body": "{"})
    process = node.start("notification.mjs", url=server.url.replace("unix://", "unix://notification:secret@"))
    [answer] = answers(client, 1, "notification")
    assert answer.startswith("SendNotification_ok")
    until(lambda: len(Quarantine(client, KEYS)), what="an entry that is not a command is set aside")
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, "NOPERM" in said, client.acl_log()) == (0, False, [])
    until(lambda: client.xlen(stream) == 0, what="all is acknowledged")


def test_a_key_that_the_user_may_not_use_is_named_in_the_log(client: redis.Redis, node: Node, server: Server) -> None:
    assert shell("A user of its own")[0] in (SAMPLE / "README.md").read_text()  # what both say grants that key
    client.acl_setuser("notification", enabled=True, passwords="+secret", keys=["saga:*"], categories=["+@all"])
    send = {"type": "SendNotification", "saga_id": "s1", "step": 1, "params": {"to": "a@b", "text": ""}}
    client.xadd(ONLY.commands("notification"), {"body": json.dumps(send)})
    process = node.start("notification.mjs", url=server.url.replace("unix://", "unix://notification:secret@"))
    assert process.stderr is not None
    refused = next(line for line in process.stderr if "NOPERM" in line)
    assert f"(hSetNX {OUTBOX})" in refused


def test_a_refused_login_is_told_of_in_one_line(server: Server, node: Node) -> None:
    process = node.start("notification.mjs", url=server.url.replace("unix://", "unix://somebody:guess@"))
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("service notification: WRONGPASS")
    assert "    at " not in said


def test_a_fault_that_waiting_does_not_mend_ends_the_service_in_one_line(client: redis.Redis, node: Node) -> None:
    process = node.probe()
    deliver(client, "wait")
    until(lambda: calls(client), what="the handler runs")
    client.delete(ONLY.replies("work"))
    client.set(ONLY.replies("work"), "no stream")
    client.set("go on", 1)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("service work: WRONGTYPE")
    assert "    at " not in said


def test_no_damage_of_the_records_ends_a_process(client: redis.Redis, node: Node) -> None:
    process = node.probe()
    deliver(client, "wait")
    until(lambda: calls(client), what="the handler runs")
    key = ONLY.done("work", 1)
    client.set(key, "no hash")
    deliver(client, compensating=True)
    until(lambda: len(Quarantine(client, KEYS)) == 1, what="the compensation is set aside")
    client.set("go on", 1)
    until(lambda: len(Quarantine(client, KEYS)) == 2, what="the command is set aside")
    reasons = {message.reason for message in Quarantine(client, KEYS).newest_first()}
    assert reasons == {f"its answer cannot be recorded: {key} is not a hash; delete that key, then replay this entry"}
    client.delete(key)
    client.set(KEYS.published("work"), "no hash")
    for number, value in enumerate([b"x", b"-1", b"9" * 30, b"\xff", b"unknown x", b"ok {"]):
        begun: Any = {"begun_ms": 1}
        record = f"d{number}/1/transaction/Do"
        damaged: dict[Any, Any] = {record: value, f"{record}/takeovers": value}
        client.hset(key, mapping=damaged)
        held = deliver(client, number, saga_id=f"d{number}", **begun)
        client.xclaim(ONLY.commands("work"), "work", "dead", 0, [held], idle=60_000, force=True)
    until(lambda: nothing_is_left(client), what="all is answered")
    assert process.poll() is None


def test_a_process_does_not_take_a_command_from_itself(client: redis.Redis, node: Node) -> None:
    """Nobody waits for its answer any more, so its lease ends: another process would take the command over, and may."""
    node.probe()
    deliver(client, "wait", not_after_ms=soon(client))

    def held_for_long() -> bool:
        held: Any = client.xpending_range(ONLY.commands("work"), "work", "-", "+", 1, idle=1500)
        return len(held) == 1

    until(held_for_long, what="the lease is over")
    assert calls(client) == 1
    client.set("go on", 1)
    assert answers(client, 1) == ["Do_ok wait"]


def test_it_serves_every_partition(sample: Path, server: Server, commands: Commands) -> None:
    keys = divided(server.broker())
    ids = in_each(keys)
    running = Node(sample, server)
    try:
        running.start("probe.mjs")
        commands.quiet("worker", env={"REDIS_URL": server.url})
        sagas = SagaClient(server.broker())
        for saga_id in ids:
            sagas.begin(saga_id, [do("a"), do("reject")])
        assert {sagas.wait(saga_id, 60).status for saga_id in ids} == {SagaStatus.ABORTED}
        client = server.broker().client
        done = [client.llen(f"done {saga_id}/1/transaction") for saga_id in ids]
        assert (done, client.llen("undone")) == ([1, 1, 1], 3)
        for partition in keys.partitions:
            client.xadd(partition.commands("work"), {"body": "{"})
        quarantine = Quarantine(client, keys)
        until(lambda: len(quarantine) == 3, what="what is not a command is set aside")
        assert sorted(message.id.partition("@")[2] for message in quarantine.newest_first()) == ["", "1", "2"]
        for partition in keys.partitions:
            assert client.xlen(partition.commands("work")) == client.xlen(partition.replies("work")) == 0
    finally:
        running.end()


def test_it_waits_for_a_store_and_does_not_make_one(sample: Path, server: Server) -> None:
    client = server.broker().client
    running = Node(sample, server)
    client.flushall()
    try:
        process = running.start("probe.mjs")
        assert process.stderr is not None
        assert process.stderr.readline().endswith("started\n")
        assert "there is no store saga yet" in process.stderr.readline()
        assert client.keys() == []
        layout.check(server.broker())
        until(lambda: consumers(client), what="it joins the group")
    finally:
        running.end()


@pytest.mark.parametrize("fields", [{"partitions": "1"}, {"protocol": "3", "partitions": "1", "tags": "0"}])
def test_it_leaves_a_store_of_another_protocol_alone(node: Node, client: redis.Redis, fields: dict[str, str]) -> None:
    client.flushall()
    client.hset(KEYS.store, mapping=fields)  # type: ignore[arg-type]
    process = node.start("probe.mjs")
    assert process.wait(60) == 1
    assert process.stderr is not None
    assert "this service knows 2" in process.stderr.read()
    assert client.keys() == [KEYS.store.encode()]


#: Reads texts, one a line; writes what is wrong with each, and the least CPU time that it took, in microseconds.
_READER = """
import { createInterface } from 'node:readline'
import { parse } from './sagastream/json.mjs'

for await (const line of createInterface({ input: process.stdin })) {
  let [fault, least] = ['', Infinity]
  for (let time = 0; time < 6; time += 1) {
    const before = process.cpuUsage()
    try {
      parse(JSON.parse(line))
    } catch (error) {
      fault = error.message
    }
    const { user, system } = process.cpuUsage(before)
    least = Math.min(least, user + system)
  }
  console.log(JSON.stringify([fault, least]))
}
"""


def test_it_reads_and_refuses_the_dearest_texts_as_the_orchestrator_does_in_a_short_time(sample: Path) -> None:
    (sample / "reader.mjs").write_text(_READER)
    worst = {name: f'{{"params":{text}}}' for name, text in (VALID | INVALID).items()}
    done = subprocess.run(
        ["node", "reader.mjs"],
        cwd=sample,
        input="".join(f"{json.dumps(text)}\n" for text in worst.values()),
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(zip(worst, map(json.loads, done.stdout.splitlines()), strict=True))
    held_exactly = {name for name, (fault, _) in found.items() if not fault or "more than a Number can hold" in fault}
    assert held_exactly == VALID.keys()
    counts = [name for name, (fault, _) in found.items() if fault.startswith("too many")]
    assert {"too many empty arrays", "too many objects", "too many nested arrays", "too many strings"} <= {*counts}
    # V8 needs half of this to read the object of 100,000 keys itself; a busy machine takes up to three times as long.
    assert max(micros for _, micros in found.values()) < 200_000
