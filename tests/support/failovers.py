"""What a failover that loses writes does to sagas under way, whatever the servers are; and what is told of it."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self

import redis

from sagastream.client.blocking import SagaClient
from sagastream.client.event_loop import AsyncSagaClient
from sagastream.core.saga import SagaState
from support import tills
from support.clusters import Cluster, Node
from support.processes import Commands
from support.waiting import until

SAGAS = 12


class Failing(Protocol):
    """Servers one of which fails, and another one takes its place."""

    url: str
    lost_bytes: int
    #: Whether a master that goes on beside the new one still accepts writes.
    is_deaf: bool

    def wait(self) -> None:
        """Until the replica has all that the master has now."""

    def cut(self) -> None:
        """From now on, nothing that the master accepts reaches the replica."""

    def promote(self) -> None:
        """The master dies, and the replica becomes the master."""

    def promoted_while_stopped(self) -> AbstractContextManager[None]:
        """The master stands still, the replica becomes the master, and the old one goes on."""


class OneOfCluster:
    """A master of a cluster and its replica. The other nodes hear at once if another one takes its place."""

    is_deaf = False

    def __init__(self, cluster: Cluster, key: str) -> None:
        """`key`: the master is the node that holds it."""
        self._cluster = cluster
        self.master = cluster.node_of(key)
        (self.replica,) = cluster.replicas_of(self.master)
        self.url = next(node.url for node in cluster.masters if node is not self.master)
        self.lost_bytes = 0
        self._behind = contextlib.ExitStack()

    def wait(self) -> None:
        self._cluster.wait_for_replicas(self.master)

    def cut(self) -> None:
        self._behind.enter_context(self._cluster.falling_behind(self.master))

    def promote(self) -> None:
        accepted = replication(self.master)["master_repl_offset"]
        self.master.kill()
        self._promoted(accepted)

    @contextlib.contextmanager
    def promoted_while_stopped(self) -> Iterator[None]:
        accepted = replication(self.master)["master_repl_offset"]
        self.master.pause()
        self._promoted(accepted)
        self.master.resume()
        yield
        self._cluster.wait_ok()
        assert self._cluster.replicas_of(self.replica) == [self.master]

    def _promoted(self, accepted: int) -> None:
        self._behind.close()
        until(lambda: replication(self.replica)["role"] == "master", what="the replica takes over")
        self.lost_bytes = accepted - (replication(self.replica)["second_repl_offset"] - 1)


def replication(node: Node) -> Any:
    with node.connect() as client:
        return client.info("replication")


def steps(*services: str, **options: Any) -> list[Any]:
    return [{"transaction": "Do", "service": service, **options} for service in services]


def listed(commands: Commands, url: str, *options: str) -> tuple[dict[str, list[str]], int]:
    """What `doctor --after-failover` tells of each saga, by the level and its id; and its exit code."""
    done = commands.run("doctor", "--after-failover", "--json", *options, REDIS_URL=url)
    assert "Traceback" not in done.stderr, done.stderr
    found: dict[str, list[str]] = {}
    for finding in map(json.loads, done.stdout.splitlines()):
        kind, _, name = finding["about"].partition(" ")
        found.setdefault(finding["level"] if kind == "saga" else f"{finding['level']} {kind}", []).append(name)
    return {level: sorted(names) for level, names in found.items()}, done.returncode


def differing(folder: Path, states: dict[str, SagaState | None]) -> list[str]:
    """The sagas whose end differs from the effects that really stand."""
    effects = tills.standing(folder)
    found = []
    for saga_id, state in states.items():
        number = 3 if state is None else len(state.steps)
        there = {n for n in range(1, number + 1) if f"{saga_id}/{n}/transaction" in effects}
        wanted = set(range(1, number + 1)) if state is not None and state.status == "COMPLETED" else set()
        if there != wanted:
            found.append(saga_id)
    return sorted(found)


class Tills:
    """A worker and the services of support.tills."""

    def __init__(self, pair: Failing, commands: Commands, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._commands = commands
        support = str(Path(tills.__file__).parents[1])
        self._env = {"REDIS_URL": pair.url, "TILLS": str(folder), "PYTHONPATH": support}
        self._running: list[Any] = []

    def start(self, *services: str) -> None:
        if not self._running:
            self._running.append(self._commands.quiet("worker", env=self._env))
        self._running += [self._commands.quiet("service", f"support.tills:{name}", env=self._env) for name in services]

    def end(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait(60)
        self._running = []

    def fail_over(self, pair: Failing, client: SagaClient) -> list[str]:
        """Three kinds of sagas, whose end is lost: completed, aborted, and begun after the replica had heard anything.
        Returns their ids."""
        self.start("early")
        for n in range(SAGAS):
            client.begin(f"completed-{n}", steps("early", "late", "early"))
            client.begin(f"aborted-{n}", steps("early", "choosy", "early"))
        begun = [f"{kind}-{n}" for kind in ("completed", "aborted") for n in range(SAGAS)]
        until(lambda: all(is_at_step_2(client.get(saga_id)) for saga_id in begun), what="they are at step 2")
        pair.wait()
        pair.cut()
        self.end()
        (self.folder / "refuse").touch()
        self.start("early", "late", "choosy")
        lost = [f"lost-{n}" for n in range(SAGAS)]
        for saga_id in lost:
            client.begin(saga_id, steps("early", "late", "early"))
        for saga_id in [*begun, *lost]:
            assert client.wait(saga_id, 60).status == ("ABORTED" if saga_id in begun[SAGAS:] else "COMPLETED")
        self.end()
        pair.promote()
        (self.folder / "refuse").unlink()
        return [*begun, *lost]


def is_at_step_2(state: SagaState | None) -> bool:
    return state is not None and state.current_step == 2


class Clients:
    """Clients that begin sagas, one after the other, until they are told to stop. Each waits for the end of its saga,
    and begins it again while nobody knows of it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.at_once = 1  # how many begin a saga at the same time
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.begun: list[str] = []
        self.told: dict[str, str] = {}  # the end of each saga, as its client was told
        self.begun_again: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Once all clients know how their sagas have ended."""
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with AsyncSagaClient(self._url) as client, asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                for _ in range(self.at_once):
                    number = len(self.begun)
                    self.begun.append(f"s-{number}")
                    kinds = ("early", "late", "early") if number % 3 else ("early", "choosy", "late")
                    its, deadline_ms = steps(*kinds), (None, 20, 60, 150)[number % 4]
                    group.create_task(self._order(client, f"s-{number}", its, deadline_ms))
                await asyncio.sleep(0.01)

    async def _order(self, client: AsyncSagaClient, saga_id: str, its: list[Any], deadline_ms: int | None) -> None:
        while saga_id not in self.told:
            with contextlib.suppress(TimeoutError, redis.RedisError):
                await client.begin(saga_id, its, deadline_ms=deadline_ms)
                self.told[saga_id] = str((await client.wait(saga_id, 2.0)).status)
                return
            self.begun_again.add(saga_id)


def fail_over(pair: Failing, how: str, scene: Tills, clients: Clients) -> None:
    """Have the replica take over while all are at work, and lose what came after some moment."""
    until(lambda: len(clients.told) > 5, what="they work")
    pair.wait()
    pair.cut()
    before = set(clients.begun)

    def told_since() -> int:
        """How many clients were told the end of sagas of which the replica knows nothing."""
        return sum(saga_id not in before for saga_id in list(clients.told))

    until(lambda: told_since() > 10, what="more is done")
    # Many are under way when the replica takes over.
    begun, clients.at_once = len(clients.begun), 50
    until(lambda: len(clients.begun) > begun + 50, what="many begin at once")
    clients.at_once = 1
    if how == "killed":
        pair.promote()
    else:
        with pair.promoted_while_stopped():
            lost = told_since()
            if pair.is_deaf:
                until(lambda: told_since() > lost + 10, what="the old master goes on as well")
    told = len(clients.told)
    until(lambda: len(clients.told) > told + 40, what="it goes on")


def all_at_work(pair: Failing, how: str, rate: int, commands: Commands, folder: Path) -> None:
    """Have writes lost while all are at work. Every saga must be listed that was told or done otherwise."""
    scene = Tills(pair, commands, folder)
    scene.start("early", "late", "choosy")
    with Clients(pair.url) as clients:
        fail_over(pair, how, scene, clients)
        until(lambda: len(clients.told) > 300 * (rate - 1), timeout_s=600, what="it goes on for long")
    assert pair.lost_bytes > 0
    assert clients.told.keys() == set(clients.begun)  # those that nobody knew were begun again
    assert clients.begun_again
    with SagaClient(pair.url) as client:
        states: dict[str, SagaState | None] = {}

        def have_ended() -> bool:
            states.update({saga_id: client.get(saga_id) for saga_id in clients.begun})
            return all(state is None or state.ended for state in states.values())

        until(have_ended, what="all that are known have ended")
    assert tills.not_once(scene.folder) == set()
    otherwise = {one for one, state in states.items() if state is None or state.status != clients.told[one]}
    assert otherwise
    found, texts = texts_listed(commands, pair.url)
    wanted = {*differing(scene.folder, states), *otherwise}
    missed = {one: (states[one], clients.told[one]) for one in wanted - found}
    assert missed == {}, texts
    # A worker may have written an end of which no client was told before it was lost.
    assert [texts[one] for one in found - wanted if "it may have been told to have ended" not in texts[one]] == []


def texts_listed(commands: Commands, url: str) -> tuple[set[str], dict[str, str]]:
    """The sagas of which `doctor --after-failover` says that something is wrong, and what it says of each."""
    done = commands.run("doctor", "--after-failover", "--json", REDIS_URL=url)
    texts: dict[str, str] = {}
    for finding in map(json.loads, done.stdout.splitlines()):
        kind, _, name = finding["about"].partition(" ")
        if kind == "saga" and finding["level"] == "problem":
            texts[name] = texts.get(name, "") + finding["text"]
    return set(texts), texts
