"""Bad input of every class in corpus.py, sent to real processes. Each input is answered or quarantined exactly once, no
process dies of it, and none of it reaches a terminal unescaped."""

import itertools
import json
import random
import re
import subprocess
import textwrap
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import convert, msgpack

from sagastream import Context, Reject
from sagastream.broker.entries import Entry
from sagastream.client.blocking import SagaClient
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Reply
from sagastream.core.decision import decide
from sagastream.core.messages import Due, Intervene, Verb
from sagastream.core.parsing import parse_intervene
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.transitions import Moment
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.packing import CommitArguments
from sagastream.store import saga_hash
from sagastream_bridge.inspection import list_views, lookup, saga_views
from sagastream_stubs import payment
from support import corpus
from support.corpus import Bad, written
from support.processes import SAGASTREAM, Commands
from support.scenes import Scene, do
from support.servers import KINDS, Server, start_server
from support.stores import KEYS, ONLY
from support.streams import add_reply, append_requests
from support.waiting import takes_less_than, until

pytestmark = pytest.mark.both_in_soak

WORK = ONLY.commands("work")
_DAY_MS = 24 * 3600 * 1000

SHOP = textwrap.dedent("""
    from sagastream import Reject, Service

    service = Service("work")

    @service.command("Do", compensation="Undo")
    def do(params, context):
        if isinstance(params, dict) and "reject" in params:
            raise Reject(params["reject"])
        if isinstance(params, dict) and "raise" in params:
            raise ValueError(params["raise"])
        return params

    @service.compensation("Undo")
    def undo(params, context):
        if isinstance(params, dict) and "stick" in params:
            raise ValueError(params["stick"])
""")


class Stage:
    """A server, a worker, a service, and all output of the processes."""

    def __init__(self, server: Server, commands: Commands) -> None:
        self.server = server
        self.commands = commands
        self.env = {"REDIS_URL": server.url}
        self.client = SagaClient(server.broker())
        self.redis: redis.Redis = self.client._redis
        self.outputs: list[Path] = []
        self.good = 0
        (commands.folder / "shop.py").write_text(SHOP)
        self.worker = self.start("worker")
        self.service = self.start("service", "shop:service")
        # This command is never answered, so there is a live saga about which the others may be misled.
        self.append("s-live", do(service="nobody", timeout_ms=_DAY_MS))
        self.well()

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        """Start a process whose stdout and stderr go into two files."""
        files = [self.commands.folder / f"{len(self.outputs) + n}.txt" for n in range(2)]
        self.outputs += files
        with files[0].open("wb") as out, files[1].open("wb") as err:
            return self.commands.start(*arguments, stdin=stdin, stdout=out, stderr=err, env=self.env)

    def append(self, saga_id: str, *steps: dict[str, Any]) -> None:
        append_requests(self.redis, [parse_begin({"saga_id": saga_id, "steps": list(steps)}, request_id=saga_id)])

    def add(self, stream: str, inputs: list[Bad], **more: Any) -> list[bytes]:
        """Append the inputs to a stream; the ids of the entries."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for number, bad in enumerate(inputs):
                pipeline.xadd(stream, bad.entry | {name: f"{value}{number}" for name, value in more.items()})
            return list(pipeline.execute())

    def taken(self, *streams: str) -> None:
        """Wait until every entry was dealt with."""
        for stream in streams:
            until(lambda s=stream: self.redis.xlen(s) == 0, what=f"{stream} is read")  # type: ignore[misc]

    def quarantined(self, stream: str) -> Counter[bytes]:
        """How often each entry of a stream was quarantined."""
        aside = ONLY.quarantine_of("work") if stream == WORK else ONLY.quarantine
        entries: Any = self.redis.xrange(aside)
        return Counter(fields[b"entry_id"] for _, fields in entries if fields[b"stream"] == stream.encode())

    def well(self) -> None:
        """The processes live, a good saga still does its work, the live saga is unchanged, and no output can act on a
        terminal."""
        assert self.worker.poll() is None, "the worker died"
        assert self.service.poll() is None, "the service died"
        self.good += 1
        self.append(f"s-good-{self.good}", do(1), do({"reject": "as asked"}))
        assert self.client.wait(f"s-good-{self.good}", 60).reason == "Step 2 failed: as asked"
        live = self.client.get("s-live")
        assert live is not None
        assert (live.status, live.duplicates, live.interventions) == (SagaStatus.PENDING, 0, ())
        for path in self.outputs:
            assert_harmless(path.read_bytes(), path.name)

    def shown(self, *saga_ids: str) -> None:
        """Nothing that is shown about these sagas can act on a terminal."""
        for arguments in (("list",), *(("show", saga_id) for saga_id in saga_ids), ("show", saga_ids[0], "--json")):
            done = subprocess.run(
                [SAGASTREAM, *arguments],
                cwd=self.commands.folder, env=self.commands.environment(**self.env), capture_output=True, timeout=120,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert_harmless(done.stdout + done.stderr, " ".join(arguments))


def _fields(fields: Any) -> dict[Any, Any]:
    """Fields, in the types of redis-py."""
    return dict(fields)


def assert_harmless(said: bytes, whose: str) -> None:
    """The text is UTF-8, and no character of it is a control, is invisible, or changes the direction of writing."""
    found = {c for c in said.decode() if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}
    assert not found, f"{whose} has {found!a}"


@pytest.fixture(scope="module", params=KINDS)
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One set of processes for all tests here."""
    folder = tmp_path_factory.mktemp("stage")
    # A server of its own, because the tests of this module that take `server` clear that one.
    server = start_server(request.param, folder, Server)
    commands = Commands(folder)
    try:
        yield Stage(server, commands)
    finally:
        commands.end()
        server.stop()


