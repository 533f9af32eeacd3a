"""What operators do, with real processes: from the command line, and over the stdin protocol."""

import getpass
import json
import signal
import socket
import subprocess
import textwrap
from typing import Any

import pytest
import redis

from sagastream.broker.connection import connect
from sagastream.client.blocking import SagaClient
from support.processes import SAMPLES, Commands, Talk
from support.scenes import do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.streams import add_reply
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

#: A service whose compensations work once a file exists.
TILL = """
from pathlib import Path
from sagastream import Reject, Service

service = Service("till")


@service.command("Charge", compensation="Refund")
def charge(params, context):
    if params == "fail":
        raise Reject("no money")
    return params


@service.compensation("Refund")
def refund(params, context):
    if not Path("open").exists():
        raise Reject("the bank is closed")
"""


@pytest.fixture
def till(server: Server, commands: Commands) -> "subprocess.Popen[bytes]":
    """The process of the service."""
    (commands.folder / "till.py").write_text(textwrap.dedent(TILL))
    return commands.quiet("service", "till:service", env={"REDIS_URL": server.url})


@pytest.fixture
def env(server: Server, commands: Commands, till: "subprocess.Popen[bytes]") -> dict[str, str]:
    """A worker and the service; the environment that reaches them."""
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    return env


def parked(commands: Commands, env: dict[str, str], saga_id: str = "s1") -> None:
    """A saga whose refund fails."""
    steps = [do(1, "Charge", "till", compensation_attempts=2, backoff_ms=1), do("fail", "Charge", "till")]
    done = commands.run("begin", "-", "--wait", given=json.dumps({"saga_id": saga_id, "steps": steps}), **env)
    assert done.returncode == 3
    assert done.stdout == f"{saga_id} COMPENSATING: parked: Refund of step 1 failed 2 times: the bank is closed\n"


def test_a_parked_saga_is_retried_once_what_was_wrong_is_mended(
    env: dict[str, str], till: "subprocess.Popen[bytes]", commands: Commands
) -> None:
    parked(commands, env)
    till.send_signal(signal.SIGSTOP)  # it would answer before the command has looked
    done = commands.run("retry", "s1", "--reason", "try once more", **env)
    till.send_signal(signal.SIGCONT)
    assert (done.returncode, done.stdout) == (
        0,
        "s1 COMPENSATING: waits for till to answer Refund, step 1 (attempt 3 of 4)\n",
    )
    until(lambda: "failed 4 times" in commands.run("show", "s1", **env).stdout, what="it is parked again")
    (commands.folder / "open").touch()
    assert commands.run("retry", "s1", "--reason", "the bank is open", **env).returncode == 0
    until(lambda: "ABORTED" in commands.run("show", "s1", **env).stdout, what="it ends")
    shown = json.loads(commands.run("show", "s1", "--json", **env).stdout)
    assert [(step["status"], step["compensation_attempt"]) for step in shown["steps"]] == [
        ("COMPENSATED", 5),
        ("FAILED", 0),
    ]
    assert [(done["verb"], done["reason"]) for done in shown["interventions"]] == [
        ("retry", "try once more"),
        ("retry", "the bank is open"),
    ]


@pytest.mark.parametrize(
    ("verb", "reason"),
    [("skip", "Step 2 failed: no money"), ("abandon", "Step 2 failed: no money; abandoned at step 1: by hand")],
)
def test_a_parked_saga_may_be_ended_without_its_undo(
    env: dict[str, str], commands: Commands, verb: str, reason: str
) -> None:
    parked(commands, env)
    done = commands.run(verb, "s1", "--reason", "by hand", **env)
    assert (done.returncode, done.stdout) == (0, f"s1 ABORTED: {reason}\n")
    again = commands.run(verb, "s1", "--reason", "by hand", **env)
    assert (again.returncode, again.stderr) == (1, "Error: saga s1 has ended, ABORTED\n")


