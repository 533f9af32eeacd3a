"""What processes log, on real servers: both formats, the fields of a handler's lines, and that a library writes
nothing."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaState
from sagastream.telemetry import POINTS
from support.processes import Commands
from support.scenes import do
from support.servers import OwnServer, Server
from support.stores import ONLY
from support.streams import add_reply
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

PAGE = (Path(__file__).parents[2] / "docs" / "logging.md").read_text()
EXAMPLES = {match[1]: match[0] for match in re.finditer(r"(?<=```python\n)# (\w+\.py)\n.*?(?=```)", PAGE, re.DOTALL)}

#: A service whose handlers log; one of them is async, and one fails.
SHOP = """
import asyncio, logging
from sagastream import Service

log = logging.getLogger("shop.till")
service = Service("shop", concurrency=4)


@service.command("Charge", compensation=None)
def charge(params, context):
    log.info("charging %s\\x1b[1m", params)
    log.debug("in detail")


@service.command("Ship", compensation=None)
async def ship(params, context):
    await asyncio.sleep(0)
    log.warning("shipping", extra={"parcel": params})
    await asyncio.to_thread(log.info, "packed")


@service.command("Lend", compensation="TakeBack")
def lend(params, context):
    log.info("lent")


@service.compensation("TakeBack")
def take_back(params, context):
    log.info("took back")


@service.command("Fail", compensation=None)
def fail(params, context):
    raise RuntimeError("no\\npaper")
