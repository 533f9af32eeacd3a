"""Sealed params and results: from the client through the store to the handler and back, on real servers."""

import asyncio
import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from sagastream import Context, Reject, Service
from sagastream.broker.connection import Broker
from sagastream.client.answers import Accepted, Refused
from sagastream.client.blocking import SagaClient
from sagastream.client.event_loop import AsyncSagaClient
from sagastream.codecs.keyring import Keyring, line_of
from sagastream.core.causes import CauseKind
from sagastream.core.messages import Code
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.sealed_values import keys_of
from sagastream.core.sealing import Codec, CodecContext
from sagastream.core.strict_json import MAX_PAYLOAD_BYTES
from sagastream.errors import CannotOpen, MalformedMessage, RequestRefused
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store.quarantine import Quarantine
from sagastream_bridge.inspection.doctor import Doctor
from sagastream_bridge.inspection.findings import OK, PROBLEM, Finding
from support.scenes import do
from support.servers import Server
from support.stored import dump
from support.stores import KEYS, ONLY, divided, in_each
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

#: The commands of the service.
STREAM: Final = ONLY.commands("work")

OLD: Final = Keyring.new_key()
NEW: Final = Keyring.new_key()
OTHER: Final = Keyring.new_key()
#: Text that must not be in the store.
SECRET: Final = "Ada Lovelace, 12 Saint James Square"


class Books:
    """What the processes of the service `work` have done, and with what."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any]] = []
        self.undone: list[tuple[str, Any, Any]] = []

    def service(self, codec: Codec | None) -> Service:
        """The service `work`, as one of its processes has it."""
        service = Service("work", codec=codec, lease_ms=100)

        @service.command("Do", compensation="Undo")
        def do(params: Any, context: Context) -> Any:
            self.done.append((context.key, params))
            if params == "fail":
                raise Reject("as asked")
            return {"kept": params}

        @service.compensation("Undo")
        def undo(params: Any, context: Context) -> None:
            self.undone.append((context.transaction_key, params, context.result))

        return service


class Scene:
    """A worker without keys, which moves as the test says, and processes of a service."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.stop = threading.Event()
        self.redis: Any = broker.client
        self.worker = Orchestrator(broker, self.stop)
        self.books = Books()
        self.runners: list[ServiceRunner] = []

    def process(self, codec: Codec | None) -> ServiceRunner:
        runner = ServiceRunner(self.broker, self.books.service(codec), self.stop)
        self.runners.append(runner)
        return runner

    def turn(self) -> None:
        self.worker.turn(block_ms=1)
        for runner in self.runners:
            runner.turn(block_ms=1)
            runner._inbox.reader.show_up()

    def get_to(self, condition: Callable[[], Any], what: str) -> None:
        """Let all move until this is so."""

        def turned() -> Any:
            self.turn()
            return condition()

        until(turned, what=what)

    def play(self, client: SagaClient, saga_id: str) -> SagaState:
        def settled() -> SagaState | None:
            self.turn()
            state = client.get(saga_id)
            return state if state and (state.ended or state.parked) else None

        return until(settled, what=f"{saga_id} settles")

    def cause(self, saga_id: str) -> Any:
        """Why the saga waits, once a process has said that it cannot open its command."""

        def told() -> Any:
            self.turn()
            causes = SagaClient(self.broker).why(saga_id)
            return next((cause for cause in causes if cause.kind is CauseKind.CANNOT_OPEN), None)

        return until(told, what="somebody says that it cannot open the command")


@pytest.fixture
def broker(server: Server) -> Iterator[Broker]:
    opened = Broker(server.url)
    yield opened
    opened.close()


@pytest.fixture
def scene(broker: Broker) -> Scene:
    return Scene(broker)


def keyring(**keys: bytes) -> Keyring:
    return Keyring(keys)


def state_of(client: SagaClient, saga_id: str) -> SagaState:
    state = client.get(saga_id)
    assert state is not None
    return state


