"""The answers to the requests of clients, and what they say of a saga."""

from dataclasses import dataclass
from typing import TypeVar

import redis

from sagastream.core.messages import Begin, Code
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.same_saga import conflict, with_params_of
from sagastream.core.sealed_messages import open_begin, open_state
from sagastream.core.sealing import Codec
from sagastream.core.step_state import Step
from sagastream.errors import MalformedMessage, NotReplicated, RequestRefused, UnreadableSaga

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Accepted:
    """The broker has the request, or the saga itself. It is durable, and will be run or refused."""

    begin: Begin

    @property
    def saga_id(self) -> str:
        return self.begin.saga_id

    def __repr__(self) -> str:
        """Without the steps: their params may be long, and do not belong into a log."""
        return f"Accepted(saga_id={self.saga_id!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """This request was not taken, and nothing comes of it: `error` says why.

    MalformedMessage: what is wrong, and where. RequestRefused: another saga has the id. StoreFull, which is one, too:
    there is no room for more sagas now; if an earlier request for this saga was accepted, that one still stands.
    UnreadableSaga: the saga of this id cannot be read.
    """

    saga_id: str  # empty if the request has none
    error: MalformedMessage | RequestRefused | UnreadableSaga


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsettled:
    """The broker went away, and nobody knows whether it has the request; or it has, and no replica has confirmed that.
    Begin the saga again, with the same id.

    `error`: how the broker failed, or NotReplicated. `sent`: False if the request was not sent.
    """

    saga_id: str
    error: redis.RedisError | NotReplicated
    sent: bool


def granted(answer: _T | Refused | Unsettled) -> _T:
    """An answer; if it is a refusal, or not settled, raises its error."""
    if isinstance(answer, Refused | Unsettled):
        raise answer.error
    return answer


def conflicting(state: SagaState, begin: Begin, codec: Codec | None = None) -> Refused | None:
    """The answer to a request if another saga has its id; None: it is the same saga.

    `codec`: with it the params were sealed, perhaps with another key than the same params when the saga was begun.
    """
    text = conflict(state, begin)
    if text is not None:
        there, unopened = open_state(codec, state)
        here, more = open_begin(codec, begin)
        text = conflict(state, with_params_of(state, begin, there, here), unopened | more)
    if text is None:
        return None
    return Refused(saga_id=begin.saga_id, error=RequestRefused(Code.PRECONDITION_FAILED, text))


def unread(begin: Begin) -> SagaState:
    """The saga that was asked for, as it is until a worker reads the request."""
    return SagaState(
        saga_id=begin.saga_id,
        status=SagaStatus.PENDING,
        current_step=1,
        steps=tuple(Step(definition=definition) for definition in begin.steps),
        begun_ms=0,
        updated_ms=0,
        format=begin.format,
        input=begin.input,
        definition=begin.definition,
        start_ms=begin.start_ms,
        attributes=begin.attributes,
        traceparent=begin.traceparent,
        tracestate=begin.tracestate,
    )


def opened(codec: Codec | None, found: _T) -> _T | SagaState:
    """What was found; if it is a saga, with all its values opened that can be."""
    return found if codec is None or not isinstance(found, SagaState) else open_state(codec, found)[0]