"""


class Process:
    """A process with its stderr in a file, which is read again and again."""

    def __init__(self, commands: Commands, *arguments: str, **env: str) -> None:
        self._file = commands.folder / f"stderr-{len(commands.running)}"
        with self._file.open("wb") as stderr:
            self.process = commands.start(
                *arguments, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
            )

    @property
    def lines(self) -> list[str]:
        """The complete lines so far."""
        return self._file.read_bytes().decode().splitlines(keepends=True)

    @property
    def told(self) -> list[dict[str, Any]]:
        """The same lines as JSON: each must be an object."""
        return [json.loads(line) for line in self.lines if line.endswith("\n")]

    def end(self) -> list[str]:
        self.process.terminate()
        self.process.wait(60)
        return [line.rstrip("\n") for line in self.lines]


def ended(server: Server, saga_id: str, *steps: Any) -> SagaState:
    client = SagaClient(server.broker())
    return client.wait(client.begin(saga_id, list(steps)), 30)


def shop(commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(SHOP)


def members(lines: Sequence[dict[str, Any]], message: str) -> dict[str, Any]:
    """The one line with this message, without its time."""
    (found,) = [line for line in lines if line["message"] == message]
    return {name: value for name, value in found.items() if name != "time"}


STEPS = [do(5, "Charge", "shop"), do("p-1", "Ship", "shop")]


# --- the lines of handlers


def test_as_text_a_line_of_a_handler_says_which_saga_step_and_attempt_it_is_of(
    server: Server, commands: Commands
) -> None:
    shop(commands)
    commands.quiet("worker", env={"REDIS_URL": server.url})
    service = Process(commands, "service", "shop:service", REDIS_URL=server.url)
    assert ended(server, "o-1", *STEPS).status == "COMPLETED"
    started, *lines = service.end()
    assert re.fullmatch(r"service shop \S+: started", started)
    assert lines == [
        r"shop.till: charging 5\x1b[1m [saga o-1, step 1, attempt 1]",
        "shop.till: WARNING: shipping [saga o-1, step 2, attempt 1]",
        "shop.till: packed [saga o-1, step 2, attempt 1]",
    ]


def test_as_json_saga_step_and_attempt_are_members(server: Server, commands: Commands) -> None:
    shop(commands)
    commands.quiet("worker", env={"REDIS_URL": server.url})
    service = Process(commands, "service", "shop:service", "--log-format", "json", REDIS_URL=server.url)
    state = ended(server, "o-1", *STEPS, do(None, "Fail", "shop", attempts=1))
    assert state.status == "ABORTED"
    service.end()
    told = service.told
    about = {"saga_id": "o-1", "service": "shop", "step": 1, "attempt": 1}
    charging = {"level": "info", "logger": "shop.till", "message": "charging 5\x1b[1m"}
    assert members(told, "charging 5\x1b[1m") == charging | about
    about["step"] = 2
    shipping = {"level": "warning", "logger": "shop.till", "message": "shipping", "parcel": "p-1"}
    assert members(told, "shipping") == shipping | about
    assert members(told, "packed") == {"level": "info", "logger": "shop.till", "message": "packed"} | about
    about["step"] = 3
    (raised,) = [line for line in told if "exception" in line]
    assert raised["message"] == "Fail of saga o-1, step 3, attempt 1, raised RuntimeError: no\npaper (try 3 of 3)"
    assert raised["exception"].endswith("RuntimeError: no\npaper")
    assert about.items() <= raised.items()
    unknown = members(told, "Fail of saga o-1, step 3, attempt 1, may have been done or not: RuntimeError: no\npaper")
    assert about.items() <= unknown.items()
    assert (unknown["logger"], unknown["level"]) == ("sagastream.service", "warning")
    assert unknown["source"] == told[0]["source"]


def test_the_lines_of_a_compensation_say_that_they_are_of_one(server: Server, commands: Commands) -> None:
    shop(commands)
    commands.quiet("worker", env={"REDIS_URL": server.url})
    service = Process(commands, "service", "shop:service", REDIS_URL=server.url)
    asked = do(5, "Lend", "shop", compensation="TakeBack")
    assert ended(server, "o-1", asked, do(None, "Fail", "shop", attempts=1)).status == "ABORTED"
    lines = service.end()
    assert "shop.till: lent [saga o-1, step 1, attempt 1]" in lines
    assert "shop.till: took back [saga o-1, step 1, compensation, attempt 1]" in lines


def test_a_user_of_servicerunner_has_the_fields_with_the_filter(server: Server, commands: Commands) -> None:
    shop(commands)
    commands.quiet("worker", env={"REDIS_URL": server.url})
    script = EXAMPLES["with_fields.py"] + (
        "import threading\nfrom sagastream import Broker\nfrom sagastream.service.runner import ServiceRunner\n"
        "from shop import service\nServiceRunner(Broker(), service, threading.Event()).run()\n"
    )
    with (commands.folder / "stderr").open("wb") as stderr:
        runner = python(commands, script, server, stderr=stderr)
    try:
        assert ended(server, "o-1", *STEPS).status == "COMPLETED"
    finally:
        runner.kill()
        runner.wait()
    started, *lines = (commands.folder / "stderr").read_text().splitlines()
    assert started == "INFO sagastream.service None/None/None started"
    assert lines == [
        "INFO shop.till o-1/1/1 charging 5\x1b[1m",
        "WARNING shop.till o-1/2/1 shipping",
        "INFO shop.till o-1/2/1 packed",
    ]


# --- formats and levels


def test_a_worker_tells_of_what_it_sets_aside_in_one_object(server: Server, commands: Commands) -> None:
    worker = Process(commands, "worker", REDIS_URL=server.url, SAGASTREAM_LOG_FORMAT="json")
    redis = server.broker().client
    entry_id = add_reply(redis, "work", {"body": '{"type":"Do_ok","saga_id":"nobody","step":1}'})
    until(lambda: redis.xlen(ONLY.quarantine), what="it is quarantined")
    worker.end()
    started, aside = worker.told
    assert (started["level"], started["logger"], started["message"]) == ("info", "sagastream.worker", "started")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", started["time"])
    text = f"quarantined the entry {entry_id.decode()} of {ONLY.replies('work')}: there is no saga nobody"
    assert aside == {
        "time": aside["time"],
        "level": "warning",
        "logger": "sagastream.worker",
        "message": text,
        "source": started["source"],
        "saga_id": "nobody",
        "stream": ONLY.replies("work"),
        "entry_id": entry_id.decode(),
    }


def test_up_tells_its_child_processes(commands: Commands, home: Path) -> None:
    shop(commands)
    up = Process(
        commands, "up", "--service", "shop:service", "--log-format", "json", "--log-level", "debug",
        SAGASTREAM_HOME=str(home),
    )  # fmt: skip
    until(lambda: [one["message"] for one in up.told].count("started") == 2, what="all have started")
    done = commands.run(
        "begin", "-", "--wait", given=json.dumps({"saga_id": "o-1", "steps": STEPS}), SAGASTREAM_HOME=str(home)
    )
    assert done.stdout == "o-1 COMPLETED\n"
    up.end()
    assert members(up.told, "in detail")["saga_id"] == "o-1"


def test_the_option_goes_before_the_environment(server: Server, commands: Commands) -> None:
    both = {"REDIS_URL": server.url, "SAGASTREAM_LOG_FORMAT": "text", "SAGASTREAM_LOG_LEVEL": "error"}
    worker = Process(commands, "worker", "--log-format", "json", "--log-level", "info", **both)
    until(lambda: worker.told, what="it has started")
    assert worker.told[0]["message"] == "started"


def test_below_the_level_nothing_is_written(server: Server, commands: Commands) -> None:
    shop(commands)
    commands.quiet("worker", env={"REDIS_URL": server.url})
    service = Process(commands, "service", "shop:service", "--log-level", "warning", REDIS_URL=server.url)
    assert ended(server, "o-1", *STEPS).status == "COMPLETED"
    assert service.end() == ["shop.till: WARNING: shipping [saga o-1, step 2, attempt 1]"]


@pytest.mark.parametrize(
    ("variable", "allowed"),
    [("SAGASTREAM_LOG_FORMAT", ("text", "json")), ("SAGASTREAM_LOG_LEVEL", ("debug", "info", "warning", "error"))],
)
@pytest.mark.parametrize("command", ["list", "worker"])
def test_a_setting_that_there_is_not_is_wrong_usage_and_told_in_one_line(
    server: Server, commands: Commands, command: str, variable: str, allowed: Sequence[str]
) -> None:
    done = commands.run(command, REDIS_URL=server.url, **{variable: "xml"})
    assert (done.returncode, done.stdout) == (2, "")
    *_, last = done.stderr.splitlines()
    assert "'xml'" in last
    assert [value for value in allowed if value not in last] == []


def test_what_the_bridge_says_is_json_too(server: Server, commands: Commands) -> None:
    done = commands.run("bridge", "--log-format", "json", given="garbage\n", REDIS_URL=server.url)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    told = json.loads(line)
    assert (told["logger"], told["source"]) == ("sagastream.bridge", "sagastream bridge")
    assert told["message"].startswith("line 1: ")


# --- in a library

WAIT = """
import asyncio, sys
from sagastream import AsyncSagaClient, SagaClient