def results(client: SagaClient, saga_id: str) -> list[Any]:
    state = client.get(saga_id)
    return [None] if state is None else state.results


def in_clear(broker: Broker) -> list[bytes]:
    """The keys of the store in which the secret stands."""
    return [name for name, value in dump(broker.client).items() if SECRET in repr(value)]


@pytest.mark.parametrize("partitions", [1, 3])
def test_nothing_that_is_sealed_stands_in_the_store(broker: Broker, partitions: int) -> None:
    keys = divided(broker, partitions)
    scene, codec = Scene(broker), keyring(old=OLD)
    scene.process(codec)
    with SagaClient(broker, codec=codec) as client:
        for saga_id in in_each(keys):
            client.begin(saga_id, [do({"name": SECRET}), do([SECRET])])
            assert scene.play(client, saga_id).results == [{"kept": {"name": SECRET}}, {"kept": [SECRET]}]
            client.begin(f"{saga_id}-failing", [do({"name": SECRET}), do("fail")])
            assert scene.play(client, f"{saga_id}-failing").status is SagaStatus.ABORTED
    assert {params["name"] for _, params in scene.books.done if isinstance(params, dict)} == {SECRET}
    # The undo gets both, too.
    assert [undone[1:] for undone in scene.books.undone] == [
        ({"name": SECRET}, {"kept": {"name": SECRET}})
    ] * partitions
    assert dump(broker.client)
    assert in_clear(broker) == []


def test_without_a_codec_the_values_stand_as_they_are(broker: Broker, scene: Scene) -> None:
    scene.process(None)
    with SagaClient(broker) as client:
        client.begin("a", [do({"name": SECRET})])
        scene.play(client, "a")
    assert in_clear(broker)


async def both_clients_read(broker: Broker, codec: Codec) -> list[Any]:
    async with AsyncSagaClient(broker, codec=codec) as client:
        await client.begin("async", [do(SECRET)])
        listed = [found async for found in client.list() if isinstance(found, SagaState)]
        one, waited = await client.get("a"), await client.wait("a")
        assert one is not None
        (many,) = await client.begin_many([{"saga_id": "many", "steps": [do(SECRET)]}])
        assert isinstance(many, Accepted)
        return [one.results, waited.results, *(saga.results for saga in listed if saga.saga_id == "a")]


def test_both_clients_read_what_is_sealed(broker: Broker, scene: Scene) -> None:
    codec = keyring(old=OLD)
    scene.process(codec)
    expected = [{"kept": SECRET}]
    with SagaClient(broker, codec=codec) as client:
        accepted = client.begin("a", [do(SECRET)])
        scene.play(client, "a")
        assert client.wait(accepted).results == expected
        assert [saga.results for saga in client.as_completed(["a"]) if isinstance(saga, SagaState)] == [expected]
        assert [saga.results for saga in client.list() if isinstance(saga, SagaState)] == [expected]
        assert asyncio.run(both_clients_read(broker, codec)) == [expected] * 3
        for saga_id in ("async", "many"):
            assert scene.play(client, saga_id).results == expected
    assert in_clear(broker) == []


@pytest.mark.parametrize("codec", [None, keyring(other=OTHER), keyring(old=OTHER)], ids=["none", "another", "wrong"])
def test_a_process_that_cannot_open_a_command_leaves_it_to_one_that_can(
    broker: Broker, scene: Scene, codec: Codec | None, caplog: pytest.LogCaptureFixture
) -> None:
    right = keyring(old=OLD)
    scene.process(codec)
    with SagaClient(broker, codec=right) as client:
        client.begin("a", [do(SECRET, timeout_ms=600_000)])
        client.begin("b", [do(SECRET, timeout_ms=600_000)])
        cause = scene.cause("a")
        assert "old" in cause.text
        assert scene.cause("b")
        assert scene.books.done == []
        told = [record for record in caplog.records if "cannot be opened" in record.getMessage()]
        assert len(told) == 1  # however many commands, and however often
        assert "key old" in told[0].getMessage()
        scene.process(right)
        assert scene.play(client, "a").results == [{"kept": SECRET}]
        assert scene.play(client, "b").results == [{"kept": SECRET}]
    assert sorted(scene.books.done) == [("a/1/transaction", SECRET), ("b/1/transaction", SECRET)]