def test_a_saga_is_cancelled(env: dict[str, str], server: Server, commands: Commands) -> None:
    (commands.folder / "open").touch()
    steps = [do(1, "Charge", "till"), do(2, "Charge", "raw", compensation=None)]
    commands.run("begin", "-", given=json.dumps({"saga_id": "s1", "steps": steps}), **env)
    client = server.broker().client
    until(lambda: client.xlen(ONLY.commands("raw")), what="its second step is out")
    done = commands.run("cancel", "s1", "--reason", "\x1b[31mchanged my mind", **env)
    assert done.returncode == 0, done.stderr
    answered(server, "Charge_ok", 2)
    until(lambda: "ABORTED" in commands.run("show", "s1", **env).stdout, what="it ends")
    shown = commands.run("show", "s1", **env).stdout
    assert "reason   Cancelled: \\x1b[31mchanged my mind" in shown
    assert "\x1b" not in shown


#: A service whose handler takes until a file exists. Its books are a list.
DESK = """
import time
from pathlib import Path
from sagastream import Service

service = Service("desk", concurrency=2)


def write(line):
    with Path("books").open("a") as books:
        books.write(line + "\\n")


@service.command("Book", compensation="Unbook")
def book(params, context):
    write("began")
    while not Path("go").exists():
        time.sleep(0.01)
    write("booked")


@service.compensation("Unbook")
def unbook(params, context):
    write("undone")
"""


@pytest.fixture
def desk(server: Server, commands: Commands) -> dict[str, str]:
    """A worker and the service; the environment that reaches them."""
    (commands.folder / "desk.py").write_text(textwrap.dedent(DESK))
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    commands.quiet("service", "desk:service", env=env)
    client = server.broker().client
    until(lambda: client.exists(KEYS.published("desk")), what="the service is there")
    return env


def books(commands: Commands) -> list[str]:
    path = commands.folder / "books"
    return path.read_text().splitlines() if path.exists() else []


def test_a_saga_is_cancelled_now_while_its_step_has_a_day_to_answer(desk: dict[str, str], commands: Commands) -> None:
    begin = {"saga_id": "s1", "steps": [do(1, "Book", "desk", timeout_ms=24 * 3600 * 1000)]}
    commands.run("begin", "-", given=json.dumps(begin), **desk)
    until(lambda: books(commands) == ["began"], what="the handler runs")
    done = commands.run("cancel", "s1", "--reason", "ordered twice", "--actor", "ann\x1b", **desk)
    assert done.stdout == "s1 PENDING: waits for desk to answer Book, step 1, to be cancelled then\n"
    done = commands.run("cancel", "s1", "--now", "--reason", "it hangs", **desk)
    assert done.returncode == 0, done.stderr
    until(lambda: "ABORTED" in commands.run("show", "s1", **desk).stdout, what="it ends")
    assert books(commands) == ["began", "undone"]
    (commands.folder / "go").touch()
    until(lambda: books(commands)[-2:] == ["booked", "undone"], what="what was done too late is undone")
    shown = commands.run("show", "s1", **desk).stdout
    assert "by ann\\x1b: ordered twice" in shown
    interventions = json.loads(commands.run("show", "s1", "--json", **desk).stdout)["interventions"]
    me = f"{getpass.getuser()}@{socket.gethostname()}"
    assert [(one["verb"], one["actor"]) for one in interventions] == [("cancel", "ann\x1b"), ("cancel now", me)]
    assert f"cancel now {interventions[1]['at']}  by {me}: it hangs" in shown
    again = commands.run("cancel", "s1", "--now", "--reason", "again", **desk)
    assert (again.returncode, again.stderr) == (1, "Error: saga s1 has ended, ABORTED\n")
    assert "No such option" in commands.run("retry", "s1", "--now", "--reason", "x", **desk).stderr


def test_a_hard_deadline_does_not_wait_for_what_is_out(desk: dict[str, str], commands: Commands) -> None:
    steps = [do(1, "Book", "desk", timeout_ms=24 * 3600 * 1000)]
    begin = {"saga_id": "s1", "deadline_ms": 4000, "deadline": "hard", "steps": steps}
    done = commands.run("begin", "-", "--wait", "--timeout", "60", given=json.dumps(begin), **desk)
    assert done.stdout == "s1 ABORTED: The deadline, 4000 ms after the begin, has passed\n"
    (commands.folder / "go").touch()
    until(lambda: books(commands) == ["began", "undone", "booked", "undone"], what="what was done too late is undone")


