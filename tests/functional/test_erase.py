"""Erased sagas, on real servers: nothing of what they held is left in the store or in the server's files, and all else
stays as it was."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from sagastream import AsyncSagaClient, RequestRefused
from sagastream.broker import exchange
from sagastream.client import requests
from sagastream.client.blocking import SagaClient
from sagastream.client.erasing import ERASED
from sagastream.core.parsing import parse_begin
from sagastream.errors import MalformedMessage
from sagastream.store.keys import StoreKeys, moving
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stored import dump, keys_with_bytes
from support.stores import KEYS, ONLY, divided, in_each
from support.streams import add_reply
from support.waiting import until

#: What must be gone. It does not repeat itself, so no compression hides it.
SECRET = "mei.tanaka@example.org"
REASON = "asked for by its owner"


def holders(client: "redis.Redis") -> list[str]:
    return keys_with_bytes(client, SECRET)


def files(server: Server) -> list[str]:
    """The files of a server that hold it, after it has written them anew."""
    client = server.broker().client
    client.config_set("rdbcompression", "no")
    client.config_set("auto-aof-rewrite-percentage", "0")
    client.bgrewriteaof()
    until(
        lambda: not any(client.info("persistence")[f"aof_rewrite_{what}"] for what in ("in_progress", "scheduled")),
        what="the file is written anew",
    )
    assert client.info("persistence")["aof_last_bgrewrite_status"] == "ok"
    paths = [path for path in (server.folder / "appendonlydir").iterdir() if path.is_file()]
    assert paths
    return [path.name for path in paths if SECRET.encode() in path.read_bytes()]


def erased_view(client: SagaClient, saga_id: str) -> dict[str, Any]:
    state = client.get(saga_id)
    assert state is not None
    return {
        "status": str(state.status),
        "steps": [(str(step.status), step.definition.params, step.result, step.error) for step in state.steps],
        "interventions": [(done.verb, done.reason, done.actor) for done in state.interventions],
    }


def neighbours(scene: Scene, number: Iterator[int], waits: bool = False) -> list[str]:
    """Begin sagas whose messages stand beside those of others: one that ends, and one that waits for a service that
    does not run."""
    one, other = f"n{next(number)}", f"n{next(number)}"
    scene.client.begin(one, [do("other")])
    if waits:
        scene.client.begin(other, [do("other", "Fly", "away", compensation=None)])
    return [one, other] if waits else [one]


@pytest.mark.parametrize("partitions", [1, 3])
def test_nothing_is_left_of_what_an_erased_saga_held(server: Server, partitions: int) -> None:
    broker = server.broker()
    keys = divided(broker, partitions)
    scene, numbers = Scene(broker), itertools.count()
    ids = []
    for saga_id in (*in_each(keys, "done"), *in_each(keys, "failed")):
        ids.append(saga_id)
        neighbours(scene, numbers, waits=True)
        last = "fail" if saga_id.startswith("failed") else SECRET
        request = {"saga_id": saga_id, "steps": [do({"to": SECRET}), do(last), do(SECRET, "DoForGood")]}
        begin_traced(scene, keys, request)
        neighbours(scene, numbers, waits=True)
        scene.play(saga_id)
        # The service says an error, and a message that makes no sense names the saga.
        scene.redis.xadd(
            keys.of(saga_id).replies("work"), {"body": f'{{"type":"x","saga_id":"{saga_id}","a":"{SECRET}"}}'}
        )
        scene.redis.xadd(keys.of(saga_id).commands("work"), {"body": f'{{"saga_id":"{saga_id}", {SECRET}'})
    parked = in_each(keys, "parked")[0]
    scene.client.begin(parked, [do(SECRET, compensation="Nothing", compensation_attempts=1), do("fail")])
    assert scene.play(parked).parked
    threading.Timer(0, lambda: scene.client.abandon(parked, SECRET, 20, actor=SECRET)).start()
    scene.turns_until(lambda: bool((found := scene.client.get(parked)) and found.ended))
    ids.append(parked)
    run_until(scene, lambda: quarantined(scene, keys) == 2 * len(ids) - 2, "all that makes no sense is set aside")
    assert {key.split(":")[2] for key in holders(scene.redis)} >= {"saga", "done", "events", "quarantine"}
    before = {key: what for key, what in dump(scene.redis).items() if b":saga:n" in key or b"commands:away" in key}
    courses = {saga_id: erased_view(scene.client, saga_id) for saga_id in ids}

    erased = scene.client.erase_many(ids, REASON, actor="me")

    assert erased.is_complete, erased
    assert (erased.hashes, erased.quarantined) == (len(ids), 2 * len(ids) - 2)
    assert erased.records
    assert erased.events
    assert holders(scene.redis) == []
    assert files(server) == []
    after = dump(scene.redis)
    assert not [key for key in after if key.endswith(b":copy")]
    assert {key: after[key] for key in before} == before
    for saga_id in ids:
        was, now = courses[saga_id], erased_view(scene.client, saga_id)
        assert now["status"] == was["status"]
        assert now["steps"] == [(status, b"null", None, None) for status, *_ in was["steps"]]
        texts = [(verb, ERASED, ERASED if actor else None) for verb, _, actor in was["interventions"]]
        assert now["interventions"] == [*texts, ("erase", REASON, "me")]
        with pytest.raises(RequestRefused):
            scene.client.begin(saga_id, [do({"to": SECRET})])
    again = scene.client.erase_many(ids, REASON, actor="me")
    assert again.is_complete
    assert [again.hashes, again.records, again.events, again.quarantined, again.commands] == [0] * 5
    # Everything goes on: what waits, waits, and what is begun, ends.
    scene.client.begin("after", [do(1)])
    assert scene.play("after").status == "COMPLETED"


def begin_traced(scene: Scene, keys: StoreKeys, request: dict[str, Any]) -> None:
    """Begin a saga whose messages are events too."""
    begin = parse_begin(request, request_id=request["saga_id"], echo=True)
    exchange.run(scene.redis, requests.append(keys, [begin]))


def run_until(scene: Scene, condition: Callable[[], bool], what: str) -> None:
    def ran() -> bool:
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)
        return condition()

    until(ran, what=what)


def quarantined(scene: Scene, keys: StoreKeys) -> int:
    streams = [one for each in keys.partitions for one in (each.quarantine, each.quarantine_of("work"))]
    return sum(int(scene.redis.xlen(one)) for one in streams)


def test_a_command_of_an_erased_saga_that_comes_again_has_no_effect_again(server: Server) -> None:
    scene = Scene(server.broker())
    seen: list[dict[bytes, bytes]] = []
    scene.client.begin("s1", [do(SECRET), do("fail")])
    stream = ONLY.commands("work")
    while not (state := scene.client.get("s1")) or not state.ended:
        scene.worker.turn(block_ms=1)
        entries: Any = scene.redis.xrange(stream)
        seen += [fields for _, fields in entries]
        scene.runner.turn(block_ms=1)
    assert len(seen) == 3
    effects = (list(scene.effects.done), list(scene.effects.undone))
    scene.client.erase("s1", REASON)
    course = erased_view(scene.client, "s1")
    for fields in seen:
        bare = {name: word.replace(SECRET.encode(), b"x") for name, word in fields.items()}
        scene.redis.xadd(stream, bare)  # type: ignore[arg-type]
    run_until(scene, lambda: idle(scene), "all commands are answered, and the answers read")
    assert (scene.effects.done, scene.effects.undone) == effects
    assert erased_view(scene.client, "s1") == course
    assert scene.redis.xlen(ONLY.quarantine) == 0


def idle(scene: Scene) -> bool:
    return not (scene.redis.xlen(ONLY.commands("work")) or scene.redis.xlen(ONLY.replies("work")))


def test_a_saga_that_has_not_ended_is_refused_and_the_others_are_erased(server: Server) -> None:
    scene = Scene(server.broker())
    scene.client.begin("live", [do(1, "Fly", "away", compensation=None)])
    scene.client.begin("parked", [do(1, compensation="Nothing", compensation_attempts=1), do("fail")])
    scene.client.begin("ended", [do(SECRET)])
    scene.play("ended")
    assert scene.play("parked").parked
    before = dump(scene.redis)
    with pytest.raises(RequestRefused, match=r"has not ended.*sagastream cancel live"):
        scene.client.erase("live", REASON)
    with pytest.raises(RequestRefused, match="sagastream skip, retry or abandon parked"):
        scene.client.erase("parked", REASON)
    for saga_id, reason, actor in (("no id!", REASON, "me"), ("ended", " ", "me"), ("ended", REASON, "")):
        with pytest.raises(MalformedMessage):
            scene.client.erase(saga_id, reason, actor=actor)
    assert dump(scene.redis) == before
    erased = scene.client.erase_many(["live", "ended", "parked"], REASON)
    assert (sorted(erased.refused), erased.hashes) == (["live", "parked"], 1)
    assert holders(scene.redis) == []


def test_what_is_still_in_use_is_named_and_erased_later(server: Server) -> None:
    scene = Scene(server.broker())
    scene.client.begin("s1", [do(SECRET)])
    scene.play("s1")
    command = b'{"type":"Do","saga_id":"s1","step":1,"params":"%s"}' % SECRET.encode()
    scene.redis.xadd(ONLY.commands("work"), {"body": command})
    scene.redis.xreadgroup("work", "somebody", {ONLY.commands("work"): ">"})
    scene.redis.xadd(ONLY.commands("work"), {"body": command, "replayed": "1"})
    scene.redis.xadd(ONLY.commands("work"), {"body": command})
    add_reply(scene.redis, "work", {"body": f'{{"type":"Do_ok","saga_id":"s1","step":1,"result":"{SECRET}"}}'})
    erased = scene.client.erase("s1", REASON)
    assert erased.commands == 1
    assert len(erased.left) == 2
    assert "1 of saga:{0}:replies:work: a worker takes them" in erased.left[0]
    assert "2 of saga:{0}:commands:work: a process has read them" in erased.left[1]
    assert holders(scene.redis) == [ONLY.commands("work"), ONLY.replies("work")]
    scene.worker.turn(block_ms=1)
    scene.redis.delete(ONLY.commands("work"))
    scene.redis.rename(ONLY.replies("work"), moving(ONLY.replies("work")))
    assert "sagastream doctor --repair" in scene.client.erase("s1", REASON).left[0]
    scene.redis.rename(moving(ONLY.replies("work")), ONLY.replies("work"))
    assert scene.client.erase("s1", REASON).is_complete
    assert holders(scene.redis) == []


def test_of_a_saga_that_has_expired_the_rest_is_erased(server: Server) -> None:
    scene = Scene(server.broker())
    scene.client.begin("s1", [do(SECRET)])
    scene.client.begin("s10", [do("other")])
    scene.play("s1")
    scene.play("s10")
    add_reply(scene.redis, "work", {"body": f"s1 {SECRET}"})
    scene.worker.turn(block_ms=1)
    scene.redis.unlink(ONLY.saga("s1"))
    assert len(holders(scene.redis)) == 2
    erased = scene.client.erase("s1", REASON)
    assert (erased.hashes, erased.records, erased.quarantined, erased.is_complete) == (0, 1, 1, True)
    assert holders(scene.redis) == []
    assert erased_view(scene.client, "s10")["steps"] == [("COMPLETED", b'"other"', b'"other"', None)]


def test_an_event_loop_erases_too(server: Server) -> None:
    scene = Scene(server.broker())
    scene.client.begin("s1", [do(SECRET)])
    scene.play("s1")

    async def erase() -> None:
        async with AsyncSagaClient(server.broker()) as client:
            assert (await client.erase("s1", REASON, actor="me")).hashes == 1
            with pytest.raises(MalformedMessage):
                await client.erase("", REASON)
            assert (await client.erase_many(["s1"], REASON)).is_complete

    asyncio.run(erase())
    assert holders(scene.redis) == []


def test_the_command_line_erases_and_says_what_it_cannot(server: Server, commands: Commands) -> None:
    scene = Scene(server.broker())
    scene.client.begin("s1", [do(SECRET)])
    scene.client.begin("s2", [do(1, "Fly", "away", compensation=None)])
    scene.play("s1")
    done = commands.run("erase", "s1", "s2", "--reason", REASON, "--by", "me", REDIS_URL=server.url)
    assert done.returncode == 1
    assert done.stdout.startswith("erased: 1 saga, 1 record, ")
    assert "saga s2 has not ended" in done.stderr
    assert "BGREWRITEAOF" in done.stderr
    again = commands.run("erase", "s1", "--reason", REASON, REDIS_URL=server.url)
    assert (again.returncode, again.stdout) == (0, "erased: nothing, the store holds none of it\n")
    shown = commands.run("show", "s1", REDIS_URL=server.url).stdout
    assert REASON in shown
    assert SECRET not in shown


#: A service that writes down what it does, and for whom.
TILL = """
from pathlib import Path
from sagastream import Service