def wrongly_counted(inputs: list[Bad], counts: list[int]) -> list[tuple[str, str, int]]:
    """The inputs that did not lead to exactly one answer."""
    return [(bad.class_name, bad.where, n) for bad, n in zip(inputs, counts, strict=True) if n != 1]


def test_there_are_many_classes_of_bad_input() -> None:
    inputs = [
        *corpus.for_requests(),
        *corpus.for_interventions(),
        *corpus.for_request_ids(),
        *corpus.for_replies("s"),
        *corpus.for_commands(),
    ]
    assert len({bad.class_name for bad in inputs}) >= 150
    assert len(inputs) >= 700


@pytest.mark.parametrize(
    ("stream", "inputs"),
    [(ONLY.requests, corpus.for_requests()), (ONLY.interventions, corpus.for_interventions())],
    ids=["requests", "interventions"],
)
def test_a_bad_request_is_refused_once_where_somebody_asked_and_else_quarantined_once(
    stage: Stage, stream: str, inputs: list[Bad]
) -> None:
    after = stage.redis.xlen(ONLY.events)
    anonymous = stage.add(stream, inputs)
    stage.add(stream, inputs, request_id="asked-")
    misnamed = stage.add(stream, corpus.for_request_ids())
    stage.taken(stream)
    events: Any = stage.redis.xrange(ONLY.events)
    told = Counter(fields[b"request_id"] for _, fields in events[after:] if fields[b"kind"] == b"refused")
    quarantined = stage.quarantined(stream)
    assert wrongly_counted(inputs, [told[b"asked-%d" % n] for n in range(len(inputs))]) == []
    assert wrongly_counted(inputs, [quarantined[entry_id] for entry_id in anonymous]) == []
    assert wrongly_counted(corpus.for_request_ids(), [quarantined[entry_id] for entry_id in misnamed]) == []
    assert sum(quarantined.values()) == len(anonymous) + len(misnamed)
    assert sum(told.values()) == len(inputs)
    assert stage.client.get("bad") is None
    stage.well()


