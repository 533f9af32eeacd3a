"""Messages and sagas with their values sealed or opened, as clients, services and the bridge do it. Pure.

In a saga with an input, references lead to members: of the input, of results, and of what comes with signals. So each
member of such an object is sealed by itself. Its name is not hidden.
"""

from collections.abc import Callable, Iterator
from functools import partial
from operator import is_not
from typing import Any, Final

import orjson
from msgspec.structs import replace

from sagastream.core.begin_parsing import check_size
from sagastream.core.commands import Command, Reply, ok
from sagastream.core.input_use import Paths, paths, unreadable
from sagastream.core.messages import Begin, Signal, ToSaga
from sagastream.core.pointers import below, shown
from sagastream.core.saga import KeptSignal, SagaState
from sagastream.core.sealed_values import MARK, is_sealed, keys_of, sealed_value
from sagastream.core.sealing import MAX_SEALED, UNDO, Codec, Place, open_value, seal
from sagastream.core.step_state import Step
from sagastream.core.steps import STANDING
from sagastream.core.strict_json import encode, encode_payload, value_of
from sagastream.errors import CannotOpen, MalformedMessage

#: Of a result with more members than this, they are not sealed one by one, so no reference can lead to one of them.
MAX_MEMBERS: Final = 100


# --- members


def _seal_once(codec: Codec, data: bytes, place: Place) -> bytes:
    """A value, sealed; as it is if it is sealed for this place. Raises as `seal` does, and MalformedMessage if anything
    in it looks sealed and cannot be opened: then no service could, and the step would get no answer."""
    opened = _unsealed(codec, data, place)
    return data if is_sealed(data) else seal(codec, opened, place)


def _seal_result(codec: Codec, data: bytes, place: Place) -> bytes:
    """A result to which references may lead. All members have its place: a service of an older release opens them. What
    they hold is not looked at: see `open_value`."""
    value = value_of(data)
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_MEMBERS:
        return seal(codec, data, place)
    return encode_payload({name: orjson.Fragment(seal(codec, encode(member), place)) for name, member in value.items()})


def _seal_input(codec: Codec, data: bytes, saga_id: str, used: Paths) -> bytes:
    """An input, each member of it sealed by itself; if references lead into a member, so is what they lead to, and all
    beside it."""
    count = 0

    def sealed(value: Any, path: str, into: Paths | None) -> Any:
        nonlocal count
        if into and value is None:
            return None  # references find nothing there, and take their defaults
        if into and isinstance(value, dict) and sealed_value(value) is None:
            return {name: sealed(one, below(path, name), into.get(name)) for name, one in value.items()}
        if into and isinstance(value, list):
            return [sealed(one, below(path, index), into.get(str(index))) for index, one in enumerate(value)]
        if (count := count + 1) > MAX_SEALED:
            raise MalformedMessage(f"input: too many values to be sealed: more than {MAX_SEALED}")
        try:
            return orjson.Fragment(_seal_once(codec, encode(value), _input_place(saga_id, path)))
        except MalformedMessage as error:
            raise MalformedMessage(f"input{path}: {error}") from None

    members = {name: sealed(one, below("", name), used.get(name)) for name, one in value_of(data).items()}
    try:
        return encode_payload(members)
    except MalformedMessage as error:
        raise MalformedMessage(f"input: {error}") from None


def _input_place(saga_id: str, path: str) -> Place:
    """The place of a value in an input. `path`: a JSON Pointer to it."""
    return Place(saga_id, 0, f"input{path}")


def _signal_place(saga_id: str, name: str) -> Place:
    return Place(saga_id, 0, f"signal/{name}")


def open_input(codec: Codec | None, data: bytes, saga_id: str) -> bytes:
    """An input with what is sealed in it opened. Raises CannotOpen."""
    if MARK not in data or not (keys := keys_of(data)):
        return data

    def opened(value: Any, path: str) -> Any:
        if isinstance(value, dict) and sealed_value(value) is None:
            return {name: opened(member, below(path, name)) for name, member in value.items()}
        if isinstance(value, list):
            return [opened(item, below(path, index)) for index, item in enumerate(value)]
        return value_of(open_value(codec, encode(value), _input_place(saga_id, path)))

    try:
        return encode_payload(opened(value_of(data), ""))
    except MalformedMessage as error:
        raise CannotOpen(f"opened, it is {error}", key=keys[0]) from None


# --- messages and sagas


