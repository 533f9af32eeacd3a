"""The event loop of async handlers: nothing that a handler or its tasks raise ends it."""

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from msgspec import structs

from sagastream.core.commands import Command
from sagastream.service.event_loop import EventLoop
from support.observers import called_with
from support.values import a_charge
from support.waiting import until

#: What would end the loop in which a task raises it.
ENDING = [KeyboardInterrupt, SystemExit]


class Told:
    """A loop, and what it tells."""

    def __init__(self) -> None:
        self.escaped: list[tuple[Command | None, BaseException]] = []
        self.loop = EventLoop(lambda command, error: self.escaped.append((command, error)))

    def run(self, handler: Callable[[], Coroutine[Any, Any, Any]], command: Command | None = None) -> Any:
        """What a handler returns, or raises."""
        done: Future[Any] = Future()

        async def handled() -> None:
            try:
                with called_with(command or a_charge()):
                    done.set_result(await handler())
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                done.set_exception(error)

        self.loop.start(handled())
        return done.result(60)


@pytest.fixture
def told() -> Iterator[Told]:
    one = Told()
    yield one
    one.loop.close()
    assert one.loop._thread is None or not one.loop._thread.is_alive()


async def raising(kind: type[BaseException]) -> None:
    raise kind("by itself")


async def fine() -> str:
    await asyncio.sleep(0)
    return "fine"


@pytest.mark.parametrize("kind", [*ENDING, GeneratorExit])
def test_what_a_handler_raises_itself_comes_out_of_it(told: Told, kind: type[BaseException]) -> None:
    with pytest.raises(kind, match="by itself"):
        told.run(lambda: raising(kind))
    assert told.run(fine) == "fine"
    assert told.escaped == []


@pytest.mark.parametrize("kind", ENDING)
def test_what_a_task_raises_that_it_awaits_comes_out_of_it_and_others_go_on(
    told: Told, kind: type[BaseException]
) -> None:
    waits, goes_on = asyncio.Event(), asyncio.Event()

    async def other() -> str:
        waits.set()
        await goes_on.wait()
        return "other"

    async def handler() -> None:
        await waits.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(raising(kind))
            group.create_task(asyncio.sleep(60))

    async def lets_go_on() -> None:
        goes_on.set()

    going: Future[Any] = Future()

    async def first() -> None:
        going.set_result(await other())

    told.loop.start(first())
    with pytest.raises(kind, match="by itself"):
        told.run(handler)
    told.run(lets_go_on)
    assert going.result(60) == "other"


@pytest.mark.parametrize("kind", ENDING)
def test_what_a_task_raises_that_it_leaves_behind_is_told_with_the_command(
    told: Told, kind: type[BaseException]
) -> None:
    left: list[asyncio.Task[None]] = []

    async def handler() -> str:
        left.append(asyncio.create_task(raising(kind)))
        return "done"

    command = a_charge()
    assert told.run(handler, command) == "done"
    until(lambda: told.escaped, what="it is told")
    [(found, error)] = told.escaped
    assert (found, type(error)) == (command, kind)
    assert told.run(fine) == "fine"


def test_what_several_tasks_raise_at_once_is_told_of_each_with_its_command(told: Told) -> None:
    left: list[asyncio.Task[None]] = []
    go = asyncio.Event()

    async def waits_and_raises() -> None:
        await go.wait()
        raise KeyboardInterrupt("by itself")

    async def handler() -> None:
        left.append(asyncio.create_task(waits_and_raises()))

    async def goes() -> None:
        go.set()  # all of them are ready in one turn of the loop

    commands = [structs.replace(a_charge(), saga_id=f"s{number}") for number in range(3)]
    for command in commands:
        told.run(handler, command)
    told.run(goes)
    until(lambda: len(told.escaped) == len(commands), what="each is told")
    assert sorted((command.saga_id, type(error)) for command, error in told.escaped if command) == [
        (command.saga_id, KeyboardInterrupt) for command in commands
    ]
    assert told.run(fine) == "fine"


def test_what_no_task_raised_is_told_too(told: Told) -> None:
    async def handler() -> None:
        def callback() -> None:
            raise SystemExit("by itself")

        asyncio.get_running_loop().call_soon(callback)

    told.run(handler)
    until(lambda: told.escaped, what="it is told")
    [(found, error)] = told.escaped
    assert (found, type(error)) == (None, SystemExit)
    assert told.run(fine) == "fine"


def test_a_handler_that_stops_the_loop_stops_nobody(told: Told) -> None:
    async def handler() -> None:
        asyncio.get_running_loop().stop()

    told.run(handler)
    assert told.run(fine) == "fine"


def test_what_asyncio_reports_of_a_task_names_the_command(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    async def handler() -> None:
        asyncio.create_task(raising(ValueError))  # noqa: RUF006 - as some handlers do

    async def collect() -> None:
        gc.collect()

    with caplog.at_level(logging.ERROR, "asyncio"):
        told.run(handler)
        until(lambda: told.run(collect) or caplog.messages, what="asyncio reports it")
    assert "of Charge of saga saga42, step 2" in caplog.text


def test_a_task_that_raises_while_the_loop_is_closed_leaves_no_thread(told: Told) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise KeyboardInterrupt

    async def handler() -> None:
        stubborn_one.append(asyncio.create_task(stubborn()))
        await asyncio.sleep(0)

    stubborn_one: list[asyncio.Task[None]] = []
    told.run(handler)
    told.loop.close()
    assert isinstance(stubborn_one[0].exception(), KeyboardInterrupt)