@pytest.mark.parametrize("verb", ["cancel", "retry", "skip", "abandon"])
def test_bad_input_is_told_on_one_line(env: dict[str, str], commands: Commands, verb: str) -> None:
    unknown = commands.run(verb, "nobody", "--reason", "x", **env)
    text = f"Error: there is no saga nobody in the store {env['REDIS_URL']}\n"
    assert (unknown.returncode, unknown.stderr) == (1, text)
    for arguments, complaint in (
        (["a b", "--reason", "x"], "saga_id must be 1 to 128 characters"),
        (["s1"], "Missing option '--reason'"),
        (["s1", "--reason", " "], "--reason must be a text of 1 to 500 characters"),
        (["s1", "--reason", "x" * 501], "reason must be a text of 1 to 500 characters"),
        (["s1", "--reason", "x", "--actor", "x" * 129], "--actor must be a text of 1 to 128 characters"),
    ):
        done = commands.run(verb, *arguments, **env)
        assert done.returncode == 2
        assert complaint in done.stderr.splitlines()[-1]


def begun(server: Server, commands: Commands, *steps: Any) -> None:
    """Saga s1 has begun: a worker that is still starting would read its answers before it."""
    commands.run("begin", "-", given=json.dumps({"saga_id": "s1", "steps": steps}), REDIS_URL=server.url)
    client = server.broker().client
    until(lambda: client.exists(ONLY.saga("s1")), what="a worker has begun it")


def answered(server: Server, kind: str, step: int, **more: Any) -> None:
    """A service in another language, `raw`, says this of saga s1."""
    with redis.Redis.from_url(server.url) as client:
        body = json.dumps({"type": kind, "saga_id": "s1", "step": step})
        add_reply(client, "raw", {"body": body, "attempt": 1, **more})


def shown(commands: Commands, env: dict[str, str], where: str | None) -> None:
    until(
        lambda: json.loads(commands.run("show", "s1", "--json", **env).stdout)["parked_at"] == where,
        what=f"it is parked at {where}",
    )


@pytest.fixture
def undone_by_hand(server: Server, commands: Commands) -> dict[str, str]:
    """A worker, and a saga that is parked at the undo of its second step; the environment that reaches them."""
    env = {"REDIS_URL": server.url}
    worker = commands.quiet("worker", env=env)
    undo = {"A": "UndoA", "B": "UndoB", "C": None}
    steps = [do(1, name, "raw", compensation=undo[name], compensation_attempts=1) for name in undo]
    begun(server, commands, *steps)
    answered(server, "A_ok", 1)
    answered(server, "B_ok", 2)
    answered(server, "C_failed", 3)
    answered(server, "UndoB_failed", 2)
    shown(commands, env, "2/compensation/1")
    assert worker.poll() is None
    return env


def test_a_skip_is_for_what_was_seen_and_not_for_where_the_saga_is_by_then(
    undone_by_hand: dict[str, str], server: Server, commands: Commands
) -> None:
    env = undone_by_hand
    line = next(line for line in commands.run("show", "s1", **env).stdout.splitlines() if "sagastream skip" in line)
    assert "skip s1 --reason TEXT --parked-at 2/compensation/1" in line
    answered(server, "UndoB_ok", 2)
    answered(server, "UndoA_failed", 1)
    shown(commands, env, "1/compensation/1")
    skip = ("skip", "s1", "--reason", "UndoB was done by hand")
    done = commands.run(*skip, "--parked-at", "2/compensation/1", **env)
    why = "saga s1 is no longer parked at 2/compensation/1: it is parked at 1/compensation/1"
    assert (done.returncode, done.stderr) == (1, f"Error: {why}\n")
    shown(commands, env, "1/compensation/1")
    talk = Talk(commands.start("bridge", "--no-outcomes", env=env))
    body = {"saga_id": "s1", "reason": "by hand", "parked_at": "2/compensation/1"}
    talk.say("me", {"type": "saga_skip", "msg_id": 1, **body})
    assert talk.hear()[2] == {"type": "error", "in_reply_to": 1, "code": 22, "text": why}
    talk.say("me", {"type": "saga_status", "msg_id": 2, "saga_id": "s1"})
    status = talk.hear()[2]
    assert status["parked_at"] == "1/compensation/1"
    talk.say("me", {"type": "saga_skip", "msg_id": 3, **body, "parked_at": status["parked_at"]})
    assert talk.hear()[2]["state"]["status"] == "ABORTED"
    assert talk.finish()[0] == 1


