"""Erased sagas, on real servers: nothing of what they held is left in the store or in the server's files, and all else
stays as it was."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from sagastream import AsyncSagaClient, RequestRefused
from sagastream.broker import exchange
from sagastream.broker.connection import Broker
from sagastream.client import requests
from sagastream.client.blocking import SagaClient
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.erasure import ERASED
from sagastream.errors import MalformedMessage
from sagastream.store.keys import StoreKeys, moving
from sagastream.store.quarantine import Quarantine
from sagastream.store.roles import Role
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stored import dump, keys_with_bytes
from support.stores import KEYS, ONLY, divided, in_each
from support.streams import add_reply, append_requests
from support.users import Users
from support.waiting import until

#: What must be gone. It does not repeat itself, so no compression hides it.
SECRET = "mei.tanaka@example.org"
REASON = "asked for by its owner"


def holders(client: "redis.Redis") -> list[str]:
    return holders_of(client, SECRET.encode())


def holders_of(client: "redis.Redis", secret: bytes) -> list[str]:
    return keys_with_bytes(client, secret)


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


def test_nothing_is_left_of_what_a_graph_held(server: Server) -> None:
    scene = Scene(server.broker())
    told: dict[str, Any] = {"compensation_params": {"for": SECRET, "why": {"$ref": "/failure/reason"}}}
    steps = [
        do({"to": {"$ref": "/input/user"}, "literal": SECRET}, id="one", after=[], **told),
        do("never", when={"eq": [{"$ref": "/input/user"}, SECRET + "!"]}),
        {"wait": "approve", "timeout_ms": 60_000},
    ]
    ended = parse_begin({"saga_id": "g1", "input": {"user": SECRET}, "steps": steps}, request_id="r1")
    append_requests(scene.redis, [ended])
    run_until(scene, lambda: bool((found := scene.client.get("g1")) and found.current_step == 3), "it waits")
    threading.Timer(0, lambda: scene.client.signal("g1", "approve", timeout_s=20, decline=SECRET)).start()
    run_until(scene, lambda: bool((found := scene.client.get("g1")) and found.ended), "it ends")
    assert scene.effects.undone == ["g1/1/transaction"]
    assert holders(scene.redis)
    scene.client.erase("g1", REASON)
    assert holders(scene.redis) == []
    state = scene.client.get("g1")
    assert state is not None
    assert (state.status, state.input) == ("ABORTED", b"{}")
    before = dump(scene.redis)
    scene.client.erase("g1", REASON)
    assert dump(scene.redis) == before


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
        for steps in ([do({"to": SECRET})], [do(1)]):
            with pytest.raises(RequestRefused, match=f"{saga_id} was erased on 20..-..-.. by me: it cannot be"):
                scene.client.begin(saga_id, steps)
    again = scene.client.erase_many(ids, REASON, actor="me")
    assert again.is_complete
    assert [again.hashes, again.records, again.events, again.quarantined, again.commands] == [0] * 5
    assert list(again.before) == ids
    assert {(done.reason, done.actor) for done in again.before.values()} == {(REASON, "me")}
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
    with pytest.raises(RequestRefused, match=r"has not ended.*sagastream cancel live --reason TEXT"):
        scene.client.erase("live", REASON)
    with pytest.raises(RequestRefused, match="sagastream abandon parked --reason TEXT ends it"):
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
    held = f"{ONLY.commands('work')} still holds 2 entries of s1, which a process of work has read"
    assert erased.left == [
        f"{ONLY.replies('work')} still holds 1 entry of s1, which a worker takes: erase s1 again when one has run",
        f"{held}: erase s1 again when it has answered; sagastream doctor names one that hangs",
    ]
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
    assert erased.unknown == {"s1": 3}  # its record, its outcome in the events, and what makes no sense
    assert holders(scene.redis) == []
    assert erased_view(scene.client, "s10")["steps"] == [("COMPLETED", b'"other"', b'"other"', None)]


@pytest.mark.parametrize("has_hash", [True, False])
def test_whatever_was_sent_and_wherever_all_of_it_is_found(server: Server, has_hash: bool) -> None:
    """Messages that make no sense, in any partition; the store has lost the name of the service that set them aside."""
    broker = server.broker()
    keys, scene = divided(broker), Scene(broker)
    (saga_id, *_), (other, *_) = in_each(keys), in_each(keys, "other")
    scene.client.begin(saga_id, [do(SECRET)])
    scene.client.begin(other, [do("x")])
    scene.play(saga_id)
    scene.play(other)
    named = f'"saga_id":"{saga_id}"'
    steps = f'"steps":[{{"transaction":"Do","service":"work","params":"{SECRET}"}}]'
    bodies = [
        f'{{"type":"saga_begin",{named},{steps}}}',
        f"{{saga_id:{saga_id},{SECRET}}}",
        f"order-{saga_id}.{SECRET}",
        f'{{{named},"saga_id":"{other}","x":"{SECRET}"}}',
        f'{{"x":"{SECRET}","saga_id":"\\u0073{saga_id[1:]}","d":[{"1," * 150_000}1]}}',
        f'{{{named},"x":"{SECRET}"}}',
    ]
    entries: list[Any] = [{"body": body} for body in bodies]
    entries += [{"data": bodies[-1]}, {"data": bodies[-1].encode("utf-16")}, {"body": "{", "data": bodies[-1]}]
    for partition in keys.partitions:
        for stream in (partition.requests, partition.replies("work"), partition.commands("work")):
            for fields in entries:
                scene.redis.xadd(stream, fields)
    erased = scene.client.erase_many([saga_id], REASON)
    assert len([line for line in erased.left if f"{saga_id}, which a worker takes" in line]) == 2 * 3
    run_until(scene, lambda: quarantined(scene, keys) >= 3 * 2 * len(entries), "all that makes no sense is set aside")
    about_other = {"reason": saga_id, "body": f'{{"saga_id":"{other}","note":"{saga_id}"}}'}
    scene.redis.xadd(keys.partitions[0].quarantine, about_other)  # type: ignore[arg-type]
    for what in (b"data", b"body"):
        scene.redis.xadd(keys.partitions[1].quarantine_of("work"), {what: SECRET, "fields": saga_id})
    scene.redis.delete(KEYS.services, KEYS.published("work"), *([] if has_hash else [keys.saga(saga_id)]))

    erased = scene.client.erase_many([saga_id], REASON)

    assert erased.is_complete, erased
    assert holders(scene.redis) == []
    assert holders_of(scene.redis, SECRET.encode("utf-16")[2:]) == []
    assert quarantined(scene, keys) == 1
    assert erased_view(scene.client, other)["steps"] == [("COMPLETED", b'"x"', b'"x"', None)]


def test_a_message_that_was_cut_is_left_to_a_person(server: Server) -> None:
    """It may have named the saga where it was cut off."""
    scene = Scene(server.broker())
    scene.client.begin("s1", [do("x")])
    scene.play("s1")
    for name, size in (("replies", 1 << 20), ("commands", 1 << 20), ("replies", 10)):
        body = f'{{"x":"{SECRET}{"y" * size}","saga_id":"s1"'
        scene.redis.xadd(getattr(ONLY, name)("work"), {"body": body})
    scene.redis.xadd(ONLY.replies("work"), {"body": '{"type":"x","saga_id":"s2"}', "more": "y" * 5000})
    run_until(scene, lambda: quarantined(scene, KEYS) == 4, "all are set aside")
    ids = [message.id for message in Quarantine(scene.redis, KEYS).newest_first() if len(message.body) > 1 << 19]
    erased = scene.client.erase("s1", REASON)
    assert erased.quarantined == 1
    assert sorted(line.rpartition(" ")[2] for line in erased.left) == sorted(ids)
    assert len(ids) == 2
    for entry_id in ids:
        Quarantine(scene.redis, KEYS).drop(entry_id)
    assert scene.client.erase("s1", REASON).is_complete
    assert holders(scene.redis) == []


def test_an_event_that_is_older_than_its_saga_by_the_clock_leaves_nothing(server: Server) -> None:
    """The clock was set back while the saga ran, or the store was imported where the clock is behind."""
    scene = Scene(server.broker())
    scene.client.begin("s1", [do(SECRET)])
    scene.play("s1")
    scene.redis.delete(ONLY.events)
    for entry_id, saga_id, text in (("1-1", "s0", "kept"), ("1-2", "s1", SECRET), ("1-3", "s0", "kept")):
        body = f'{{"reason":"{text}"}}'
        scene.redis.xadd(ONLY.events, {"kind": "outcome", "saga_id": saga_id, "body": body}, id=entry_id)
    assert scene.client.erase("s1", REASON).events == 1
    assert holders(scene.redis) == []


def test_each_id_gets_a_true_answer(server: Server) -> None:
    scene = Scene(server.broker())
    scene.client.begin("bare", [do(None, "DoForGood")])
    scene.client.begin("live", [do(1, "Fly", "away", compensation=None)])
    scene.play("bare")
    ids = ["bare", "live", "nothere"]
    for by, hashes, before in (("me", 1, []), ("you", 0, ["bare"])):
        erased = scene.client.erase_many(ids, REASON, actor=by)
        assert (erased.hashes, list(erased.before)) == (hashes, before)
        assert (erased.unknown, list(erased.refused)) == ({"nothere": 0}, ["live"])
    assert (erased.before["bare"].reason, erased.before["bare"].actor) == (REASON, "me")
    with pytest.raises(RequestRefused, match=r"saga bare was erased on .* by me"):
        scene.client.begin("bare", [do(None, "DoForGood")])
    with pytest.raises(MalformedMessage, match="'bad id' is no id of a saga, so nothing was erased"):
        scene.client.erase_many(["bare", "bad id"], REASON)


def test_in_a_full_store_what_was_erased_is_told_and_what_is_left(server: Server) -> None:
    scene = Scene(server.broker())
    scene.client.begin("s1", [do(SECRET)])
    scene.play("s1")
    scene.redis.xadd(ONLY.quarantine, {"body": "kept"})
    scene.redis.xadd(ONLY.quarantine, {"body": f'{{"saga_id":"s1","x":"{SECRET}"}}'})
    scene.redis.config_set("maxmemory", 1)
    erased = scene.client.erase("s1", REASON)
    assert (erased.hashes, erased.records, erased.quarantined) == (1, 1, 1)
    why = "its copy needs memory, and the store is full: raise maxmemory, then erase again"
    assert erased.left == [f"{ONLY.quarantine} may still hold bytes of deleted messages, since {why}"]
    scene.redis.config_set("maxmemory", 0)
    assert scene.client.erase("s1", REASON).is_complete
    assert holders(scene.redis) == []


@pytest.mark.parametrize("role", [Role.CLIENT, Role.WORKER, Role.INSPECTOR, Role.BEGIN_ONLY, Role.BRIDGE])
def test_who_may_not_erase_is_told_which_role_may(server: Server, commands: Commands, role: Role) -> None:
    scene = Scene(server.broker())
    scene.client.begin("s1", [do(SECRET)])
    scene.play("s1")
    before = dump(scene.redis)
    users = Users(server)
    with pytest.raises(redis.exceptions.NoPermissionError, match="role operator"):
        SagaClient(users.broker(role)).erase("s1", REASON)
    done = commands.run("erase", "s1", "--reason", REASON, REDIS_URL=users.url(role))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: only a user with the role operator may erase; sagastream acl operator prints")
    assert dump(scene.redis) == before


def test_a_right_that_is_missing_in_a_script_is_named(server: Server) -> None:
    scene = Scene(server.broker())
    scene.client.begin("s1", [do(SECRET)])
    scene.play("s1")
    users = Users(server)
    users.url(Role.OPERATOR)
    may = "scan time ping info evalsha eval script|load smembers hgetall hset hello"
    rights = ["clearselectors", "-@all", *(f"+{name}" for name in may.split()), "~*"]
    admin: Any = scene.redis
    admin.execute_command("ACL", "SETUSER", "operator", *rights)
    scene.client = SagaClient(server.url.replace("unix://", "unix://operator:secret@"))
    with pytest.raises(redis.exceptions.NoPermissionError, match="role operator"):
        scene.client.erase("s1", REASON)


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


def test_the_command_line_says_of_each_saga_what_became_of_it(server: Server, commands: Commands) -> None:
    scene = Scene(server.broker())
    scene.client.begin("s1", [do(SECRET)])
    scene.client.begin("s2", [do(1, "Fly", "away", compensation=None)])
    scene.play("s1")
    env = {"REDIS_URL": server.url}
    none = commands.run("erase", "s2", "nothere", "--reason", REASON, **env)
    unknown = "there is no saga nothere in this store: it has expired, or the id is wrong; nothing of it was found"
    assert (none.returncode, none.stdout) == (1, f"erased: nothing\n{unknown} elsewhere\n")
    wait = "wait for its end; sagastream cancel s2 --reason TEXT has it undone"
    assert none.stderr == f"Error: saga s2 has not ended, and needs what would be erased: {wait}\n"
    done = commands.run("erase", "s1", "s2", "--reason", REASON, "--actor", "me", **env)
    assert done.returncode == 1
    first, files, reach = done.stdout.splitlines()
    assert first.startswith("erased: 1 saga, 1 record, ")
    assert files.startswith("files: those of the server hold it until its administrator has them written anew: ")
    assert f"redis-cli -s {server.url.removeprefix('unix://')} BGREWRITEAOF, and BGSAVE" in files
    assert reach.startswith("not erased: backups, ")
    assert done.stderr.startswith("Error: saga s2 has not ended")
    again = commands.run("erase", "s1", "--reason", "another", **env)
    assert again.returncode == 0
    assert again.stdout.startswith("erased: nothing\ns1 was erased before, at 20")
    assert again.stdout.splitlines()[1].endswith(f"Z by me: {REASON}")
    shown = commands.run("show", "s1", **env).stdout
    assert REASON in shown
    assert SECRET not in shown
    for arguments, says in (
        (("s1", "bad id", "--reason", REASON), "Error: 'bad id' is no id of a saga, so nothing was erased: "),
        (("s1", "--reason", REASON, "--actor", ""), "Error: --actor must be a text of 1 to "),
    ):
        wrong = commands.run("erase", *arguments, **env)
        assert wrong.returncode == 2
        assert says in wrong.stderr


def test_what_is_found_of_an_unknown_saga_is_told(server: Server, commands: Commands) -> None:
    scene = Scene(server.broker())
    for _ in range(2):
        add_reply(scene.redis, "work", {"body": f"s1 {SECRET}"})
    scene.worker.turn(block_ms=1)
    done = commands.run("erase", "s1", "--reason", REASON, REDIS_URL=server.url)
    assert done.returncode == 0
    erased, unknown, *_ = done.stdout.splitlines()
    assert erased == "erased: 2 quarantined messages"
    assert unknown.endswith(
        "the id is wrong; 2 records and messages of it were found, and erased unless a line `left:` names them"
    )


def test_the_files_of_the_embedded_server_are_written_anew(commands: Commands) -> None:
    with contextlib.closing(Broker(home=commands.home)) as broker:
        scene = Scene(broker)
        scene.client.begin("s1", [do(SECRET)])
        scene.play("s1")

        def held() -> list[str]:
            paths = [path for path in commands.home.rglob("*") if path.is_file()]
            return [path.name for path in paths if SECRET.encode() in path.read_bytes()]

        assert held()
        broker.client.bgrewriteaof()  # one that is under way is not enough
        done = commands.run("erase", "s1", "--reason", REASON)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\nfiles: written anew, without what was erased\n" in done.stdout
        until(lambda: not held(), what="the former files are deleted")
        assert scene.client.get("s1") is not None


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
