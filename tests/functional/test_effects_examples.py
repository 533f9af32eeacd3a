"""The examples of docs/effects.md, word for word."""

import asyncio
import importlib.util
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, inspect

from sagastream import Context, Reject
from sagastream.effects.once import CREATE_TABLE
from support.postgres import Postgres
from support.processes import Commands

DOCS = (Path(__file__).parents[2] / "docs" / "effects.md").read_text()
PYTHON = {match[1]: match[0] for match in re.finditer(r"(?<=```python\n)# (\w+\.py)\n.*?(?=```)", DOCS, re.DOTALL)}
CREATE, DELETE = re.findall(r"```sql\n(.*?)\n```", DOCS, re.DOTALL)


@pytest.fixture
def dsn(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    dsn = postgres.new_database()
    monkeypatch.setenv("DATABASE_URL", dsn)
    return dsn


@pytest.fixture
def alchemy(dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same example, as SQLAlchemy names it."""
    url = dsn.replace("postgresql:", "postgresql+psycopg:")
    monkeypatch.setenv("DATABASE_URL", url)
    return url


def load(name: str, folder: Path) -> ModuleType:
    (folder / name).write_text(PYTHON[name])
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), folder / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contexts(number: int = 1) -> Iterator[Context]:
    """The contexts of a command and of its compensation."""
    key = f"s{number}/1/"
    for kind in ("transaction", "compensation"):
        yield Context(saga_id=f"s{number}", step=1, key=key + kind, transaction_key=f"{key}transaction", attempt=1)


def fetch(dsn: str, query: str) -> list[Any]:
    with psycopg.connect(dsn) as db:
        return db.execute(query).fetchall()


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn) as db:
        for statement in statements:
            db.execute(statement)


def test_the_service_on_sqlite_runs_as_it_stands_there(commands: Commands) -> None:
    shell = re.search(r"\n((?:    .*\n)*    sagastream up --service(?:.*\n)(?:    .*\n)*)", DOCS)
    assert shell is not None
    (commands.folder / "till.py").write_text(PYTHON["till.py"])
    done = commands.shell(shell[1])
    assert "o-1 ABORTED: Step 2 failed: insufficient_funds" in done.stdout
    assert "Traceback" not in done.stderr
    with closing(sqlite3.connect(commands.folder / "till.db")) as db:
        assert db.execute("SELECT * FROM payments").fetchall() == []
        states = dict(db.execute("SELECT key, state FROM sagastream_effects").fetchall())
        assert states == {"o-1/1/transaction": "undone", "o-1/2/transaction": "rejected"}
        db.execute(DELETE)
        assert db.execute("SELECT count(*) FROM sagastream_effects").fetchall() == [(2,)]


def test_the_example_with_sqlalchemy(dsn: str, alchemy: str, tmp_path: Path) -> None:
    orders = load("orders.py", tmp_path)
    engine = orders.sessions.kw["bind"]
    orders.Base.metadata.create_all(engine)
    execute(dsn, CREATE)
    command, compensation = contexts()
    placed = [orders.place({"sku": "abc123"}, command) for _ in range(2)]
    assert placed == [{"order_id": 1}] * 2
    assert fetch(dsn, "SELECT id, sku FROM orders") == [(1, "abc123")]
    for _ in range(2):
        orders.cancel({"sku": "abc123"}, compensation)
    assert fetch(dsn, "SELECT id FROM orders") == []
    with pytest.raises(Reject):
        orders.place({"sku": "abc123"}, command)
    engine.dispose()


def test_the_async_example(dsn: str, alchemy: str, tmp_path: Path) -> None:
    execute(dsn, CREATE, "CREATE TABLE stock (left_over int)", "INSERT INTO stock VALUES (5)")
    reservations = load("reservations.py", tmp_path)
    command, compensation = contexts()

    async def play() -> list[Any]:
        await asyncio.gather(*(reservations.reserve(None, command) for _ in range(3)))
        seen = fetch(dsn, "SELECT left_over FROM stock")
        await asyncio.gather(*(reservations.release(None, compensation) for _ in range(3)))
        await reservations.effects._open.__self__.dispose()
        return seen + fetch(dsn, "SELECT left_over FROM stock")

    assert asyncio.run(play()) == [(4,), (5,)]


def test_the_example_with_a_pool_of_psycopg(dsn: str, tmp_path: Path) -> None:
    execute(dsn, "CREATE TABLE accounts (balance int)", "INSERT INTO accounts VALUES (10)")
    accounts = load("accounts.py", tmp_path)
    with accounts.pool:
        command, compensation = contexts()
        for _ in range(2):
            accounts.withdraw({"amount": 7}, command)
        other, _ = contexts(2)
        for _ in range(2):
            with pytest.raises(Reject, match="insufficient_funds"):
                accounts.withdraw({"amount": 7}, other)
        assert fetch(dsn, "SELECT balance FROM accounts") == [(3,)]
        for _ in range(2):
            accounts.pay_back(
                {"amount": 5}, compensation
            )  # the store has lost writes: these are not the params of then
        assert fetch(dsn, "SELECT balance FROM accounts") == [(10,)]
    execute(dsn, DELETE)
    assert len(fetch(dsn, "SELECT * FROM sagastream_effects")) == 2


def test_the_table_is_the_one_that_is_created_and_the_one_for_alembic(dsn: str, alchemy: str, tmp_path: Path) -> None:
    assert CREATE == CREATE_TABLE
    orders = load("orders.py", tmp_path)
    [table] = re.findall(r"```python\n(from sqlalchemy import TIMESTAMP.*?)```", DOCS, re.DOTALL)
    exec(table, vars(orders))
    engine = orders.sessions.kw["bind"]
    orders.Base.metadata.create_all(engine)
    columns = inspect(engine).get_columns("sagastream_effects")
    execute(dsn, "DROP TABLE sagastream_effects", CREATE)
    again = create_engine(alchemy)
    assert str(inspect(again).get_columns("sagastream_effects")) == str(columns)
    again.dispose()
    engine.dispose()