service = Service("till", concurrency=4)


@service.command("Charge", compensation=None)
def charge(params, context):
    with Path("charged").open("a") as book:
        print(context.key, file=book, flush=True)
    return params
"""


def test_sagas_go_on_while_others_are_erased(server: Server, commands: Commands) -> None:
    (commands.folder / "till.py").write_text(TILL)
    env = {"REDIS_URL": server.url}
    processes = [commands.start("worker", env=env), commands.start("service", "till:service", env=env)]
    client, redis_ = SagaClient(server.broker()), server.broker().client
    step = do(SECRET, "Charge", "till", compensation=None)
    client.begin("w", [do(SECRET, "Fly", "away", compensation=None)])
    rounds, ids = 0, [f"s{number}" for number in range(40)]
    client.begin_many([{"saga_id": saga_id, "steps": [step, step]} for saga_id in ids])
    while rounds < 15:
        rounds += 1
        newer = [f"s{rounds}-{number}" for number in range(40)]
        for saga_id in ids:
            assert client.wait(saga_id, 60).status == "COMPLETED"
        client.begin_many([{"saga_id": saga_id, "steps": [step, step]} for saga_id in newer])
        erased = client.erase_many(ids, REASON)  # beside the newer ones, which are under way
        assert (erased.hashes, erased.refused) == (len(ids), {})
        ids = newer
    for saga_id in ids:
        client.wait(saga_id, 60)
    client.cancel("w", SECRET, 30, now=True)
    assert client.wait("w", 60).status == "ABORTED"
    until(lambda: client.erase_many([*ids, "w"], REASON).is_complete, what="all is answered and read, so all is erased")
    assert holders(redis_) == []
    keys = (commands.folder / "charged").read_text().splitlines()
    assert len(keys) == len(set(keys)) == (rounds + 1) * 40 * 2
    assert not redis_.exists(KEYS.losses)
    for process in processes:
        process.terminate()
        assert process.stderr is not None
        told = process.communicate(timeout=60)[1]
        assert len(told.splitlines()) == 1, told.decode()  # that it has started