@pytest.mark.parametrize("verb", ["skip", "retry", "abandon"])
def test_a_request_that_waits_for_a_worker_is_for_what_was_parked_when_it_was_sent(
    server: Server, commands: Commands, verb: str
) -> None:
    env = {"REDIS_URL": server.url}
    worker = commands.quiet("worker", env=env)
    steps = [do(1, name="A", service="raw", compensation="UndoA", compensation_attempts=1),
             do(1, name="B", service="raw", compensation="UndoB", compensation_attempts=1),
             do(1, name="C", service="raw", compensation=None)]  # fmt: skip
    begun(server, commands, *steps)
    for kind, step in (("A_ok", 1), ("B_ok", 2), ("C_failed", 3), ("UndoB_failed", 2)):
        answered(server, kind, step)
    shown(commands, env, "2/compensation/1")
    worker.terminate()
    worker.wait()
    done = commands.run(verb, "s1", "--reason", "x", "--timeout", "0.2", **env)
    assert "no worker has taken" in done.stderr
    with SagaClient(server.url) as client, pytest.raises(TimeoutError):
        getattr(client, verb)("s1", "from a program", 0.2)
    answered(server, "UndoB_ok", 2)
    answered(server, "UndoA_failed", 1)
    commands.quiet("worker", env=env)
    shown(commands, env, "1/compensation/1")
    with redis.Redis.from_url(server.url) as client:
        until(lambda: not client.xlen(ONLY.interventions), what="the requests are read")
    state = json.loads(commands.run("show", "s1", "--json", **env).stdout)
    assert (state["status"], state["parked_at"], state["interventions"]) == ("COMPENSATING", "1/compensation/1", [])


def test_a_cancel_that_is_read_after_the_pivot_was_parked_does_not_say_that_it_was_not_done(
    server: Server, commands: Commands
) -> None:
    env = {"REDIS_URL": server.url}
    worker = commands.quiet("worker", env=env)
    steps = [do(1, name="A", service="raw", compensation="UndoA", compensation_attempts=1),
             do(1, name="B", service="raw", compensation=None, kind="pivot", attempts=1)]  # fmt: skip
    begun(server, commands, *steps)
    answered(server, "A_ok", 1)
    with redis.Redis.from_url(server.url) as client:
        until(lambda: client.hget(ONLY.saga("s1"), "current_step") == b"2", what="the pivot is out")
        worker.terminate()
        worker.wait()
        commands.run("cancel", "s1", "--reason", "changed my mind", "--timeout", "0.2", **env)
        answered(server, "B_failed", 2, unknown=1)
        commands.quiet("worker", env=env)
        shown(commands, env, "2/transaction/1")
        until(lambda: not client.xlen(ONLY.interventions), what="the request is read")
    shown(commands, env, "2/transaction/1")
    plain = commands.run("cancel", "s1", "--reason", "changed my mind", **env)
    assert plain.returncode == 1
    assert "To say that step 2 was not done, cancel with --parked-at 2/transaction/1" in plain.stderr
    seen = commands.run("cancel", "s1", "--reason", "looked it up", "--parked-at", "2/transaction/1", **env)
    assert seen.stdout == "s1 COMPENSATING: waits for raw to answer UndoA, step 1\n"


def test_without_a_worker_the_request_waits_for_one(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    done = commands.run("cancel", "s1", "--reason", "x", "--timeout", "0.2", **env)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: no worker has taken the cancel of saga s1 within 0.2 s; "
        "it is in the store, and the next one will do it, or refuse it\n"
    )
    with connect(server.url) as client:
        assert client.xlen(ONLY.interventions) == 1


