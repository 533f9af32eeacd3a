"""What services say of their effects: asked with the command sagastream_effects, or read from their records."""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, Final, NamedTuple

import redis

from sagastream.broker.failures import NodeAway
from sagastream.broker.wire import execute
from sagastream.client.blocking import SagaClient
from sagastream.console import printable
from sagastream.core.saga import SagaState
from sagastream.core.steps import STANDING
from sagastream.errors import SagastreamError
from sagastream.store.keys import StoreKeys
from sagastream_bridge.inspection.reconcile import Effect

#: The ids of the sagas with which services are asked begin with this.
ASKED_BY: Final = "sagastream.effects."
#: How long a service may take for one page, in milliseconds.
_TIMEOUT_MS: Final = 10_000
#: How long a worker may take to ask it, in seconds.
_WORKER_S: Final = 20.0
#: How many keys one question may name.
KEYS_AT_ONCE: Final = 500
#: How many records one round trip brings.
_RECORDS: Final = 500
_KEY: Final = re.compile(r"([A-Za-z0-9._:-]{1,128})/([1-9]\d{0,2})/transaction")
_RECORD: Final = re.compile(_KEY.pattern + "/([^/]+)")
#: In place of the name of a command: the mark that its step was undone.
VOID: Final = "(void)"


class NoAnswer(Exception):
    """A service did not say which of its effects stand."""


class Where(NamedTuple):
    """The step of an effect."""

    saga_id: str
    step: int

    @property
    def key(self) -> str:
        """The idempotency key of its transaction."""
        return f"{self.saga_id}/{self.step}/transaction"


#: A page of what is known: the effects, by their steps.
Page = dict[Where, Effect]


class Questions:
    """Asks a service which of its effects stand. Each question is a saga of one step, so it needs no other way to the
    service than every command has, in any language. It is removed when it is answered."""

    def __init__(self, client: SagaClient, store: "redis.Redis", keys: StoreKeys, service: str) -> None:
        self._client = client
        self._store = store
        self._keys = keys
        self._service = service

    def since(self, since_ms: int) -> Iterator[Page]:
        """All effects that have changed since then, page by page. Raises NoAnswer."""
        after: str | None = ""
        while after is not None:
            answer = self._ask({"since_ms": since_ms, "after": after})
            yield _read(answer)
            following = answer.get("after")
            if following is not None and (not isinstance(following, str) or following == after):
                raise NoAnswer(f"its answer goes on after {printable(repr(following))[:100]}")
            after = following

    def of(self, steps: Sequence[Where]) -> Page:
        """What stands of these steps, at most KEYS_AT_ONCE. Those that the service does not name are ABSENT. Raises
        NoAnswer."""
        found = _read(self._ask({"keys": [step.key for step in steps]}))
        return {step: found.get(step, Effect.ABSENT) for step in steps}

    def _ask(self, params: dict[str, Any]) -> dict[str, Any]:
        ids = (f"{ASKED_BY}{uuid.uuid4().hex}" for _ in count())
        saga_id = next(one for one in ids if self._keys.of(one) in self._keys.partitions)  # others cannot be reached
        step = {
            "transaction": STANDING,
            "service": self._service,
            "params": params,
            "compensation": None,
            "timeout_ms": _TIMEOUT_MS,
            "attempts": 1,
        }
        try:
            self._client.begin(saga_id, [step])  # type: ignore[list-item]  # a TypedDict
            state = self._client.wait(saga_id, timeout_s=_TIMEOUT_MS / 1000 + _WORKER_S)
        except TimeoutError:
            raise NoAnswer("no worker has asked it: is one running?") from None
        except (SagastreamError, NodeAway) as error:
            raise NoAnswer(str(error)) from None
        if not state.steps[0].unknown:  # its answer may still come, and would be set aside
            self._forget(state)
        answer = state.results[0]
        if state.status != "COMPLETED" or not isinstance(answer, dict):
            raise NoAnswer(state.reason or "its answer is not an object")
        return answer

    def _forget(self, state: SagaState) -> None:
        """Remove the question: it is of no use to anybody else."""
        partition = self._keys.of(state.saga_id)
        pipeline = self._store.pipeline()
        pipeline.unlink(partition.saga(state.saga_id))
        pipeline.zrem(partition.ended, state.saga_id)
        pipeline.hdel(partition.done(self._service, state.begun_ms), f"{Where(state.saga_id, 1).key}/{STANDING}")
        execute(pipeline)


_STATES: Final = {
    "done": Effect.DONE,
    "undone": Effect.UNDONE,
    "rejected": Effect.REJECTED,
}


def _read(answer: Mapping[str, Any]) -> Page:
    """The effects of an answer. What is not an effect of a step is left out; a state that is not known is UNKNOWN."""
    effects = answer.get("effects")
    if not isinstance(effects, list):
        raise NoAnswer("its answer has no list `effects`")
    found: Page = {}
    for effect in effects:
        if isinstance(effect, dict) and (key := _KEY.fullmatch(str(effect.get("key")))):
            found[Where(key[1], int(key[2]))] = _STATES.get(str(effect.get("state")), Effect.UNKNOWN)
    return found


def recorded(store: "redis.Redis", keys: StoreKeys, service: str) -> Iterator[Page]:
    """What the records of a service say, page by page. Where there is no record, nothing is known: records live for two
    days, and went back together with the sagas."""
    for partition in keys.partitions:
        hours: Any = store.scan_iter(f"{partition.done(service, 0)[:-1]}*", _RECORDS)
        for hour in hours:
            yield from _hour(store, hour)


def _hour(store: "redis.Redis", hour: bytes) -> Iterator[Page]:
    """What one hash of records says."""
    fields: Any = store.hscan_iter(hour.decode(), count=_RECORDS)
    named = ((_RECORD.fullmatch(name.decode(errors="replace")), value) for name, value in fields)
    found = ((step, value) for step, value in named if step and step[3] != VOID and not step[1].startswith(ASKED_BY))
    while page := list(islice(found, _RECORDS)):
        pipeline = store.pipeline(transaction=False)
        for step, _ in page:
            pipeline.hexists(hour.decode(), f"{Where(step[1], int(step[2])).key}/{VOID}")
        yield {
            Where(step[1], int(step[2])): Effect.UNDONE if is_void else _recorded(value)
            for (step, value), is_void in zip(page, execute(pipeline), strict=True)
        }


def _recorded(value: bytes) -> Effect:
    kind, _, _ = value.partition(b" ")
    return {b"ok": Effect.DONE, b"failed": Effect.REJECTED}.get(kind, Effect.UNKNOWN)