def test_a_bad_reply_is_quarantined_once(stage: Stage) -> None:
    inputs = corpus.for_replies("s-live")
    ids = stage.add(ONLY.replies("work"), inputs)
    stage.taken(ONLY.replies("work"))
    quarantined = stage.quarantined(ONLY.replies("work"))
    assert wrongly_counted(inputs, [quarantined[entry_id] for entry_id in ids]) == []
    stage.well()
    stage.shown("s-live")


def test_a_bad_command_is_quarantined_once(stage: Stage) -> None:
    inputs = corpus.for_commands()
    ids = stage.add(WORK, inputs)
    stage.taken(WORK)
    quarantined = stage.quarantined(WORK)
    assert wrongly_counted(inputs, [quarantined[entry_id] for entry_id in ids]) == []
    stage.well()


def test_a_command_that_makes_no_sense_is_answered_once_and_the_answer_set_aside(stage: Stage) -> None:
    """Nobody waits for the answer: the orchestrator knows no such saga."""
    commands = {
        f"stray-{n}": message
        for n, message in enumerate(
            (
                {"type": "Fly", "saga_id": "", "step": 1},
                {"type": "Do", "saga_id": "", "step": 100},
                {"type": "Undo", "saga_id": "", "step": 1},
                {"type": "Fly", "saga_id": "", "step": 1, "compensating": True},
                {"type": "Do", "saga_id": "", "step": 1, "compensating": True},
                {"type": "x" * 128, "saga_id": "", "step": 1},
                {"type": "Do", "saga_id": "", "step": 1, "params": {"reject": "\x1b[31m" * 10_000}},
                {"type": "Do", "saga_id": "", "step": 1, "params": {"raise": "\u202e\x9b"}},
                {"type": "Do", "saga_id": "", "step": 1, "params": "x" * 1_000_000},
            )
        )
    }
    for saga_id, message in commands.items():
        fields: dict[Any, Any] = {"body": written(message | {"saga_id": saga_id})}
        stage.redis.xadd(WORK, fields | {"attempt": 7, "retried": b"\xff", "begun_ms": "9" * 15})
        stage.redis.xadd(WORK, fields | {"not_after_ms": 1, "unknown": "?"})
    stage.taken(WORK, ONLY.replies("work"))
    entries: Any = stage.redis.xrange(ONLY.quarantine)
    reasons = Counter(fields[b"reason"].decode() for _, fields in entries)
    assert {saga_id: reasons[f"there is no saga {saga_id}"] for saga_id in commands} == dict.fromkeys(commands, 2)
    stage.well()


def test_a_bad_line_is_answered_or_told_of_or_quarantined_once(stage: Stage) -> None:
    lines = corpus.for_lines("hotel")
    before = stage.redis.xlen(ONLY.quarantine)
    bridge = stage.start("bridge", "--outcomes", "--trace", "--serve", "hotel", stdin=subprocess.PIPE)
    out, err = stage.outputs[-2:]
    assert bridge.stdin is not None
    for number, line in enumerate(lines, 1):
        bridge.stdin.write(line.replace(b'"LINE"', b"%d" % number) + b"\n")
    number += 1
    good = {"type": "saga_begin", "msg_id": number, "saga_id": "s-line", "steps": [do(1)]}
    bridge.stdin.write(written({"src": "c1", "dest": "orchestrator", "body": good}))
    bridge.stdin.close()
    assert bridge.wait(60) == 1  # there were bad lines
    answers = [json.loads(line)["body"] for line in out.read_text().splitlines()]
    told = Counter(int(n) for n in re.findall(r"(?m)^sagastream bridge: line (\d+): ", err.read_text()))
    told.update(body["in_reply_to"] for body in answers if body["type"] == "error")
    wrong = [(n, lines[n - 1][:200], told[n]) for n in range(1, len(lines) + 1) if told[n] != 1]
    assert wrong == []
    assert [body["status"] for body in answers if body["type"] == "saga_completed"] == ["COMPLETED"]
    assert stage.redis.xlen(ONLY.quarantine) == before
    assert "Traceback" not in err.read_text()
    stage.well()


