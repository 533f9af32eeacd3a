"""The examples of docs/client.md, word for word, with the service of the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rq import Queue

from sagastream import SagaClient
from support.processes import Commands
from support.servers import Server

ROOT = Path(__file__).parents[2]
EXAMPLES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL))

#: The code that the reader adds to the last example.
USE_ORDERS = """
import os
import sqlite3
import redis
from orders import place, see_to_open_orders
from sagastream import SagaClient

db = sqlite3.connect(":memory:")
db.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, amount INTEGER, outcome TEXT)")
place(db, "row-1", 5)
with SagaClient() as client:
    see_to_open_orders(db, client)
    db.execute("UPDATE orders SET outcome = NULL")  # if it has ended already, nobody has noticed
    redis.from_url(os.environ["REDIS_URL"]).flushall()  # the store loses what it has accepted
    see_to_open_orders(db, client)
    print(client.wait("row-1", 60).status)
    see_to_open_orders(db, client)
    db.execute("UPDATE orders SET outcome = NULL")  # as if it had died before it wrote that down
    see_to_open_orders(db, client)
    print(db.execute("SELECT outcome FROM orders").fetchall())
"""


@pytest.fixture
def shop(server: Server, commands: Commands) -> Commands:
    """A folder with the service and the examples, and processes that run it."""
    service = re.search(r"```python\n# shop\.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert service is not None
    (commands.folder / "shop.py").write_text(service[1])
    for name, text in EXAMPLES.items():
        (commands.folder / name).write_text(text)
    (commands.folder / "use_orders.py").write_text(USE_ORDERS)
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    commands.quiet("service", "shop:service", env=env)
    return commands


def told(shop: Commands, server: Server, name: str) -> list[str]:
    """The output of an example."""
    done = subprocess.run(
        [sys.executable, "-W", "error", name],
        cwd=shop.folder,
        env=shop.environment(REDIS_URL=server.url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_every_example_does_what_the_page_says(shop: Commands, server: Server) -> None:
    assert set(EXAMPLES) == {"buy.py", "import_orders.py", "web.py", "jobs.py", "orders.py"}
    no_money = "Step 2 failed: insufficient_funds"
    assert told(shop, server, "buy.py") == [
        "order-17 COMPLETED p-order-17/1/transaction",
        f"order-18 ABORTED {no_money}",
        "[('ChargeCard', 'COMPENSATED', None), ('ChargeCard', 'FAILED', 'insufficient_funds')]",
        f"2 till saga order-18 was aborted: {no_money} (step 2, ChargeCard of till)",
    ]
    # 101 to 104 are too much.
    charged, *aborted = told(shop, server, "import_orders.py")
    assert charged == "6 were charged"
    assert len(aborted) == 2
    assert {line.partition(" ")[2] for line in aborted} == {"Step 1 failed: insufficient_funds"}
    what = "it began with 5 as params.amount of step 1; this request has 6"
    assert told(shop, server, "web.py") == [
        "200 {'status': 'COMPLETED', 'reason': ''}",
        "200 {'status': 'ABORTED', 'reason': 'Step 1 failed: insufficient_funds'}",
        f"409 {{'error': 'another saga has the id web-5: {what}'}}",
        "400 {'error': 'the saga: saga_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -'}",
        "web-5",
    ]
    assert told(shop, server, "use_orders.py") == ["COMPLETED", "[('COMPLETED',)]"]


def test_an_rq_job_begins_a_saga_once_however_often_it_runs(shop: Commands, server: Server) -> None:
    broker = server.broker()
    queue = Queue(connection=broker.client)
    jobs = [queue.enqueue("jobs.begin_order", "job-1", 5) for _ in range(3)]
    rq = [str(Path(sys.executable).with_name("rq")), "worker", "--burst", "--url", server.url]
    env = shop.environment(REDIS_URL=server.url)
    done = subprocess.run(rq, cwd=shop.folder, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert [job.return_value(refresh=True) for job in jobs] == ["job-1"] * 3, done.stdout + done.stderr
    assert SagaClient(broker).wait("job-1", 60).status == "COMPLETED"


def test_a_type_checker_has_nothing_to_say_about_the_examples(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    paths = []
    for name, text in EXAMPLES.items():
        paths.append(tmp_path / name)
        paths[-1].write_text(text)
    said, errors, code = api.run(["--strict", "--cache-dir", str(ROOT / ".mypy_cache"), *map(str, paths)])
    assert (code, errors) == (0, ""), said
