"""Which effects stand: what a service that uses `Effects` answers to sagastream_effects."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker

from sagastream import Context, Effects, Reject, Service
from sagastream.core.commands import Command
from sagastream.core.steps import STANDING
from sagastream.effects import standing
from sagastream.service.handlers import context_of

ASKED = context_of(Command(service="till", type=STANDING, saga_id="q", step=1, params=b"{}", begun_ms=1))


def context(saga: int, *, undo: bool = False) -> Context:
    key = f"s{saga}/1/transaction"
    own = f"s{saga}/1/compensation" if undo else key
    return Context(saga_id=f"s{saga}", step=1, key=own, transaction_key=key, attempt=1)


@pytest.fixture(params=["sqlite3", "engine", "session"])
def effects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Effects]:
    file = str(tmp_path / "till.db")
    engine: Engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    sources: dict[str, Any] = {
        "sqlite3": lambda: sqlite3.connect(file),
        "engine": engine,
        "session": sessionmaker(engine),
    }
    made = Effects(sources[request.param])
    made.create_table()
    yield made
    engine.dispose()


def done(effects: Effects, *sagas: int, undo: tuple[int, ...] = (), reject: tuple[int, ...] = ()) -> None:
    def handler(params: Any, context: Context, db: Any) -> Any:
        if context.saga_id in {f"s{saga}" for saga in reject}:
            raise Reject("no")

    do, take_back = effects.once(handler), effects.undo(handler)
    for saga in sagas:
        with contextlib.suppress(Reject):
            do(None, context(saga))
    for saga in undo:
        take_back(None, context(saga, undo=True))


def ask(effects: Effects, **params: Any) -> tuple[dict[str, str], str | None]:
    answer = effects.standing(params, ASKED)
    return {effect["key"]: effect["state"] for effect in answer["effects"]}, answer["after"]


def test_these_keys_are_answered_and_those_that_are_not_there_are_left_out(effects: Effects) -> None:
    done(effects, 1, 2, 3, 4, undo=(2,), reject=(3,))
    wanted = ["s1/1/transaction", "s2/1/transaction", "s3/1/transaction", "s9/1/transaction"]
    assert ask(effects, keys=wanted) == (dict(zip(wanted, ("done", "undone", "rejected"), strict=False)), None)
    assert ask(effects, keys=[]) == ({}, None)


def test_all_are_answered_page_by_page(effects: Effects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_ROWS", 3)
    done(effects, *range(8))
    found: dict[str, str] = {}
    after: str | None = ""
    pages = 0
    while after is not None:
        page, after = ask(effects, after=after, since_ms=0)
        found |= page
        pages += 1
    assert found == {f"s{n}/1/transaction": "done" for n in range(8)}
    assert pages == 3


def test_what_has_not_changed_since_then_is_left_out(effects: Effects) -> None:
    done(effects, 1)
    now_ms = round(time.time() * 1000)
    assert ask(effects, since_ms=now_ms - 60_000)[0] == {"s1/1/transaction": "done"}
    assert ask(effects, since_ms=now_ms + 60_000)[0] == {}


@pytest.mark.parametrize(
    "params",
    [None, [], {"keys": "s1"}, {"keys": [1]}, {"keys": ["k"] * 501}, {"after": 1}, {"since_ms": "1"}],
)
def test_what_makes_no_sense_is_refused(effects: Effects, params: Any) -> None:
    with pytest.raises(Reject):
        effects.standing(params, ASKED)


def test_an_async_source_answers_too(tmp_path: Path) -> None:
    file = str(tmp_path / "till.db")
    Effects(lambda: sqlite3.connect(file)).create_table()

    async def asked() -> Any:
        engine = create_async_engine(f"sqlite+aiosqlite:///{file}", poolclass=NullPool)
        effects = Effects(engine)

        @effects.once
        async def do(params: Any, context: Context, db: Any) -> Any:
            return None

        await do(None, context(1))
        try:
            return await effects.standing({"keys": ["s1/1/transaction"]}, ASKED)
        finally:
            await engine.dispose()

    assert [effect["state"] for effect in asyncio.run(asked())["effects"]] == ["done"]


def test_a_service_declares_it_as_a_command_that_needs_no_undo(effects: Effects) -> None:
    service = Service("till")
    service.standing(effects.standing)
    assert service.publishes() == {STANDING: None}