def test_a_reply_on_a_line_to_what_nobody_asked_is_quarantined_once(stage: Stage) -> None:
    bridge = stage.start("bridge", "--serve", "hotel", stdin=subprocess.PIPE)
    replies = [
        ("nobody-1", 1, "Do_ok"),
        ("nobody-2", 100, "Fly_failed"),
        ("s-live", 1, "Fly_ok"),
        ("s-live", 2, "Do_ok"),
    ]
    assert bridge.stdin is not None
    for saga_id, step, kind in replies:
        body = {"type": kind, "saga_id": saga_id, "step": step, "error": "\x1b[31m\u202e", "more": "\x9b"}
        bridge.stdin.write(written({"src": "hotel", "dest": "orchestrator", "body": body}) + b"\n")
    bridge.stdin.close()
    assert bridge.wait(60) == 0
    stage.taken(ONLY.replies("hotel"))
    entries: Any = stage.redis.xrange(ONLY.quarantine)
    bodies = [json.loads(fields[b"body"]) for _, fields in entries[-len(replies) :]]
    assert [(body["saga_id"], body["step"], body["type"]) for body in bodies] == replies
    stage.well()
    stage.shown("s-live")


def test_garbage_in_the_news_stops_no_bridge(stage: Stage) -> None:
    """The events stream only carries news: the truth is in the hashes of the sagas."""
    bridge = stage.start("bridge", "--outcomes", "--trace", stdin=subprocess.PIPE)
    assert bridge.stdin is not None
    out, err = stage.outputs[-2:]

    def say(body: dict[str, Any]) -> None:
        assert bridge.stdin is not None
        bridge.stdin.write(written({"src": "c1", "dest": "orchestrator", "body": body}) + b"\n")
        bridge.stdin.flush()

    slow = do(service="nobody", timeout_ms=_DAY_MS)
    say({"type": "saga_begin", "msg_id": 1, "saga_id": "s-news", "steps": [slow]})
    until(lambda: stage.client.get("s-news"), what="the saga is begun")
    bodies = [bad.body for bad in corpus.for_replies("s-news") if bad.body is not None and len(bad.body) < 200_000]
    with stage.redis.pipeline(transaction=False) as pipeline:
        for kind in ("outcome", "parked", "done", "refused", "command", "reply", "\x1b[2J"):
            for body in bodies:
                fields: dict[Any, Any] = {"kind": kind, "saga_id": "s-news", "body": body, "service": "\x9b\u202e"}
                pipeline.xadd(ONLY.events, fields | {"request_id": b"\xff"})
        for fields in (
            {"kind": "outcome"},
            {"body": "{}"},
            {b"\xff": b"\xff"},
            {"kind": "refused", "saga_id": "s-news"},
        ):
            pipeline.xadd(ONLY.events, _fields(fields))
        pipeline.execute()
    say({"type": "saga_begin", "msg_id": 2, "saga_id": "s-more", "steps": [do(1)]})
    until(lambda: b'"in_reply_to": 2' in out.read_bytes(), what="a saga begun after it is told of")
    assert bridge.poll() is None
    assert b'"in_reply_to": 1' not in out.read_bytes()
    append_requests(
        stage.redis, [parse_intervene({"type": "saga_cancel", "saga_id": "s-news", "reason": "enough"}, request_id="r")]
    )
    bridge.terminate()
    assert bridge.wait(60) == 0
    assert b"Traceback" not in err.read_bytes()
    stage.well()


