"""Whatever a handler raises is its failure, and ends no process. A real signal does."""

import json
import signal
import sys
import textwrap

import pytest

from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from support.processes import Commands
from support.scenes import do
from support.servers import Server
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

SHOP = textwrap.dedent("""
    import asyncio
    from sagastream import Service, connect

    class Strange(BaseException):
        pass

    service = Service("work", concurrency=SLOTS)
    left = []

    def raised(name):
        raise {"KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit, "SystemExit": SystemExit,
               "Strange": Strange, "CancelledError": asyncio.CancelledError}[name]("by itself")

    async def raises(name):
        raised(name)

    @service.command("Do", compensation=None)
    def do(params, context):
        raised(params)

    @service.command("DoAsync", compensation=None)
    async def do_async(params, context):
        raised(params)

    @service.command("DoInGroup", compensation=None)
    async def do_in_group(params, context):
        async with asyncio.TaskGroup() as group:
            group.create_task(raises(params))

    @service.command("DoAndAwait", compensation=None)
    async def do_and_await(params, context):
        await asyncio.create_task(raises(params))

    @service.command("DoAndLeave", compensation=None)
    async def do_and_leave(params, context):
        left.append(asyncio.create_task(raises(params)))

    @service.command("Fine", compensation=None)
    def fine(params, context):
        return "fine"

    @service.command("FineAsync", compensation=None)
    async def fine_async(params, context):
        await asyncio.sleep(0.01)
        return "fine"
""")
ERRORS = ("KeyboardInterrupt", "GeneratorExit", "SystemExit", "Strange", "CancelledError")
#: Whose own failure the error is.
FAILS = ("Do", "DoAsync", "DoInGroup", "DoAndAwait")


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 4])
def test_every_error_of_every_handler_is_its_failure_and_all_others_go_on(
    server: Server, commands: Commands, slots: int
) -> None:
    (commands.folder / "shop.py").write_text(SHOP.replace("SLOTS", str(slots)))
    env, log = {"REDIS_URL": server.url}, commands.folder / "log"
    with log.open("wb") as file:
        process = commands.start("service", "shop:service", stdout=file, stderr=file, env=env)
    commands.quiet("worker", env=env)
    client = SagaClient(server.broker())
    for name in ("Fine", "FineAsync", *FAILS, "DoAndLeave"):
        for error in ERRORS:
            client.begin(f"{name}-{error}", [do(error, name, attempts=1)])
    for error in ERRORS:
        for name in FAILS:
            state = client.wait(f"{name}-{error}", 60)
            if (name, error) == ("DoInGroup", "CancelledError"):
                continue  # to a group of tasks, one that is cancelled is no failure
            assert state.status is SagaStatus.ABORTED, name
            # A group of tasks raises a group of errors, unless one of them would end the program.
            told = "ExceptionGroup" if name == "DoInGroup" and error in ("GeneratorExit", "Strange") else error
            assert told in (state.reason or ""), name
        for name in ("Fine", "FineAsync", "DoAndLeave"):
            assert client.wait(f"{name}-{error}", 60).status is SagaStatus.COMPLETED
    for error in ("KeyboardInterrupt", "SystemExit"):
        command = f"DoAndLeave of saga DoAndLeave-{error}, step 1, attempt 1"
        name = f"a task that {command}, has started raised {error}: by itself"
        until(lambda name=name: name in log.read_text(), what=name)  # type: ignore[misc]
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


PROGRAM = textwrap.dedent("""
    import json, signal, sys, threading
    from sagastream import Broker, Service
    from sagastream.service.runner import ServiceRunner

    service = Service("work")

    @service.command("Do", compensation=None)
    def do(params, context):
        print("runs", flush=True)
        threading.Event().wait(60)

    def exits(*_):
        raise SystemExit(7)

    signal.signal(signal.SIGTERM, exits)
    try:
        ServiceRunner(Broker(), service, threading.Event()).run()
    except BaseException as error:
        print(json.dumps(repr(error)), flush=True)
""")


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, "KeyboardInterrupt()"), (signal.SIGTERM, "SystemExit(7)")]
)
def test_a_real_signal_within_a_handler_ends_a_program_that_runs_a_service(
    server: Server, commands: Commands, number: signal.Signals, raised: str
) -> None:
    commands.quiet("worker", env={"REDIS_URL": server.url})
    program = commands.start(program=(sys.executable, "-c", PROGRAM), env={"REDIS_URL": server.url})
    client = SagaClient(server.broker())
    client.begin("s1", [do()])
    assert program.stdout is not None
    assert program.stdout.readline() == b"runs\n"
    program.send_signal(number)
    assert json.loads(program.stdout.readline()) == raised
    assert program.wait(60) == 0
    # What was interrupted is not answered: another process takes it over.
    assert client.get("s1").status is SagaStatus.PENDING  # type: ignore[union-attr]