def told():
    print("waiting", flush=True)
    return sys.argv[1]

async def in_loop():
    async with AsyncSagaClient() as client:
        print((await client.wait(told(), 60)).status)

if sys.argv[2] == "async":
    asyncio.run(in_loop())
else:
    with SagaClient() as client:
        print(client.wait(told(), 60).status)
"""


def python(commands: Commands, script: str, server: Server, *arguments: str, **options: Any) -> Any:
    env = commands.environment(REDIS_URL=server.url)
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], env=env, cwd=commands.folder, **options)
    commands.running.append(process)
    return process


@pytest.mark.own_server
@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_a_client_that_waits_through_an_outage_writes_nothing_unless_logging_is_configured(
    server: OwnServer, commands: Commands, kind: str
) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    configured = 'import logging\nlogging.basicConfig(format="%(levelname)s %(name)s %(message)s")\n' + WAIT
    processes = [python(commands, script, server, "o-1", kind, **pipes) for script in (WAIT, configured)]
    for process in processes:
        assert process.stdout.readline() == "waiting\n"
    server.kill()
    assert processes[1].stderr.readline().startswith("WARNING sagastream.broker the broker is away (")
    server.start()
    assert processes[1].stderr.readline() == "WARNING sagastream.broker the broker is back\n"
    shop(commands)
    for command in (("worker",), ("service", "shop:service")):
        commands.quiet(*command, env={"REDIS_URL": server.url})
    assert ended(server, "o-1", *STEPS).status == "COMPLETED"
    assert [process.communicate(timeout=120) for process in processes] == [("COMPLETED\n", ""), ("COMPLETED\n", "")]


def test_the_worker_of_the_page_counts_parked_sagas(server: Server, commands: Commands) -> None:
    worker = python(commands, EXAMPLES["counting_worker.py"], server, stdout=subprocess.PIPE, text=True)
    shop(commands)
    commands.quiet("service", "shop:service", env={"REDIS_URL": server.url})
    for number in (1, 2):
        state = ended(server, f"o-{number}", do(None, "Fail", "shop", kind="pivot", attempts=1))
        assert state.parked is not None
        assert worker.stdout.readline() == f"{number} parked: o-{number}, because {state.parked}\n"


def test_the_program_of_the_page_runs_a_worker_a_service_and_a_saga(server: Server, commands: Commands) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    program = python(commands, EXAMPLES["all_in_one.py"], server, **pipes)
    out, err = program.communicate(timeout=120)
    assert (program.returncode, out) == (0, "o-1 has ended: COMPLETED\n")
    lines = err.splitlines()
    assert sorted(lines[:2]) == ["INFO sagastream.service None started", "INFO sagastream.worker None started"]
    assert lines[2:] == ["INFO shop o-1 charging 50"]


def test_the_page_names_every_logger_and_every_point() -> None:
    for point in POINTS:
        assert f"`{point}`" in PAGE
    sources = [path for root in ("worker", "bridge") for path in (Path(__file__).parents[2] / root).rglob("*.py")]
    names = {name for path in sources for name in re.findall(r'\bLog\("(\w+)"', path.read_text())}
    assert {"worker", "service", "broker"} <= names
    table = PAGE.partition("## Loggers")[2].partition("\n## ")[0]
    assert {f"sagastream.{name}" for name in names} == set(re.findall(r"`(sagastream\.\w+)`", table))