def test_text_that_would_act_on_a_terminal_is_carried_and_shown_as_escapes(stage: Stage) -> None:
    """It is allowed in params, results, errors and reasons. A saga with it runs like any other."""
    bridge = stage.start("bridge", "--outcomes", "--trace", "--drain-timeout", "10", stdin=subprocess.PIPE)
    assert bridge.stdin is not None
    texts = list(corpus.NASTY_TEXT.values())
    everything = "".join(texts)
    expected: dict[str, str | None] = {}

    def say(saga_id: str, *steps: dict[str, Any]) -> None:
        assert bridge.stdin is not None
        body = {"type": "saga_begin", "msg_id": len(expected), "saga_id": saga_id, "steps": steps}
        bridge.stdin.write(written({"src": everything, "dest": "orchestrator", "body": body}) + b"\n")
        bridge.stdin.flush()

    for n, text in enumerate(texts):
        expected[f"n-{n}"] = f"Step 2 failed: {text}"
        say(f"n-{n}", do({text: text}), do({"reject": text}))
    expected["n-raise"] = None
    say("n-raise", do({"raise": everything}))
    expected["n-park"] = None
    say("n-park", do({"stick": everything}, compensation_attempts=1), do({"reject": {everything: everything}}))
    expected["n-cancel"] = f"Cancelled: {everything}"
    say("n-cancel", do(service="nobody", attempts=1, compensation=None))
    until(lambda: stage.client.get("n-cancel"), what="it is begun")
    cancel = parse_intervene({"type": "saga_cancel", "saga_id": "n-cancel", "reason": everything}, request_id="r-nasty")
    append_requests(stage.redis, [cancel])
    until(lambda: (state := stage.client.get("n-cancel")) and state.cancelling, what="its step is waited for")
    add_reply(stage.redis, "nobody", {"body": '{"type":"Do_ok","saga_id":"n-cancel","step":1}'})
    found = {saga_id: stage.client.wait(saga_id, 60) for saga_id in expected}
    for saga_id, reason in expected.items():
        assert reason is None or found[saga_id].reason == reason
    assert found["n-park"].parked is not None
    skip = parse_intervene({"type": "saga_skip", "saga_id": "n-park", "reason": everything}, request_id="r-skip")
    append_requests(stage.redis, [skip])
    bridge.stdin.close()
    assert bridge.wait(60) == 0
    told = Counter(json.loads(line)["body"].get("saga_id") for line in stage.outputs[-2].read_text().splitlines()
                   if '"type": "saga_' in line)  # fmt: skip
    assert told == dict.fromkeys(expected, 1)
    stage.well()
    stage.shown(*list(expected)[-4:])


def test_a_saga_can_be_shown_though_a_message_for_it_is_nested_deeply(stage: Stage) -> None:
    deep = b"[" * 1000 + b"]" * 1000
    stage.redis.xadd(ONLY.replies("work"), {"body": b'{"saga_id":"s-live","type":%s}' % deep})
    deeper = deep.replace(b"[", b'{"a":', 999).replace(b"]", b"}", 999)
    stage.redis.xadd(ONLY.replies("work"), {"body": b'{"saga_id":"s-live","type":%s}' % deeper})
    stage.taken(ONLY.replies("work"))
    stage.shown("s-live")


@pytest.mark.parametrize(
    "amount", ["-1e999990", "1e999990", "-1e-999990", "NaN", "sNaN", "-Infinity", "9" * 100_000, "\u0661x"]
)
def test_no_amount_keeps_the_sample_service_busy(amount: str) -> None:
    with takes_less_than(1), pytest.raises(Reject):
        payment.charge(
            {"user_id": "u1", "amount": amount}, Context(saga_id="s", step=1, key="k", transaction_key="k", attempt=1)
        )


# --- inputs that nobody thought of


def _mutated(value: Any, chance: random.Random) -> Any:
    """A value in which something is replaced, removed, doubled or added."""
    garbage: list[Any] = [
        None, True, False, 0, -1, 1, 2, 1.5, 2**53, 2**64 - 1, "", "Do", "Do_ok", "s1", "\x00", "\u202e", [], {}, [[]],
        {"": 0}, "x" * 200,
    ]  # fmt: skip
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(list(value))
        changed = dict(value)
        match chance.randrange(5):
            case 0:
                del changed[name]
            case 1:
                changed[chance.choice(["", "type", "body", "step", "params", "result", "reason", "__class__"])] = (
                    garbage[chance.randrange(len(garbage))]
                )
            case _:
                changed[name] = _mutated(changed[name], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], *([_mutated(value[at], chance)] * chance.randrange(3)), *value[at + 1 :]]
    return chance.choice(garbage)


