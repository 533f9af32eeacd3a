"""The stdin bridge, driven as a test harness would drive it."""

import contextlib
import fcntl
import json
import re
import signal
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest

from sagastream import Definition, item
from sagastream.broker.connection import Broker
from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from support.processes import SAMPLES, Commands, Talk
from support.scenes import do
from support.servers import OwnServer, Server
from support.stores import ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak


def begin(saga_id: str, *steps: dict[str, Any], msg_id: int | None = 1) -> dict[str, Any]:
    body = {"type": "saga_begin", "saga_id": saga_id, "steps": list(steps)}
    return body if msg_id is None else body | {"msg_id": msg_id}


def reserve(sku: str = "abc123") -> Any:
    return do({"sku": sku, "quantity": 1}, "ReserveInventory", "inventory")


def charge(amount: float) -> Any:
    return do({"user_id": "u7", "amount": amount}, "ChargePayment", "payment")


@pytest.fixture
def talk(commands: Commands) -> Talk:
    """A cold bridge with outcomes, in an empty folder."""
    return Talk(commands.start("bridge", "--outcomes"))


def test_outcomes_go_to_whoever_began_the_saga(talk: Talk) -> None:
    talk.say("alice", begin("a", reserve(), charge(5), msg_id=7))
    assert talk.hear() == (
        "orchestrator",
        "alice",
        {"type": "saga_completed", "in_reply_to": 7, "msg_id": 0, "saga_id": "a", "status": "COMPLETED"},
    )
    talk.say("bob", begin("b", reserve(), charge(1e9), msg_id=8))
    assert talk.hear() == (
        "orchestrator",
        "bob",
        {
            "type": "saga_aborted", "in_reply_to": 8, "msg_id": 1, "saga_id": "b", "status": "ABORTED",
            "reason": "Step 2 failed: insufficient_funds",
        },
    )  # fmt: skip
    assert talk.finish() == (0, "", "")


def test_status_is_the_saga_state_of_the_protocol(talk: Talk) -> None:
    talk.say("c", begin("a", reserve(), charge(1e9)))
    talk.hear()
    talk.say("c", {"type": "saga_status", "msg_id": 2, "saga_id": "a"})
    assert talk.hear()[2] == {
        "type": "saga_status_ok",
        "in_reply_to": 2,
        "msg_id": 1,
        "state": {
            "saga_id": "a",
            "status": "ABORTED",
            "current_step": 1,
            "completed_steps": [1],
            "compensating_steps": [1],
            "steps": [
                {
                    "transaction": "ReserveInventory",
                    "params": {"sku": "abc123", "quantity": 1},
                    "status": "COMPENSATED",
                    "result": {"reservation_id": "r1"},
                },
                {"transaction": "ChargePayment", "params": {"user_id": "u7", "amount": 1e9}, "status": "FAILED"},
            ],
        },
    }
    assert talk.finish()[0] == 0


def test_status_of_a_saga_that_no_worker_has_read_of_is_pending(server: Server, commands: Commands) -> None:
    talk = Talk(commands.start("bridge", "--drain-timeout", "0", env={"REDIS_URL": server.url}))
    talk.say("c", begin("a", reserve()))
    talk.say("c", {"type": "saga_status", "msg_id": 2, "saga_id": "a"})
    state = talk.hear()[2]["state"]
    assert (state["status"], state["current_step"], state["completed_steps"]) == ("PENDING", 1, [])
    code, rest, errors = talk.finish()
    assert (code, rest) == (0, "")
    assert errors == (
        "sagastream bridge: not ended within 0 s, and safe in the store: a "
        "(they go on when a worker runs: sagastream worker)\n"
    )
    assert server.broker().client.xlen(ONLY.requests) == 1