def sealed_begin(codec: Codec, begin: Begin) -> Begin:
    """The request with its input and its params sealed. What is sealed already stays as it is, and so do params with
    references, and the question which effects stand. Raises as `seal` does, and MalformedMessage if the request is too
    large then, if it holds a sealed value that cannot be opened, or if a worker would have to read the input."""
    steps = []
    for number, step in enumerate(begin.steps, 1):
        if begin.input is not None and (problem := unreadable(step)) is not None:
            raise MalformedMessage(f"step {number}: {problem}")
        params = step.params
        place = Place(begin.saga_id, number, "params")
        if step.shape.has_references:
            _check_opens(codec, params, place, f"step {number}: params")
        if step.shape.compensation_params is not None:
            undo = place._replace(field=UNDO)
            _check_opens(codec, step.shape.compensation_params, undo, f"step {number}: compensation_params")
        if step.transaction != STANDING and step.shape.sends and not step.shape.has_references:
            try:
                params = _seal_once(codec, params, place)
            except MalformedMessage as error:
                raise MalformedMessage(f"params of step {number}: {error}") from None
        steps.append(replace(step, params=params))
    sealed = replace(begin, steps=tuple(steps), input=_sealed_input(codec, begin))
    check_size(sealed, "the saga", sealed=True)
    return sealed


def _sealed_input(codec: Codec, begin: Begin) -> bytes | None:
    return None if begin.input is None else _seal_input(codec, begin.input, begin.saga_id, paths(begin.steps))


def open_begin(codec: Codec | None, begin: Begin) -> tuple[Begin, dict[str, str]]:
    """The request with all opened that can be; and why the rest cannot be, by where it stands: `1/params`, `input`."""
    why: dict[str, str] = {}
    steps = []
    for number, step in enumerate(begin.steps, 1):
        place = Place(begin.saga_id, number, "params")
        steps.append(replace(step, params=_opened_or_not(codec, step.params, place, why)))
    return replace(begin, steps=tuple(steps), input=_opened_input_or_not(codec, begin.saga_id, begin.input, why)), why


def open_command(codec: Codec | None, command: Command) -> Command:
    """The command as its handler gets it. Raises CannotOpen."""
    result, told, data = command.result, command.undo, command.input
    if MARK not in command.params and not any(one is not None and MARK in one for one in (result, told, data)):
        return command
    saga_id, step = command.saga_id, command.step
    return replace(
        command,
        params=open_value(codec, command.params, Place(saga_id, step, "params")),
        result=None if result is None else open_value(codec, result, Place(saga_id, step, "result")),
        undo=None if told is None else open_value(codec, told, Place(saga_id, step, UNDO)),
        input=None if data is None else open_input(codec, data, saga_id),
    )


def sealed_reply(codec: Codec | None, command: Command, reply: Reply) -> Reply:
    """The reply of a handler with its result sealed. Raises as `seal` does. Without a codec: the reply, and raises
    MalformedMessage if the result looks sealed, since nobody could do what refers to it, nor undo this step.

    Errors are not sealed: the orchestrator makes the reason of the saga of them. Which effects stand is not sealed
    either: that is asked by whoever repairs a store, who need not have the keys.
    """
    if reply.result is None or reply.type != ok(command.type) or command.type == STANDING:
        return reply
    if codec is None:
        if MARK in reply.result:
            _check_unsealed(reply.result, "result")
        return reply
    place = Place(reply.saga_id, reply.step, "result")
    sealed = seal if command.input is None else _seal_result
    return replace(reply, result=sealed(codec, reply.result, place))


def sealed_signal(codec: Codec, signal: Signal) -> Signal:
    """The signal with its payload sealed. Raises as `seal` does."""
    if signal.declined is not None or signal.payload == b"null":
        return signal
    place = _signal_place(signal.saga_id, signal.name)
    try:
        opened = _unsealed(codec, signal.payload, place)
        return signal if is_sealed(signal.payload) else replace(signal, payload=_seal_result(codec, opened, place))
    except MalformedMessage as error:
        raise MalformedMessage(f"payload: {error}") from None


def open_state(codec: Codec | None, state: SagaState) -> tuple[SagaState, dict[str, str]]:
    """The saga with all values opened that can be; and why others cannot be, by where they stand: `1/params`, `input`,
    `0/signal/approve`."""
    why: dict[str, str] = {}
    saga_id = state.saga_id
    return replace(
        state,
        steps=tuple([_opened_step(codec, saga_id, number, step, why) for number, step in enumerate(state.steps, 1)]),
        input=_opened_input_or_not(codec, saga_id, state.input, why),
        signals=tuple([_opened_signal(codec, saga_id, one, why) for one in state.signals]),
    ), why


def _opened_step(codec: Codec | None, saga_id: str, number: int, step: Step, why: dict[str, str]) -> Step:
    place = Place(saga_id, number, "params")
    definition, shape = step.definition, step.definition.shape
    if MARK in definition.params:
        definition = replace(definition, params=_opened_or_not(codec, definition.params, place, why))
    step = replace(step, definition=definition)
    if step.built is not None:
        step = replace(step, built=_opened_or_not(codec, step.built, place, why))
    if step.built_undo is not None:
        step = replace(step, built_undo=_opened_or_not(codec, step.built_undo, place._replace(field=UNDO), why))
    if step.result is not None:
        # The result of a step that waits is what came with its signal.
        place = place._replace(field="result") if shape.wait is None else _signal_place(saga_id, shape.wait)
        step = replace(step, result=_opened_or_not(codec, step.result, place, why))
    return step