def test_a_command_that_nobody_can_open_times_out_and_leaves_nothing(broker: Broker, scene: Scene) -> None:
    scene.process(None)
    with SagaClient(broker, codec=keyring(old=OLD)) as client:
        client.begin("a", [do(SECRET, timeout_ms=50, backoff_ms=1) | {"attempts": 2, "compensation": None}])
        state = scene.play(client, "a")
        assert state.status is SagaStatus.ABORTED
    assert scene.books.done == []


def test_an_undo_by_a_process_without_the_key_waits_for_one_that_has_it(broker: Broker, scene: Scene) -> None:
    right = keyring(old=OLD)
    able = scene.process(right)
    with SagaClient(broker, codec=right) as client:
        client.begin("a", [do(SECRET), do(service="nobody", timeout_ms=600_000, compensation=None)])
        scene.get_to(lambda: results(client, "a")[0], "the first step is done")
        scene.runners.remove(able)
        able._inbox.reader.leave()
        scene.process(keyring(other=OTHER))
        with pytest.raises(TimeoutError):  # no worker runs by itself
            client.cancel("a", "as the test has it", 0, now=True)
        scene.get_to(lambda: state_of(client, "a").status is SagaStatus.COMPENSATING, "it is being undone")
        scene.cause("a")
        assert scene.books.undone == []
        scene.process(right)
        assert scene.play(client, "a").status is SagaStatus.ABORTED
    assert scene.books.undone == [("a/1/transaction", SECRET, {"kept": SECRET})]


def test_a_key_is_rotated_while_sagas_run(broker: Broker, scene: Scene) -> None:
    before, both = keyring(old=OLD), Keyring({"old": OLD, "new": NEW}, seal_with="new")
    scene.process(both)
    with SagaClient(broker, codec=before) as client:
        client.begin("a", [do(SECRET), do("fail")])
        client.begin("b", [do(SECRET)])
    with SagaClient(broker, codec=both) as client:
        assert scene.play(client, "a").status is SagaStatus.ABORTED
        assert scene.books.undone == [("a/1/transaction", SECRET, {"kept": SECRET})]
        assert scene.play(client, "b").results == [{"kept": SECRET}]
        client.begin("c", [do(SECRET)])
        scene.play(client, "c")
    sealed = SagaClient(broker).get("b")
    assert sealed is not None
    assert [keys_of(sealed.steps[0].definition.params), keys_of(sealed.steps[0].result)] == [["old"], ["new"]]
    # A reader that has only the new key sees where the saga is, and what it can open.
    with SagaClient(broker, codec=keyring(new=NEW)) as client:
        state = client.get("b")
        assert state is not None
        assert state.results == [{"kept": SECRET}]
        assert keys_of(state.steps[0].definition.params) == ["old"]


@pytest.mark.parametrize("is_read", [True, False], ids=["read", "unread"])
def test_a_saga_that_is_begun_again_is_the_same_one(broker: Broker, scene: Scene, is_read: bool) -> None:
    before, both = keyring(old=OLD), Keyring({"old": OLD, "new": NEW}, seal_with="new")
    scene.process(both)
    with SagaClient(broker, codec=before) as client:
        client.begin("a", [do({"name": SECRET, "of": 1})])
        if is_read:
            scene.play(client, "a")
        client.begin("a", [do({"name": SECRET, "of": 1})])
    with SagaClient(broker, codec=both) as client:
        accepted = client.begin("a", [do({"of": 1.0, "name": SECRET})])  # the same to JSON, under another key
        scene.play(client, "a")
        assert client.wait(accepted, 10).results == [{"kept": {"name": SECRET, "of": 1}}]
        with pytest.raises(RequestRefused, match="params of step 1") as refused:
            client.begin("a", [do({"name": "another", "of": 1})])
        assert SECRET not in str(refused.value)
        assert 'another"' not in str(refused.value)
    assert len(scene.books.done) == 1