def test_await_answers_when_the_saga_has_ended(talk: Talk) -> None:
    talk.say("c", begin("a", reserve()))
    talk.say("d", {"type": "saga_await", "msg_id": 5, "saga_id": "a"})
    heard = [talk.hear(), talk.hear()]
    assert sorted((dest, body["type"]) for _, dest, body in heard) == [("c", "saga_completed"), ("d", "saga_await_ok")]
    talk.say("d", {"type": "saga_await", "msg_id": 6, "saga_id": "a"})
    body = talk.hear()[2]
    assert (body["in_reply_to"], body["state"]["status"]) == (6, "COMPLETED")
    assert talk.finish() == (0, "", "")


def test_a_saga_that_nobody_knows_is_an_error_20(talk: Talk) -> None:
    for msg_id, kind in enumerate(("saga_status", "saga_await")):
        talk.say("c", {"type": kind, "msg_id": msg_id, "saga_id": "nobody"})
        assert talk.hear() == (
            "orchestrator",
            "c",
            {"type": "error", "in_reply_to": msg_id, "code": 20, "text": "there is no saga nobody"},
        )
    assert talk.finish() == (1, "", "")


def test_the_same_saga_again_changes_nothing_and_is_told_its_outcome(talk: Talk) -> None:
    for msg_id in (1, 2, 3):
        talk.say("c", begin("a", reserve(), msg_id=msg_id))
    assert sorted(talk.hear()[2]["in_reply_to"] for _ in range(3)) == [1, 2, 3]
    talk.say("c", begin("a", reserve(), msg_id=4))
    assert talk.hear()[2]["in_reply_to"] == 4
    talk.say("c", begin("a", reserve("other"), msg_id=5))
    assert talk.hear()[2] == {
        "type": "error",
        "in_reply_to": 5,
        "code": 22,
        "text": 'another saga has the id a: it began with "abc123" as params.sku of step 1; this request has "other"',
    }
    talk.say("c", {"type": "saga_status", "msg_id": 6, "saga_id": "a"})
    assert talk.hear()[2]["state"]["steps"][0]["result"] == {"reservation_id": "r1"}
    assert talk.finish() == (1, "", "")


BAD_BODIES = [
    ({"type": "fly", "msg_id": 3}, 10, "the orchestrator knows no 'fly'"),
    ({"type": "saga_begin", "msg_id": 3}, 12, "the body: saga_id is missing"),
    ({"type": "saga_begin", "msg_id": 3, "saga_id": "a", "steps": []}, 12, "steps must be a list of 1 to 100"),
    ({"type": "saga_begin", "msg_id": 3, "saga_id": "a b", "steps": [reserve()]}, 12, "the body: saga_id must be 1 to"),
    (
        {"type": "saga_begin", "msg_id": 3, "saga_id": "a", "steps": [reserve(), {"transaction": "X"}]},
        12,
        "step 2: service is missing",
    ),
    (
        {"type": "saga_begin", "msg_id": 3, "saga_id": "a", "steps": [reserve() | {"compensate": "Y"}]},
        12,
        "step 1 has an unknown member 'compensate'",
    ),
    ({"type": "saga_status", "msg_id": 3, "saga_id": 4}, 12, "saga_id must be 1 to 128"),
]


def test_bad_lines_are_answered_where_somebody_asked_and_the_good_ones_done(talk: Talk) -> None:
    for body, code, text in BAD_BODIES:
        talk.say("c", body)
        heard = talk.hear()
        assert heard[:2] == ("orchestrator", "c")
        assert list(heard[2]) == ["type", "in_reply_to", "code", "text"]
        assert (heard[2]["in_reply_to"], heard[2]["code"]) == (3, code)
        assert text in heard[2]["text"]
    talk.say("c", {"type": "init", "msg_id": 1}, dest="somebody")
    assert talk.hear()[2]["code"] == 10
    unanswerable = [
        b"{", b"[]", b"\xff", b"NaN", b"[" * 50_000, b'{"src":"c","dest":"orchestrator","body":{}}',
        b'{"src":"c","dest":"orchestrator","body":{"type":"fly"}}',
        b'{"src":"c","dest":"orchestrator","body":{"type":"saga_status","saga_id":"a"}}',
        b'{"src":1,"dest":"o","body":{"type":"init"}}',
        b'{"src":"c","src":"d","dest":"orchestrator","body":{"type":"init"}}', b'"\x1b[31m"', b"x" * 3_000_000,
    ]  # fmt: skip
    for line in unanswerable:
        talk.say_raw(line)
    talk.say_raw(b"")
    talk.say("c", begin("a", reserve()))
    assert talk.hear()[2]["type"] == "saga_completed"
    code, rest, errors = talk.finish()
    assert (code, rest) == (1, "")
    complaints = errors.splitlines()
    assert len(complaints) == len(unanswerable)
    first = len(BAD_BODIES) + 2
    assert [c.split(":")[1] for c in complaints] == [f" line {first + n}" for n in range(len(unanswerable))]
    assert "\x1b" not in errors