def _bytes_changed(text: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(text) + 1)
    match chance.randrange(4):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + bytes([chance.randrange(256)]) + text[at:]
        case 2:
            return text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
        case _:
            return text[:at] + text[at : at + 5] + text[at:]


_SEEDS: dict[str, list[dict[str, Any]]] = {
    ONLY.requests: [
        {"type": "saga_begin", "saga_id": "s1", "steps": [do(1), do(2, compensation="Undo")], "deadline_ms": 60_000},
        {"type": "saga_begin", "saga_id": "s2", "steps": [do("fail", kind="pivot"), do(2, kind="retriable")]},
        *({"type": f"saga_{verb}", "saga_id": "s1", "reason": "so"} for verb in ("cancel", "retry", "skip", "abandon")),
    ],
    ONLY.replies("work"): [
        {"type": "Do_ok", "saga_id": "s1", "step": 1, "result": {"a": [1]}},
        {"type": "Do_failed", "saga_id": "s2", "step": 1, "error": "no"},
        {"type": "Undo_ok", "saga_id": "s1", "step": 1},
    ],
    WORK: [
        {"type": "Do", "saga_id": "s1", "step": 1, "params": {"a": [1]}},
        {"type": "Undo", "saga_id": "s1", "step": 1, "compensating": True},
    ],
}
_ENTRY_FIELDS = (b"request_id", b"trace", b"attempt", b"unknown", b"begun_ms", b"not_after_ms", b"retried", b"params",
                 b"traceparent", b"result", b"replayed", b"\xff")  # fmt: skip