def test_another_saga_with_the_id_is_refused_even_if_the_requests_cross(broker: Broker, scene: Scene) -> None:
    codec = keyring(old=OLD)
    scene.process(codec)
    with SagaClient(broker, codec=codec) as client:
        client.begin("a", [do(SECRET)])
        accepted = client.begin("a", [do("another")])  # no worker has read the first one
        scene.play(client, "a")
        with pytest.raises(RequestRefused) as refused:
            client.wait(accepted, 10)
        assert refused.value.code == Code.PRECONDITION_FAILED


@pytest.mark.parametrize("is_read", [True, False], ids=["read", "unread"])
def test_a_saga_that_is_begun_again_without_its_key_is_not_called_another_one(
    broker: Broker, scene: Scene, is_read: bool
) -> None:
    codec = keyring(old=OLD)
    scene.process(codec)
    with SagaClient(broker, codec=codec) as client:
        client.begin("a", [do(SECRET)])
        if is_read:
            scene.play(client, "a")
    without = {None: "no keys", keyring(new=NEW): "key old, which this process does not have; it has new"}
    accepted: list[Accepted] = []
    for given, why in without.items():
        with SagaClient(broker, codec=given) as client:
            if not is_read:
                accepted.append(client.begin("a", [do(SECRET)]))
                continue
            with pytest.raises(RequestRefused, match="cannot tell whether this is saga a as it began") as refused:
                client.begin("a", [do(SECRET)])
            assert why in str(refused.value)
    for (given, why), one in zip(without.items(), accepted, strict=False):
        with SagaClient(broker, codec=given) as client:
            scene.play(client, "a")
            with pytest.raises(RequestRefused, match="cannot tell whether this is saga a as it began") as refused:
                client.wait(one, 10)
            assert why in str(refused.value)
    reasons = [message.reason for message in Quarantine(broker.client, KEYS).newest_first()]
    assert all("cannot tell whether this is saga a" in reason for reason in reasons)
    assert len(reasons) == (0 if is_read else 2)


def test_a_client_without_the_key_sees_where_the_saga_is(broker: Broker, scene: Scene) -> None:
    codec = keyring(old=OLD)
    scene.process(codec)
    with SagaClient(broker, codec=codec) as client:
        client.begin("a", [do(SECRET)])
        scene.play(client, "a")
    for other in (None, keyring(old=OTHER)):
        with SagaClient(broker, codec=other) as client:
            state = client.wait("a", 10)
            assert state.status is SagaStatus.COMPLETED
            with pytest.raises(CannotOpen, match="key old") as error:
                _ = state.results
            assert error.value.key == "old"