def _opened_signal(codec: Codec | None, saga_id: str, signal: KeptSignal, why: dict[str, str]) -> KeptSignal:
    return replace(signal, payload=_opened_or_not(codec, signal.payload, _signal_place(saga_id, signal.name), why))


def _opened_input_or_not(codec: Codec | None, saga_id: str, data: bytes | None, why: dict[str, str]) -> bytes | None:
    try:
        return None if data is None else open_input(codec, data, saga_id)
    except CannotOpen as error:
        why["input"] = str(error)
        return data


def opened_message(codec: Codec | None, message: Any) -> Any:
    """The body of a command, a reply or a saga_begin with the params or the result opened, if they can be; everything
    else as it is, however it is made: it may have been refused."""
    if not isinstance(message, dict):
        return message
    saga_id, step, steps = message.get("saga_id"), message.get("step"), message.get("steps")
    if not isinstance(saga_id, str):
        return message
    signal = _signal_place(saga_id, str(message.get("name")))
    message = _with_opened_field(message, "payload", partial(open_value, codec, place=signal))
    message = _with_opened_field(message, "input", partial(open_input, codec, saga_id=saga_id))
    if isinstance(steps, list):
        opened = [_with_opened(codec, one, saga_id, number) for number, one in enumerate(steps, 1)]
        return message | {"steps": opened} if any(map(is_not, opened, steps)) else message
    return _with_opened(codec, message, saga_id, step) if isinstance(step, int) else message


def _with_opened(codec: Codec | None, members: Any, saga_id: str, step: int) -> Any:
    """The members of a step with the params or the result opened, if they can be."""
    for field in ("params", "result"):
        opens = partial(open_value, codec, place=Place(saga_id, step, field))
        members = _with_opened_field(members, field, opens)
    return members


def _with_opened_field(members: Any, field: str, open_it: Callable[[bytes], bytes]) -> Any:
    if not isinstance(members, dict) or field not in members:
        return members
    try:
        data = encode(members[field])
        return members if (opened := open_it(data)) is data else members | {field: value_of(opened)}
    except (CannotOpen, TypeError):  # of values that nest too deep to be written
        return members


def _opened_or_not(codec: Codec | None, data: bytes, place: Place, why: dict[str, str]) -> bytes:
    """A payload with what is sealed in it opened; as it is if that cannot be, which is added to `why`."""
    try:
        return open_value(codec, data, place)
    except CannotOpen as error:
        why[place.source] = str(error)
        return data


def _unsealed(codec: Codec, params: bytes, place: Place) -> bytes:
    """Params with what is sealed in them opened, to be sealed with the rest: nothing is opened twice."""
    if MARK not in params:
        return params
    try:
        return open_value(codec, params, place)
    except CannotOpen as error:
        raise MalformedMessage(f"a value in it is sealed, and cannot be opened: {error}") from None


def _check_opens(codec: Codec, template: bytes, place: Place, called: str) -> None:
    try:
        _unsealed(codec, template, place)
    except MalformedMessage as error:
        raise MalformedMessage(f"{called}: {error}") from None


# --- without a codec


def check_unsealed(request: Begin | ToSaga) -> None:
    """Raises MalformedMessage if anything in a request looks like a sealed value: nobody here has sealed it. It may be
    the text of a stranger. No service could open it, so the step would get no answer, and its undo would not either."""
    for called, data in _payloads(request):
        if data is not None and MARK in data:
            _check_unsealed(data, called)


def _check_unsealed(data: bytes, called: str) -> None:
    """Raises MalformedMessage if anything in a payload looks like a sealed value, with the place. `called`: the name of
    the payload in the text."""
    found = next(_sealed_in(value_of(data), called), None)
    if found is not None:
        path, key = found
        text = f"it looks like a value that was sealed with key {key}, and this process has no keys to tell"
        raise MalformedMessage(f"{shown(path)}: {text}")


def _payloads(request: Begin | ToSaga) -> Iterator[tuple[str, bytes | None]]:
    if isinstance(request, Signal):
        yield "payload", request.payload
    elif isinstance(request, Begin):
        yield "input", request.input
        for number, step in enumerate(request.steps, 1):
            yield f"step {number}: params", step.params
            yield f"step {number}: compensation_params", step.shape.compensation_params


def _sealed_in(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The places of what looks sealed, each with the id of its key."""
    if (sealed := sealed_value(value)) is not None:
        yield path, sealed.key
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from _sealed_in(member, below(path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _sealed_in(item, below(path, index))