@st.composite
def garbled(draw: st.DrawFn) -> tuple[str, dict[bytes, bytes]]:
    """An entry for one of the streams, made from a valid one."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    stream = chance.choice(list(_SEEDS))
    message: Any = chance.choice(_SEEDS[stream])
    for _ in range(chance.randrange(4)):
        message = _mutated(message, chance)
    body = json.dumps(message).encode()
    for _ in range(chance.choice([0, 0, 0, 1, 2])):
        body = _bytes_changed(body, chance)
    fields = {b"body": body}
    for _ in range(chance.choice([0, 0, 1, 2])):
        value = chance.choice([b"", b"1", b"0", b"7", b"-1", b"\xff", b"{}", b"[", b"null", b"9" * 15, b"r1"])
        fields[chance.choice(_ENTRY_FIELDS)] = value
    return stream, fields


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def test_whatever_is_made_of_valid_messages_is_dealt_with(scene: Scene) -> None:
    """A worker and a service in this process read them all to the last. Nothing is caught here."""

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(garbled(), min_size=1, max_size=25))
    def garble(entries: list[tuple[str, dict[bytes, bytes]]]) -> None:
        scene.redis.flushall()
        scene.worker._inbox.recover()
        scene.runner._inbox.reader.recover()
        for stream, fields in entries:
            scene.redis.xadd(stream, _fields(fields))
        left = [1]
        for _ in range(200):
            if not any(left):
                break
            scene.worker.turn(block_ms=1)
            scene.runner.turn(block_ms=1)
            left = [scene.redis.xlen(stream) for stream in _SEEDS]
        assert left == [0, 0, 0]
        aside: Any = scene.redis.xrange(ONLY.quarantine)
        counts = Counter((fields[b"stream"], fields[b"entry_id"]) for _, fields in aside)
        assert max(counts.values(), default=1) == 1
        live: Any = scene.redis.zrange(ONLY.timers, 0, -1)
        for saga_id in live:
            assert scene.client.get(saga_id.decode()) is not None

    garble()


# --- damaged sagas

_INTERVENTION = '[{"verb":"skip","reason":"so","at":"2026-01-01T00:00:00.000Z","request_id":%s}]'
_DAMAGE: tuple[bytes, ...] = tuple(
    text if isinstance(text, bytes) else text.encode()
    for text in (
        *(
            "",
            "0",
            "-1",
            "1",
            "2",
            "01",
            "1_0",
            "1.5",
            "NaN",
            "x",
            "{",
            "[]",
            "[1]",
            "[[]]",
            "[{}]",
            "null",
            "{}",
            "true",
        ),
        *('[{"verb":1}]', _INTERVENTION % "[]", _INTERVENTION % '"a"', "9" * 30, "-" + "9" * 30, "9" * 5000, "1" * 19),
        *("\x1b[2J", "\u202e", b"\xff", "PENDING", "COMPENSATING", "COMPLETED", "ABORTED", "FAILED", "COMPENSATED"),
        *("pivot", "retriable", "(none)", "Undo", "1970-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"),
        "2026-01-01T00:00:00.000+99:00",
    )
)


def models(scene: Scene) -> list[dict[bytes, bytes]]:
    """The hashes of sagas in every state before their end."""
    scene.redis.hset(KEYS.published("work"), "Do", "Undo")
    names = ("waits", "again", "back", "parked")
    for saga_id in names:
        scene.begin(saga_id, do(1, timeout_ms=50_000, compensation_attempts=1), do(2, backoff_ms=50_000, attempts=2))

    def reply(saga_id: str, kind: str, step: int, **fields: str) -> None:
        body = written({"type": kind, "saga_id": saga_id, "step": step})
        scene.redis.xadd(ONLY.replies("work"), _fields({"body": body} | fields))

    scene.turns_until(lambda: scene.redis.xlen(WORK) == 4)
    for saga_id in names:
        reply(saga_id, "Do_ok", 1)
    scene.turns_until(lambda: scene.redis.xlen(WORK) == 8)
    reply("again", "Do_failed", 2, unknown="1")
    reply("back", "Do_failed", 2)
    reply("parked", "Do_failed", 2)
    scene.turns_until(lambda: scene.redis.xlen(WORK) == 10)
    reply("parked", "Undo_failed", 1)
    scene.turns_until(lambda: scene.redis.xlen(ONLY.replies("work")) == 0)
    found: Any = [scene.redis.hgetall(ONLY.saga(saga_id)) for saga_id in names]
    assert found[1][b"send_again_at"]
    assert found[2][b"status"] == b"COMPENSATING"
    assert found[3][b"parked"]
    return list(found)


_OPTIONAL = (
    *(b"parked", b"cancelling", b"times_out_at", b"send_again_at", b"deadline_at", b"interventions", b"duplicates"),
    *(b"compensating_steps", b"trace", b"request_id", b"reason", b"step7.status", b"step999.x", b"step0.x", b"other"),
    *(
        f"step{n}.{name}".encode()
        for n in (1, 2)
        for name in (
            *(
                "undone_by",
                "compensation_attempt",
                "tried_before",
                "skipped",
                "kind",
                "timeout_ms",
                "attempts",
                "backoff_ms",
            ),
            *("compensation_attempts", "late_at", "error", "compensation_error", "attempt", "unknown", "retry_failed"),
        )
    ),
)


#: What commit.lua takes: texts, and whole numbers if its header says so, and nothing else.
_CHANGE = tuple[int, str, str, str, str, list[str | int], list[int | list[str | int]], list[int | str]]
#: … of one that gives commands up; of one that has places in indexes, too.
_GIVES_UP = tuple[
    int, str, str, str, str, list[str | int], list[int | list[str | int]], list[int | str], list[int | str]
]
_HAS_PLACES = tuple[
    int, str, str, str, str, list[str | int], list[int | list[str | int]], list[int | str], list[int | str],
    list[int | str], str, str
]  # fmt: skip
_KINDS: dict[int, Any] = {8: _CHANGE, 9: _GIVES_UP, 12: _HAS_PLACES}
_COMMIT = tuple[int, str, int, int, dict[str, int], list[Any]]
_WITH_BEGUN = tuple[int, str, int, int, dict[str, int], list[Any], int]
_WITH_INDEXES = tuple[int, str, int, int, dict[str, int], list[Any], int, int]
#: … of one that looks up whether anything is recorded of its commands.
_LOOKS_UP = tuple[
    int, str, int, int, dict[str, int], list[Any], int, int | bool, bool, list[tuple[int, list[str], list[int]]]
]
_CALLS: dict[int, Any] = {6: _COMMIT, 7: _WITH_BEGUN, 8: _WITH_INDEXES, 10: _LOOKS_UP}


def check_commit(packed: bytes) -> None:
    """Check the types of all that a commit says."""
    words = msgpack.decode(packed)
    convert(words, _CALLS[len(words)])
    for change in words[5]:
        convert(change, _KINDS[len(change)])


@pytest.mark.parametrize("server", ["valkey"], indirect=True)  # this call only collects the hashes
def test_a_hash_damaged_in_any_field_in_any_way_stops_nobody(server: Server) -> None:
    """Whatever value is put into any field of a saga's hash: no worker dies of it, and nobody who looks at the saga
    does. Whatever happens to the saga then, it is read and written, or reported as damaged."""
    scene = Scene(server.broker())
    now_ms = int(time.time() * 1000)
    moments = [Moment(now_ms=at, published={"work": {"Do": "Undo"}}) for at in (now_ms, now_ms + 10**9)]
    events: list[Any] = [Due(saga_id="s1")]
    events += [Intervene(verb=verb, saga_id="s1", reason="so", request_id="r") for verb in Verb]
    events += [Reply(type=kind, saga_id="s1", step=n) for kind in ("Do_ok", "Do_failed", "Undo_ok", "Undo_failed")
               for n in (1, 2)]  # fmt: skip
    damaged = read = 0
    for model in models(scene):
        for name in sorted({*model, *_OPTIONAL}):
            for value in _DAMAGE:
                state = saga_hash.read("s1", model | {name: value})
                if not isinstance(state, SagaState):
                    damaged += 1
                    continue
                read += 1
                list(saga_views.saga(state, now_ms, []))
                list_views.row(state, now_ms)
                assert {done.request_id for done in state.interventions} <= {None, "a"}
                lookup.as_json(lookup.Found(state=state, now_ms=now_ms, notes=[]))
                for event, moment in itertools.product(events, moments):
                    decision = decide(state, event, moment)
                    change = Change(partition=ONLY, saga_id="s1", before=state, after=state)
                    change.add(Entry(stream=ONLY.replies("work"), id=b"1-1", fields={}), decision)
                    check_commit(*CommitArguments([change], now_ms, {"ended": 1000, "aborted": 1000}).args)
    assert damaged > 1000
    assert read > 1000


def test_damaged_sagas_that_are_due_stop_no_worker(scene: Scene) -> None:
    """The same, with hashes in the store."""
    count = 0
    for model in models(scene):
        for name in sorted({*model, *_OPTIONAL}):
            value = _DAMAGE[count % len(_DAMAGE)]
            scene.redis.hset(ONLY.saga(f"d{count}"), mapping=_fields(model | {name: value}))
            scene.redis.zadd(ONLY.timers, {f"d{count}": 0})
            count += 1
    scene.redis.zadd(ONLY.timers, {b"\xff": 0, b"": 1, b"nobody": float("-inf"), b"far": 1e300})
    scene.worker._due.at_once()
    scene.begin("s1", do(1))
    assert scene.play("s1").status is SagaStatus.COMPLETED
    scene.turns_until(lambda: not scene.redis.zrangebyscore(ONLY.timers, "-inf", 1000))