def test_a_last_line_without_an_end_counts(commands: Commands) -> None:
    line = json.dumps({"src": "c", "dest": "orchestrator", "body": {"type": "init", "msg_id": 9}})
    done = commands.run("bridge", given=line)
    assert json.loads(done.stdout)["body"]["in_reply_to"] == 9


def test_served_services_are_played_by_the_lines(commands: Commands) -> None:
    talk = Talk(commands.start("bridge", "--outcomes", "--serve", "inventory,hotel"))
    book = do({"night": 1}, "BookRoom", "hotel", compensation="CancelRoom")
    talk.say("c", begin("a", reserve(), book, charge(1e9)))
    reserved = ("orchestrator", "inventory", {
        "type": "ReserveInventory", "saga_id": "a", "step": 1, "params": {"sku": "abc123", "quantity": 1},
    })  # fmt: skip
    assert talk.hear() == reserved
    talk.say("inventory", {"type": "ReserveInventory_ok", "saga_id": "a", "step": 1, "result": {"mine": True}})
    assert talk.hear() == ("orchestrator", "hotel", {
        "type": "BookRoom", "saga_id": "a", "step": 2, "params": {"night": 1},
    })  # fmt: skip
    talk.say("hotel", {"type": "BookRoom_ok", "saga_id": "a", "step": 2, "msg_id": 3})
    # The payment is real, and fails. The step says what undoes the hotel; the service inventory publishes what undoes
    # it.
    undo = {"saga_id": "a", "step": 2, "compensating": True}
    assert talk.hear() == ("orchestrator", "hotel", {"type": "CancelRoom"} | undo)
    talk.say("hotel", {"type": "CancelRoom_ok", "saga_id": "a", "step": 2})
    assert talk.hear()[2] == {"type": "ReleaseReservation", "saga_id": "a", "step": 1, "compensating": True}
    talk.say("inventory", {"type": "ReleaseReservation_ok", "saga_id": "a", "step": 1})
    assert talk.hear()[2]["type"] == "saga_aborted"
    # Replies that nobody asked for are left to the orchestrator to judge.
    talk.say("inventory", {"type": "ReserveInventory_ok", "saga_id": "a", "step": 1})
    talk.say("inventory", {"type": "ReserveInventory_ok", "saga_id": "strange", "step": 1})
    assert talk.finish() == (0, "", "")


def test_a_played_service_is_told_the_input_the_definition_and_the_undo_beside_the_body(commands: Commands) -> None:
    talk = Talk(commands.start("bridge", "--outcomes", "--serve", "hotel"))
    why = {"compensation_params": {"why": {"$ref": "/failure/reason"}}}
    book = do({"by": {"$ref": "/input/user"}}, "BookRoom", "hotel", compensation="CancelRoom", **why)
    pay = do(1, "Pay", "hotel", compensation=None)
    defined = {"definition": {"name": "trip", "version": 1, "sha256": "0" * 64}}
    talk.say("c", begin("a", book, pay) | {"input": {"user": "u1"}} | defined)
    besides = {"input": {"user": "u1"}, "definition": "trip"}
    line = talk.line()
    assert line == {
        "src": "orchestrator",
        "dest": "hotel",
        "body": {"type": "BookRoom", "saga_id": "a", "step": 1, "params": {"by": "u1"}},
        **besides,
    }
    talk.say("hotel", {"type": "BookRoom_ok", "saga_id": "a", "step": 1})
    assert talk.line()["body"]["type"] == "Pay"
    talk.say("hotel", {"type": "Pay_failed", "saga_id": "a", "step": 2, "error": "no"})
    line = talk.line()
    assert line["body"] == {"type": "CancelRoom", "saga_id": "a", "step": 1, "compensating": True}
    assert {name: line[name] for name in line.keys() - {"src", "dest", "body"}} == besides | {
        "undo": {"why": "Step 2 failed: no"},
        "params": {"by": "u1"},  # the step returned nothing
    }
    talk.say("hotel", {"type": "CancelRoom_ok", "saga_id": "a", "step": 1})
    assert talk.hear()[2]["type"] == "saga_aborted"
    assert talk.finish() == (0, "", "")