def test_over_stdin(env: dict[str, str], commands: Commands) -> None:
    parked(commands, env)
    talk = Talk(commands.start("bridge", "--no-outcomes", env=env))
    talk.say("me", {"type": "saga_retry", "msg_id": 1, "saga_id": "nobody", "reason": "why not"})
    assert talk.hear() == (
        "orchestrator",
        "me",
        {"type": "error", "in_reply_to": 1, "code": 20, "text": "there is no saga nobody"},
    )
    talk.say("me", {"type": "saga_skip", "msg_id": 2, "saga_id": "s1"})
    assert talk.hear()[2]["code"] == 12
    talk.say("me", {"type": "saga_skip", "msg_id": 3, "saga_id": "s1", "reason": "by hand", "actor": "ann"})
    _, _, answer = talk.hear()
    assert (answer["type"], answer["in_reply_to"], answer["state"]["status"]) == ("saga_skip_ok", 3, "ABORTED")
    talk.say("me", {"type": "saga_abandon", "msg_id": 4, "saga_id": "s1", "reason": "by hand"})
    assert talk.hear()[2] == {"type": "error", "in_reply_to": 4, "code": 22, "text": "saga s1 has ended, ABORTED"}
    code, rest, _ = talk.finish()
    assert (code, rest) == (1, "")
    shown = json.loads(commands.run("show", "s1", "--json", **env).stdout)
    assert [done["actor"] for done in shown["interventions"]] == ["ann"]