@pytest.mark.parametrize("what", ["tampered", "to another saga", "to another step"])
def test_a_value_that_was_changed_or_moved_is_not_done(broker: Broker, scene: Scene, what: str) -> None:
    codec = keyring(old=OLD)
    with SagaClient(broker, codec=codec) as client:
        client.begin("a", [do(SECRET, timeout_ms=600_000)])
        client.begin("b", [do("of b"), do("of b too")])
        scene.get_to(lambda: scene.redis.xlen(STREAM) == 2, "both commands are sent")
        a, b = scene.redis.xrange(STREAM)
        if b[1][b"body"].count(b'"a"'):
            a, b = b, a
        params = json.loads(a[1][b"body"])["params"]["$sealed"]
        other = json.loads(b[1][b"body"])["params"]["$sealed"]
        wrong = dict(params)
        if what == "tampered":
            data = bytearray(params["data"].encode())
            data[20] = ord("A") if data[20] != ord("A") else ord("B")
            wrong["data"] = data.decode()
        elif what == "to another saga":
            wrong = other | {"from": "1/params"}
        else:
            wrong["from"] = "2/params"
        body = json.loads(a[1][b"body"]) | {"params": {"$sealed": wrong}}
        scene.redis.xdel(STREAM, a[0])
        scene.redis.xadd(STREAM, a[1] | {b"body": json.dumps(body).encode()})
        scene.process(codec)
        why = "somebody has moved it" if what == "to another step" else "was changed since"
        assert why in scene.cause("a").text
        assert scene.play(client, "b").status is SagaStatus.COMPLETED
    assert not [key for key, _ in scene.books.done if key.startswith("a/")]


def sealed_text(codec: Keyring, saga_id: str, text: str) -> Any:
    """A text as another language may seal it as params: it need not be JSON."""
    context = CodecContext(saga_id=saga_id, step=1, field="params", key=codec.key)
    data = b64encode(codec.encode(text.encode(), context)).decode()
    return {"$sealed": {"key": codec.key, "from": "1/params", "data": data}}