def test_the_session_of_the_page(commands: Commands) -> None:
    """docs/bridge.md, word for word. Only there is a played service told what the step that it undoes has returned."""
    page = (Path(__file__).parents[2] / "docs" / "bridge.md").read_text()
    (typed,) = re.findall(r"`sagastream (bridge --serve [^`]*)`", page)
    (session,) = re.findall(r"```text\n(> .*?)```", page, re.DOTALL)
    talk = Talk(commands.start(*typed.split()))
    for line in session.splitlines():
        if line.startswith("> "):
            told = json.loads(line[2:])
            talk.say(told["src"], told["body"])
        else:
            assert talk.line() == json.loads(line)
    assert talk.finish() == (0, "", "")


def test_a_command_that_was_not_answered_is_given_out_again_by_the_next(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    talk = Talk(commands.start("bridge", "--serve", "work", env=env))
    talk.say("c", begin("a", do(1, compensation=None)))
    assert talk.hear()[2]["type"] == "Do"
    talk.process.kill()
    client = server.broker().client
    held: Any = client.xpending_range(ONLY.commands("work"), "work", "-", "+", 1)
    entry = held[0]
    # Wait for the end of the dead process's lease.
    client.xclaim(ONLY.commands("work"), "work", entry["consumer"], 0, [entry["message_id"]], idle=60_000, justid=True)
    talk = Talk(commands.start("bridge", "--serve", "work", "--outcomes", env=env))
    assert talk.hear()[2]["type"] == "Do"
    talk.say("work", {"type": "Do_ok", "saga_id": "a", "step": 1})
    until(lambda: client.zscore(ONLY.ended, "a"), what="the saga has ended")
    assert talk.finish()[0] == 0


@pytest.mark.own_server
def test_a_bridge_holds_its_input_back_while_the_broker_is_away(server: OwnServer, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    for where in SAMPLES:
        commands.quiet("service", where, env=env)
    talk = Talk(commands.start("bridge", "--outcomes", "--drain-timeout", "20", env=env))
    talk.say("c", begin("a", reserve()))
    talk.hear()
    server.kill()
    assert talk.process.stderr is not None
    assert b"the broker is away" in talk.process.stderr.readline()
    for n in range(50):
        talk.say("c", begin(f"b{n}", reserve(), msg_id=n))
    server.start()
    assert sorted(talk.hear()[2]["in_reply_to"] for _ in range(50)) == list(range(50))
    code, rest, errors = talk.finish()
    assert (code, rest) == (0, "")
    assert errors == "sagastream bridge: the broker is back\n"
    client = SagaClient(server.broker())
    assert client._redis.zcard(ONLY.ended) == 51
    assert client._redis.hget("stubs:{inventory}:left", "abc123") == str(1_000_000 - 51).encode()


@pytest.mark.own_server
def test_sigterm_says_what_was_not_done(server: OwnServer, commands: Commands) -> None:
    server.kill()
    talk = Talk(commands.start("bridge", env={"REDIS_URL": server.url}))
    assert talk.process.stderr is not None
    assert b"the broker is away" in talk.process.stderr.readline()
    server.start()
    assert b"the broker is back" in talk.process.stderr.readline()
    talk.say("c", {"type": "init", "msg_id": 1})
    talk.hear()
    server.kill()
    assert b"the broker is away" in talk.process.stderr.readline()
    talk.say_raw(b"\n".join(json.dumps(
        {"src": "c", "dest": "orchestrator", "body": begin(f"a{n}", reserve())}).encode() for n in range(3)
    ))  # fmt: skip
    until(lambda: talk.process.stdin and unread(talk.process.stdin) == 0, what="the lines are read")
    talk.process.send_signal(signal.SIGTERM)
    assert talk.process.wait(60) == 1
    assert (
        talk.process.stderr.read()
        == b"sagastream bridge: stopped with 3 lines in flight; they may not have been done\n"
    )


def unread(pipe: Any) -> int:
    """How much of a pipe its reader has not taken yet."""
    size = bytearray(4)
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, size)
    return int.from_bytes(size, sys.byteorder)


def test_a_full_store_is_said_once(server: Server, commands: Commands) -> None:
    """The bridge goes on reading while its writing fails."""
    env = {"REDIS_URL": server.url}
    talk = Talk(commands.start("bridge", "--drain-timeout", "0", env=env))
    talk.say("c", {"type": "init", "msg_id": 1})
    talk.hear()
    client = server.broker().client
    client.config_set("maxmemory", 1)
    talk.say("c", begin("a", reserve()))
    assert talk.process.stderr is not None
    assert b"sagastream bridge: the store is full: raise maxmemory" in talk.process.stderr.readline()
    # The follower reads on for three rounds.
    first = reads(client)
    until(lambda: reads(client) >= first + 3, what="the follower reads on")
    client.config_set("maxmemory", 0)
    assert talk.process.stderr.readline() == b"sagastream bridge: the broker is back\n"
    assert talk.finish()[0] == 0
    assert client.xlen(ONLY.requests) == 1


def reads(client: Any) -> int:
    """How often somebody has read the events."""
    return int(client.info("commandstats").get("cmdstat_xread", {}).get("calls", 0))


def test_an_echoed_saga_is_told_whole_whoever_awaits_it(talk: Talk, commands: Commands) -> None:
    talk.finish()
    talk = Talk(commands.start("bridge", "--trace", "--outcomes"))
    for n in range(60):
        talk.say("c", begin(f"a{n}", reserve(), charge(1), msg_id=n))
        talk.say("d", {"type": "saga_await", "msg_id": n, "saga_id": f"a{n}"})
    code, rest, errors = talk.finish()
    assert (code, errors) == (0, "")
    told: dict[str, list[str]] = {}
    for line in map(json.loads, rest.splitlines()):
        body = line["body"]
        told.setdefault(body.get("saga_id") or body["state"]["saga_id"], []).append(body["type"])
    messages = ["ReserveInventory", "ReserveInventory_ok", "ChargePayment", "ChargePayment_ok", "saga_completed"]
    assert len(told) == 60
    for types in told.values():
        assert [kind for kind in types if kind != "saga_await_ok"] == messages
        assert types.count("saga_await_ok") == 1


def test_a_parked_saga_is_told_of_at_the_end(commands: Commands) -> None:
    talk = Talk(commands.start("bridge", "--serve", "hotel", "--drain-timeout", "1"))
    talk.say("c", begin("a", do(1, "Book", "hotel"), reserve("sold_out")))
    assert talk.hear()[2]["type"] == "Book"
    talk.say("hotel", {"type": "Book_ok", "saga_id": "a", "step": 1})
    code, rest, errors = talk.finish()
    assert (code, rest) == (0, "")
    assert errors.startswith(
        "sagastream bridge: saga a is parked, and waits for a person: nobody knows what undoes Book"
    )


def test_a_store_that_cannot_be_used_ends_the_bridge_though_its_input_is_open(
    server: Server, commands: Commands
) -> None:
    """One of its threads gets an error that waiting does not mend."""
    talk = Talk(commands.start("bridge", env={"REDIS_URL": server.url}))
    talk.say("c", {"type": "init", "msg_id": 1})
    talk.hear()
    client = server.broker().client
    client.acl_setuser("default", commands=["-xread"], enabled=True)
    try:
        assert talk.process.wait(60) == 1
    finally:
        client.acl_setuser("default", commands=["+xread"], enabled=True)
    assert talk.process.stderr is not None
    assert talk.process.stderr.read().startswith(b"Error: ")


def test_sigterm_stores_what_was_read(server: Server, commands: Commands) -> None:
    """A flood is broken off: for every line that was read from the pipe, the broker has the effect."""
    talk = Talk(commands.start("bridge", env={"REDIS_URL": server.url}))
    talk.say("c", {"type": "init", "msg_id": 1})
    talk.hear()
    lines = [json.dumps({"src": "c", "dest": "orchestrator", "body": begin(f"s{n}", reserve())}) for n in range(5000)]
    assert talk.process.stdin is not None
    writer = threading.Thread(target=write_all, args=[talk.process.stdin, "\n".join([*lines, ""]).encode()])
    writer.start()
    client = server.broker().client
    until(lambda: client.xlen(ONLY.requests) > 100, what="some are stored")
    talk.process.send_signal(signal.SIGTERM)
    assert talk.process.stderr is not None
    assert talk.process.wait(60) == 0
    assert talk.process.stderr.read() == b""
    writer.join()
    assert client.xlen(ONLY.requests) < 5000


def write_all(pipe: Any, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        pipe.write(data)
        pipe.flush()


def test_a_reader_that_does_not_read_does_not_keep_the_bridge(server: Server, commands: Commands) -> None:
    """Nobody reads its output, which is full; it can be stopped all the same."""
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    talk = Talk(commands.start("bridge", "--trace", "--serve", "work", env=env))
    for n in range(200):
        talk.say("c", begin(f"s{n}", do("x" * 1000)))
    client = server.broker().client
    until(lambda: client.zcard(ONLY.timers) == 200, what="the commands are there to be written out")
    assert talk.process.stdout is not None
    until(lambda: unread(talk.process.stdout) > 50_000, what="the pipe is full")
    talk.process.send_signal(signal.SIGTERM)
    assert talk.process.wait(60) is not None


def test_a_bridge_that_nobody_reads_ends_while_it_answers(commands: Commands) -> None:
    talk = Talk(commands.start("bridge"))
    init = json.dumps({"src": "c", "dest": "orchestrator", "body": {"type": "init", "msg_id": 1}})
    writer = threading.Thread(target=write_all, args=[talk.process.stdin, f"{init}\n".encode() * 6000])
    writer.start()
    until(lambda: unread(talk.process.stdout) > 50_000, what="the pipe is full")
    talk.process.send_signal(signal.SIGTERM)
    assert talk.process.wait(60) == 1
    writer.join()


def test_a_bridge_that_joins_a_lonely_server_runs_what_it_needs(commands: Commands) -> None:
    """Another process waits for a saga in a home where nothing else runs, and owns the server."""
    waiting = commands.start("begin", "-", "--wait")
    assert waiting.stdin is not None
    assert waiting.stderr is not None
    waiting.stdin.write(json.dumps({"saga_id": "a", "steps": [reserve()]}).encode())
    waiting.stdin.close()
    assert b"no worker is running" in waiting.stderr.readline()
    talk = Talk(commands.start("bridge", "--outcomes"))
    talk.say("c", begin("b", reserve()))
    assert talk.hear(20)[2]["type"] == "saga_completed"
    assert waiting.wait(60) == 0
    assert talk.finish() == (0, "", "")


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "outcome"},
        {"kind": "outcome", "saga_id": b"\xff"},
        {"kind": "refused"},
        {"kind": "refused", "saga_id": "a", "request_id": "r", "body": "{"},
        {"kind": "command", "saga_id": "a", "body": "{", "service": "work"},
        {"kind": "reply", "saga_id": "a"},
        {"kind": "outcome", "saga_id": "a", "body": "[]"},
        {"odd": "one"},
    ],
)
def test_a_stray_event_ends_nothing(server: Server, commands: Commands, event: dict[Any, Any]) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    talk = Talk(commands.start("bridge", "--trace", "--outcomes", "--serve", "work", env=env))
    talk.say("c", begin("a", do(1)))
    assert talk.hear()[2]["type"] == "Do"
    server.broker().client.xadd(ONLY.events, event)
    talk.say("work", {"type": "Do_ok", "saga_id": "a", "step": 1})
    assert [talk.hear()[2]["type"], talk.hear()[2]["type"]] == ["Do_ok", "saga_completed"]
    assert talk.finish()[0] == 0