def test_cancelled_now_over_stdin(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    talk = Talk(commands.start("bridge", "--outcomes", env=env))
    talk.say("me", {"type": "saga_begin", "msg_id": 1, "saga_id": "s1", "steps": [do(1, compensation=None)]})
    talk.say("me", {"type": "saga_retry", "msg_id": 2, "saga_id": "s1", "reason": "no", "now": True})
    assert talk.hear()[2] == {
        "type": "error", "in_reply_to": 2, "code": 12, "text": "the body has an unknown member 'now'"
    }  # fmt: skip
    talk.say("me", {"type": "saga_cancel", "msg_id": 3, "saga_id": "s1", "reason": "no", "now": True})
    heard = {body["type"]: body for _, _, body in (talk.hear(), talk.hear())}
    assert heard["saga_cancel_ok"]["state"]["status"] == "ABORTED"
    assert heard["saga_aborted"]["reason"] == "Cancelled: no"
    assert talk.finish()[0] == 1


def test_begun_and_cancelled_in_one_breath(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    talk = Talk(commands.start("bridge", "--outcomes", env=env))
    steps = [do(1, "Charge", "nobody", timeout_ms=100, compensation=None)]
    talk.say("me", {"type": "saga_begin", "msg_id": 1, "saga_id": "s1", "steps": steps})
    talk.say("me", {"type": "saga_cancel", "msg_id": 2, "saga_id": "s1", "reason": "no"})
    _, _, answer = talk.hear()
    assert (answer["type"], answer["in_reply_to"], answer["state"]["status"]) == ("saga_cancel_ok", 2, "PENDING")
    _, _, outcome = talk.hear()
    assert (outcome["type"], outcome["in_reply_to"], outcome["reason"]) == ("saga_aborted", 1, "Cancelled: no")
    assert talk.finish()[0] == 0


def test_a_bridge_tells_at_once_of_a_saga_that_parks(env: dict[str, str], commands: Commands) -> None:
    talk = Talk(commands.start("bridge", "--outcomes", "--drain-timeout", "1", env=env))
    steps = [do(1, "Charge", "till", compensation_attempts=1), do("fail", "Charge", "till")]
    talk.say("me", {"type": "saga_begin", "msg_id": 1, "saga_id": "s1", "steps": steps})
    client = SagaClient(commands_broker(env))
    assert client.wait("s1", 60).parked
    _, _, errors = talk.finish()
    assert "saga s1 is parked, and waits for a person: Refund of step 1 failed: the bank is closed" in errors


def commands_broker(env: dict[str, str]) -> Any:
    from sagastream.broker.connection import Broker

    return Broker(env["REDIS_URL"])


# --- the quarantine


@pytest.fixture
def client(env: dict[str, str]) -> "redis.Redis":
    return connect(env["REDIS_URL"])


def quarantined(client: "redis.Redis", count: int) -> None:
    until(lambda: client.xlen(ONLY.quarantine) == count, what="it is quarantined")


@pytest.mark.slow
def test_a_quarantined_message_is_shown_put_back_and_dropped(
    env: dict[str, str], commands: Commands, client: "redis.Redis"
) -> None:
    fields: dict[Any, Any] = {"body": '{"type":"Charge_ok\\u202e","saga_id":"s1","step":1}', "x\x1b": "y"}
    add_reply(client, "work", fields)
    client.xadd(ONLY.requests, {"body": "{"})
    quarantined(client, 2)
    listed = commands.run("quarantine", "list", **env)
    assert listed.stderr == "2 shown of 2\n"
    assert "\x1b" not in listed.stdout
    assert "\u202e" not in listed.stdout
    newest, oldest = (line.split()[0] for line in listed.stdout.splitlines())
    assert commands.run("quarantine", "list", "--limit", "1", **env).stderr == "1 shown of 2 (--limit shows more)\n"
    reply = next(i for i in (newest, oldest) if "202e" in commands.run("quarantine", "show", i, **env).stdout)
    shown = json.loads(commands.run("quarantine", "show", reply, **env).stdout)
    assert (shown["stream"], shown["fields"]) == (ONLY.replies("work"), {"x\x1b": "y"})
    # Put back unchanged, the message is quarantined again.
    done = commands.run("quarantine", "replay", reply, **env)
    assert (done.returncode, done.stdout) == (0, f"{reply} put back into {ONLY.replies('work')}\n")
    quarantined(client, 2)
    ids = [line.split()[0] for line in commands.run("quarantine", "list", **env).stdout.splitlines()]
    assert reply not in ids
    dropped = commands.run("quarantine", "drop", *ids, **env)
    assert dropped.stdout == "".join(f"{entry_id} dropped\n" for entry_id in ids)
    assert client.xlen(ONLY.quarantine) == 0


def test_a_reply_that_came_before_its_saga_is_put_back_and_counts(
    env: dict[str, str], commands: Commands, client: "redis.Redis"
) -> None:
    add_reply(client, "nobody", {"body": '{"type":"Charge_ok","saga_id":"s1","step":1}'})
    quarantined(client, 1)
    begin = {"saga_id": "s1", "steps": [do(1, "Charge", "nobody")]}
    commands.run("begin", "-", given=json.dumps(begin), **env)
    until(lambda: client.exists(ONLY.saga("s1")), what="it has begun")
    [line] = commands.run("quarantine", "list", **env).stdout.splitlines()
    assert commands.run("quarantine", "replay", line.split()[0], **env).returncode == 0
    until(lambda: client.hget(ONLY.saga("s1"), "status") == b"COMPLETED", what="it completes")


@pytest.mark.parametrize("command", ["show", "replay", "drop"])
@pytest.mark.parametrize("entry_id", ["1-1", "x", "-", "+", "1-1\x1b[31m"])
def test_what_the_quarantine_does_not_hold(server: Server, commands: Commands, command: str, entry_id: str) -> None:
    done = commands.run("quarantine", command, "--", entry_id, REDIS_URL=server.url)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the quarantine holds no '")
    assert done.stderr.isprintable() or done.stderr.rstrip("\n").isprintable()


def test_what_came_from_no_inbox_cannot_be_put_back(
    env: dict[str, str], commands: Commands, client: "redis.Redis"
) -> None:
    entry: dict[Any, Any] = {"reason": "x", "stream": "somewhere", "entry_id": "1-1", "body": "{}", "fields": "{}"}
    first, second = (
        client.xadd(ONLY.quarantine, entry),
        client.xadd(ONLY.quarantine, entry | {"stream": ONLY.replies("work"), "fields": '{"cut'}),
    )
    for entry_id, why in ((first, "nothing can be put back there"), (second, "too large to be kept whole")):
        assert isinstance(entry_id, bytes)
        done = commands.run("quarantine", "replay", entry_id.decode(), **env)
        assert done.returncode == 1
        assert why in done.stderr
    assert client.xlen(ONLY.quarantine) == 2


def test_the_samples_run_with_workers_that_keep_sagas_for_a_moment(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", "--retention-days", "0.00001", env=env)
    for where in SAMPLES:
        commands.quiet("service", where, env=env)
    begin = {"saga_id": "s1", "steps": [do({"sku": "a", "quantity": 1}, "ReserveInventory", "inventory")]}
    assert commands.run("begin", "-", "--wait", given=json.dumps(begin), **env).returncode == 0
    with connect(server.url) as client:
        until(lambda: not client.exists(ONLY.saga("s1")), what="it expires")
    for bad in ("0", "-1", "nan", "inf", "x"):
        assert commands.run("worker", "--retention-days", bad, **env).returncode == 2
