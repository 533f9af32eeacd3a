"""With what a service is tried: which of its commands, with which params, and what undoes each."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.core.messages import is_id
from sagastream.core.steps import STANDING
from sagastream.core.strict_json import decode, encode_payload
from sagastream.errors import MalformedMessage
from sagastream.store import layout, published
from sagastream_bridge.conformance.exchange import CheckError
from sagastream_bridge.conformance.trial import Case

_MEMBERS: Final = {"params", "rejected_params", "compensation", "input", "undo"}

#: What a service publishes: its commands, and what undoes each (None: it needs nothing).
Published = Mapping[str, str | None]


def published_by(broker: Broker, service: str, timeout_s: float, write: Callable[[str], object]) -> Published:
    """The commands that the service publishes, once it has started; not the question which of its effects stand, which
    is no command that could be done or undone. `write` tells a person that it is waited for. Raises CheckError
    if it has not started within `timeout_s`."""
    deadline, told = time.monotonic() + timeout_s, False
    keys = layout.check(broker)
    while not broker.client.exists(keys.published(service), keys.partitions[0].commands(service)):
        if time.monotonic() >= deadline:
            there = run(broker.client, published.services(keys))
            which = f"; there are: {', '.join(there[:20])}" if there else ""
            raise CheckError(f"no service {service} is at {broker.shown_url}: start it there{which}")
        if not told:
            told = True
            write(f"waiting for the service {service}")
        time.sleep(0.05)
    found = published.read(broker.client, keys, [service]).get(service, {})
    return {name: undo for name, undo in found.items() if name != STANDING}


def read(text: bytes, published: Published) -> list[Case]:
    """The cases of a file: {"ChargePayment": {"params": …, "rejected_params": …, "compensation": …, "input": …,
    "undo": …}, …}. Only the params must be there. Raises MalformedMessage."""
    value = decode(text)
    if not isinstance(value, dict) or not value:
        raise MalformedMessage('the cases must be a JSON object like {"ChargePayment": {"params": {"amount": 5}}}')
    return [_case(name, members, published) for name, members in value.items()]


def one(
    command: str | None,
    params: str | None,
    rejected_params: str | None,
    compensation: str | None,
    published: Published,
    *,
    saga_input: str | None = None,
    undo: str | None = None,
) -> Case:
    """The case that options name, as JSON texts. The command may be left out if the service publishes only one. Raises
    MalformedMessage."""
    if command is None:
        if len(published) != 1:
            raise MalformedMessage(f"--command must name one of {', '.join(sorted(published))}")
        [command] = published
    members: dict[str, Any] = {"params": _json(params or "null", "--params")}
    if rejected_params is not None:
        members["rejected_params"] = _json(rejected_params, "--rejected-params")
    if compensation is not None:
        members["compensation"] = compensation or None
    if saga_input is not None:
        members["input"] = _json(saga_input, "--input")
    if undo is not None:
        members["undo"] = _json(undo, "--undo")
    return _case(command, members, published)


def _case(name: str, members: Any, published: Published) -> Case:
    if not is_id(name):
        raise MalformedMessage(f"{name[:128]!a} cannot be the name of a command")
    if published and name not in published:
        raise MalformedMessage(f"the service publishes no command {name}, but {', '.join(sorted(published))}")
    # First: it may be "params", mistyped.
    if isinstance(members, dict) and (strange := sorted(members.keys() - _MEMBERS)):
        raise MalformedMessage(f"{name} has an unknown member {strange[0][:128]!a}")
    if not isinstance(members, dict) or "params" not in members:
        raise MalformedMessage(f"{name}: params are missing")
    if "input" in members and not isinstance(members["input"], dict):
        raise MalformedMessage(f"{name}: input must be an object")
    undo = published.get(name)
    compensation = members.get("compensation", undo)
    if compensation is not None and not is_id(compensation):
        raise MalformedMessage(f"{name}: compensation must be a name, or null")
    if undo is not None and compensation not in (None, undo):
        raise MalformedMessage(f"{name} is undone by {undo}, as the service publishes it, not by {compensation}")
    return Case(
        command=name,
        params=encode_payload(members["params"]),
        rejected_params=_payload(members, "rejected_params"),
        compensation=compensation,
        input=_payload(members, "input"),
        undo=_payload(members, "undo"),
    )


def _payload(members: Mapping[str, Any], name: str) -> bytes | None:
    return encode_payload(members[name]) if name in members else None


def _json(text: str, what: str) -> Any:
    try:
        return decode(text.encode(errors="surrogateescape"))
    except MalformedMessage as error:
        raise MalformedMessage(f"{what}: {error}, as in {what} {json.dumps(chr(123) + chr(125))}") from None