def test_a_stray_event_that_is_read_after_the_end_swallows_nothing(server: Server, commands: Commands) -> None:
    """By the time it is read, what it says is true, and it comes before the saga's last messages."""
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    talk = Talk(commands.start("bridge", "--trace", "--outcomes", env=env))
    talk.say("c", begin("a", do(1)))
    assert talk.hear()[2]["type"] == "Do"
    client = server.broker().client
    talk.process.send_signal(signal.SIGSTOP)
    client.xadd(ONLY.events, {"kind": "outcome", "saga_id": "a"})
    client.xadd(ONLY.replies("work"), {"body": json.dumps({"type": "Do_ok", "saga_id": "a", "step": 1})})
    until(lambda: client.zscore(ONLY.ended, "a"), what="the saga has ended")
    talk.process.send_signal(signal.SIGCONT)
    assert [talk.hear()[2]["type"], talk.hear()[2]["type"]] == ["Do_ok", "saga_completed"]
    assert talk.finish() == (0, "", "")


def test_whoever_waits_for_a_saga_that_is_damaged_meanwhile_is_told(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    talk = Talk(commands.start("bridge", "--serve", "work", env=env))
    talk.say("c", begin("a", do(1)))
    assert talk.hear()[2]["type"] == "Do"
    talk.say("d", {"type": "saga_await", "msg_id": 5, "saga_id": "a"})
    talk.say("d", {"type": "init", "msg_id": 6})
    assert talk.hear()[2]["type"] == "init_ok"  # so it waits by now
    server.broker().client.hset(ONLY.saga("a"), "status", "odd")
    heard = [talk.hear(), talk.hear()]
    assert sorted((dest, body["in_reply_to"], body["code"]) for _, dest, body in heard) == [("c", 1, 13), ("d", 5, 13)]
    assert talk.finish() == (1, "", "")


def test_sigterm_ends_a_bridge_and_all_that_it_brought_up(commands: Commands) -> None:
    talk = Talk(commands.start("bridge"))
    talk.say("c", {"type": "init", "msg_id": 1})
    talk.hear()
    home = commands.home
    server = int((home / "valkey.pid").read_text())
    talk.process.send_signal(signal.SIGTERM)
    assert talk.process.wait(60) == 0
    assert not Path(f"/proc/{server}").exists()


def test_a_killed_bridge_leaves_a_home_that_the_next_one_goes_on_with(commands: Commands) -> None:
    talk = Talk(commands.start("bridge", "--serve", "hotel"))
    talk.say("c", begin("a", do(None, "Book", "hotel", compensation=None)))
    assert talk.hear()[2]["type"] == "Book"
    talk.process.kill()
    talk.process.wait()
    # Its children notice that it is gone, and end.
    talk = Talk(commands.start("bridge", "--outcomes"))
    talk.say("c", begin("b", reserve()))
    assert talk.hear()[2]["type"] == "saga_completed"
    talk.say("c", {"type": "saga_status", "msg_id": 2, "saga_id": "a"})
    assert talk.hear()[2]["state"]["status"] == "PENDING"
    assert talk.finish() == (0, "", "")


def test_when_the_owner_of_a_home_ends_another_bridge_takes_over(commands: Commands) -> None:
    owner = Talk(commands.start("bridge", "--outcomes"))
    owner.say("c", begin("a", reserve()))
    owner.hear()
    guest = Talk(commands.start("bridge", "--outcomes", "--drain-timeout", "20"))
    guest.say("c", begin("b", reserve()))
    assert guest.hear()[2]["saga_id"] == "b"
    assert owner.finish() == (0, "", "")
    guest.say("c", begin("d", reserve(), msg_id=3))
    assert guest.hear(20)[2]["saga_id"] == "d"
    code, rest, errors = guest.finish()
    assert (code, rest) == (0, "")
    assert errors == ""
    broker = Broker(home=commands.home)
    try:
        for saga_id in "abd":
            state = SagaClient(broker).get(saga_id)
            assert state is not None
            assert state.status is SagaStatus.COMPLETED
    finally:
        broker.close()


def test_nobody_reading_the_output_ends_the_bridge(commands: Commands) -> None:
    talk = Talk(commands.start("bridge"))
    talk.say("c", {"type": "init", "msg_id": 1})
    talk.hear()
    assert talk.process.stdout is not None
    talk.process.stdout.close()
    talk.say("c", {"type": "init", "msg_id": 2})
    assert talk.process.wait(60) == 1
    assert talk.process.stderr is not None
    assert talk.process.stderr.read() == b"sagastream bridge: nobody reads the output any more\n"


# --- sagas of definitions


def test_a_line_begins_a_saga_of_a_definition(server: Server, commands: Commands) -> None:
    order = Definition("order", version=1, input={"required": ["amount"]})
    order.attribute("amount", order.input.amount)
    order.step("ChargePayment", service="till", params={"amount": order.input.amount}, compensation=None)
    order.step("Pick", service="till", id="pick", each=order.input.items, params=item, compensation=None)
    newer = Definition("order", version=2)
    newer.step("Other", service="till")
    with SagaClient(server.url) as client:
        client.deploy(newer)
        client.deploy(order)
    commands.quiet("worker", env={"REDIS_URL": server.url})
    talk = Talk(commands.start("bridge", "--outcomes", "--serve", "till", env={"REDIS_URL": server.url}))
    body = {"type": "saga_begin", "saga_id": "o-1", "definition": "order", "input": {"amount": 5, "items": ["a", "b"]}}
    talk.say("alice", body | {"msg_id": 7, "attributes": {"shop": "web"}})
    for step, params in ((1, {"amount": 5}), (2, "a"), (3, "b")):
        line = talk.line()
        assert (line["dest"], line["body"]["step"], line["body"]["params"]) == ("till", step, params)
        assert line["definition"] == "order"
        talk.say("till", {"type": line["body"]["type"] + "_ok", "saga_id": "o-1", "step": step})
    assert talk.hear()[2]["type"] == "saga_completed"
    for wrong, code, text in (
        ({"definition": "trip"}, 20, "the store has no definition trip: sagastream deploy FILE brings one"),
        ({"version": 7}, 20, "the store has no version 7 of the definition order"),
        ({"version": 0}, 12, "the body: version must be a whole number from 1"),
        ({"input": {}}, 12, "input: 'amount' is a required property"),
        ({"input": {"amount": 5, "items": 5}}, 12, "step 2: each: /input/items is not a list but a number"),
        ({"input": {"amount": True, "items": []}}, 12, "attributes/amount must be a text or a whole number"),
        ({"attributes": {"at": 1}}, 12, "the body: attributes: at is taken"),
        ({"deadline_ms": 5}, 12, "the body has an unknown member 'deadline_ms'"),
        ({"saga_id": "o 2"}, 12, "the body: saga_id must be 1 to 128 characters"),
    ):
        changed: Any = wrong
        talk.say("alice", body | {"saga_id": "o-2", "msg_id": 8} | changed)
        _, dest, error = talk.hear()
        assert (dest, error["in_reply_to"], error["code"]) == ("alice", 8, code)
        assert error["text"].startswith(text)
    assert talk.finish()[0] == 1
    with SagaClient(server.url) as client:
        state = client.get("o-1")
        assert state is not None
        assert state.definition == order.parsed.by
        assert [saga.saga_id for saga in client.find(where={"amount": 5, "shop": "web"}).sagas] == ["o-1"]
        assert client.get("o-2") is None