def test_nothing_of_what_was_opened_is_told_where_it_is_not_sealed(
    broker: Broker, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    codec = keyring(old=OLD)
    texts = {
        "number": '{"card":411111111111111111111111}',
        "twice": f'{{"{SECRET}":1,"{SECRET}":2}}',
        "cut": f'["{SECRET}',
        "deep": "[" * 70 + f'"{SECRET}"' + "]" * 70,
    }
    with SagaClient(broker, accept_sealed=True) as client:
        for saga_id, text in texts.items():
            client.begin(saga_id, [do(sealed_text(codec, saga_id, text), timeout_ms=600_000)])
        scene.process(codec)
        told = [scene.cause(saga_id).text for saga_id in texts]
    assert all("what was sealed is not JSON as sagastream reads it" in text for text in told)
    everywhere = "".join([*told, caplog.text, repr(dump(broker.client))])
    assert SECRET not in everywhere
    assert "41111" not in everywhere


class Sealless(Keyring):
    """A codec that opens and cannot seal, and says with what."""

    def encode(self, data: bytes, context: CodecContext) -> bytes:
        if context.field == "result":
            raise ValueError(f"cannot seal {data.decode()}")
        return super().encode(data, context)


def test_what_a_codec_says_that_cannot_seal_a_result_is_told_nowhere(
    broker: Broker, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    codec = Sealless({"old": OLD})
    scene.process(codec)
    with SagaClient(broker, codec=codec) as client:
        client.begin("a", [do({"name": SECRET}) | {"attempts": 1, "compensation": None}])
        scene.play(client, "a")
    assert scene.books.done
    assert "the codec cannot seal the result: ValueError" in caplog.text
    assert SECRET not in caplog.text
    assert in_clear(broker) == []


def test_a_handler_gets_what_is_sealed_in_params_that_are_sealed(broker: Broker, scene: Scene) -> None:
    codec = keyring(old=OLD)
    scene.process(codec)
    for saga_id, given in (("with", codec), ("without", None)):
        part = sealed_text(codec, saga_id, f'{{"name":"{SECRET}"}}')
        with SagaClient(broker, codec=given, accept_sealed=given is None) as client:
            client.begin(saga_id, [do({"of": 1, "who": [part]})])
            assert scene.play(client, saga_id).status is SagaStatus.COMPLETED
    assert [params for _, params in scene.books.done] == [{"of": 1, "who": [{"name": SECRET}]}] * 2
    assert in_clear(broker) == []


def test_a_result_opens_in_the_params_of_another_step(broker: Broker, scene: Scene) -> None:
    codec = keyring(old=OLD)
    scene.process(codec)
    with SagaClient(broker, codec=codec) as client:
        client.begin("a", [do(SECRET), do("second"), do("third", timeout_ms=600_000)])

        def copied() -> bool:
            """Put the result of step 1, as it stands in the saga, into the params of step 3."""
            scene.worker.turn(block_ms=1)
            for entry_id, fields in scene.redis.xrange(STREAM):
                body = json.loads(fields[b"body"])
                if body["step"] == 3:
                    state = SagaClient(broker).get("a")
                    assert state is not None
                    assert state.steps[0].result is not None
                    body["params"] = {"all": [1, json.loads(state.steps[0].result)]}
                    scene.redis.xdel(STREAM, entry_id)
                    scene.redis.xadd(STREAM, fields | {b"body": json.dumps(body).encode()})
                    return True
            scene.runners[0].turn(block_ms=1)
            return False

        until(copied, what="step 3 is sent")
        assert scene.play(client, "a").status is SagaStatus.COMPLETED
    assert scene.books.done[-1] == ("a/3/transaction", {"all": [1, {"kept": SECRET}]})


def test_a_command_that_comes_again_is_answered_with_what_was_sealed(broker: Broker, scene: Scene) -> None:
    codec = keyring(old=OLD)
    with SagaClient(broker, codec=codec) as client:
        client.begin("a", [do(SECRET)])
        scene.get_to(lambda: scene.redis.xlen(STREAM), "the command is sent")
        ((_, fields),) = scene.redis.xrange(STREAM)
        scene.process(codec)
        scene.play(client, "a")
        scene.redis.xadd(STREAM, fields)
        # By a process that has no keys: it answers from the record, which it need not open.
        scene.runners.clear()
        scene.process(None)
        scene.get_to(lambda: state_of(client, "a").duplicates, "it is answered again")
    assert len(scene.books.done) == 1


def test_what_is_too_large_once_it_is_sealed_is_not_begun(broker: Broker) -> None:
    codec = keyring(old=OLD)
    with SagaClient(broker, codec=codec) as client:
        with pytest.raises(MalformedMessage, match="params of step 2: too large: sealed, it has"):
            client.begin("a", [do(), do("x" * (MAX_PAYLOAD_BYTES * 4 // 5))])
        (refused,) = client.begin_many([{"saga_id": "a", "steps": [do("x" * (MAX_PAYLOAD_BYTES * 4 // 5))]}])
        assert isinstance(refused, Refused)
        with pytest.raises(MalformedMessage, match="too large: sealed, it has"):
            client.begin("a", [do("x" * 400_000), do("x" * 400_000)])
        assert client.get("a") is None
    assert broker.client.xlen(ONLY.requests) == 0


# --- the doctor


def found(broker: Broker, about: str) -> list[Finding]:
    return [one for one in Doctor(broker).examine() if one.about == about]


def test_the_doctor_names_the_key_that_is_missing_and_the_sagas_that_wait_for_it(broker: Broker, scene: Scene) -> None:
    scene.process(keyring(other=OTHER))
    with SagaClient(broker, codec=keyring(old=OLD)) as client:
        for number in range(9):  # more than the longest waiting ones, which are looked at for each command
            client.begin(f"s{number}", [do(SECRET, timeout_ms=600_000)])
        scene.get_to(lambda: all(client.get(f"s{number}") for number in range(9)), "all are begun")
        scene.cause("s0")

        def told() -> list[Finding]:
            scene.turn()
            return [one for one in found(broker, "service work") if one.kind is CauseKind.CANNOT_OPEN]

        problem = until(told, what="the doctor says that it cannot be opened")
        (one,) = problem
        assert one.level == PROBLEM
        assert "cannot open Do: it is sealed with key old, which this process does not have; it has other" in one.text
        assert "sagas: s" in one.text
        assert one.do == ("start service work with the key that sealed it, in the file that SAGASTREAM_KEYS names",)
        # Once another process has opened them, nothing is missing.
        scene.process(keyring(old=OLD))
        for number in range(9):
            scene.play(client, f"s{number}")
        assert not told()


def test_the_doctor_says_with_which_keys_values_are_sealed(
    broker: Broker, scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, new = Keyring({"old": OLD, "new": NEW}), Keyring({"new": NEW, "old": OLD})
    scene.process(old)
    with SagaClient(broker) as client:
        client.begin("plain", [do(SECRET, service="nobody", timeout_ms=600_000)])
        scene.get_to(lambda: client.get("plain"), "it is begun")
    assert found(broker, "values") == []  # nobody seals anything here
    file = tmp_path / "keys"
    file.write_text(line_of("new", NEW))
    file.chmod(0o600)
    monkeypatch.setenv("SAGASTREAM_KEYS", str(file))
    (one,) = found(broker, "values")
    assert one.text.endswith(": not sealed (1 live, 0 ended)")
    monkeypatch.delenv("SAGASTREAM_KEYS")
    with SagaClient(broker, codec=new) as client:
        client.begin("a", [do(SECRET)])
        scene.play(client, "a")
        client.begin("b", [do([SECRET], service="nobody", timeout_ms=600_000)])
        scene.get_to(lambda: client.get("b"), "it is begun")
    (one,) = found(broker, "values")
    assert one.level == OK
    assert one.text.endswith(": key new (1 live, 1 ended), key old (0 live, 1 ended), not sealed (1 live, 0 ended)")


def test_a_graph_runs_sealed_through_workers_that_have_no_key(server: Server) -> None:
    scene = Scene(server.broker())
    ring = Keyring({"k": OLD})
    scene.process(ring)
    client = SagaClient(scene.broker, codec=ring)
    steps: list[Any] = [
        do({"$ref": "/input/who"}, id="one", compensation_params={"of": {"$ref": "/steps/one/result/kept"}}),
        {"id": "agreed", "wait": "agree", "timeout_ms": 60_000},
        do([{"$ref": "/steps/one/result/kept"}, {"$ref": "/steps/agreed/result/by"}], id="two"),
        do("fail", attempts=1),
    ]
    client.begin("g1", steps, input={"who": SECRET, "other": [SECRET]})
    scene.get_to(lambda: (found := client.get("g1")) and found.current_step == 2, "it waits for the signal")
    threading.Timer(0, lambda: client.signal("g1", "agree", {"by": SECRET}, 20)).start()
    state = scene.play(client, "g1")
    assert (state.status, state.reason) == (SagaStatus.ABORTED, "Step 4 failed: as asked")
    assert [params for _, params in scene.books.done] == [SECRET, [SECRET, SECRET], "fail"]
    assert state.results == [{"kept": SECRET}, {"by": SECRET}, {"kept": [SECRET, SECRET]}, None]
    assert state.input is not None
    assert json.loads(state.input) == {"who": SECRET, "other": [SECRET]}
    assert SECRET.encode() not in b"".join(map(repr_bytes, dump(scene.redis).values()))
    assert isinstance(client.begin("g1", steps, input={"who": SECRET, "other": [SECRET]}), Accepted)
    with pytest.raises(RequestRefused, match="inputs differ; they are sealed"):
        client.begin("g1", steps, input={"who": "another", "other": [SECRET]})
    rotated = SagaClient(scene.broker, codec=Keyring({"new": NEW, "k": OLD}))
    assert isinstance(rotated.begin("g1", steps, input={"who": SECRET, "other": [SECRET]}), Accepted)
    with pytest.raises(MalformedMessage, match="the input is sealed, so a worker can only copy it"):
        client.begin("g2", [do(1, when={"eq": [{"$ref": "/input/who"}, "x"]})], input={"who": SECRET})


def repr_bytes(value: Any) -> bytes:
    return repr(value).encode()
