"""The demonstration: four sagas on their own broker, with every message as it comes."""

import os
import shlex
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from sagastream.broker.connection import Broker
from sagastream.broker.embedded import EmbeddedServer
from sagastream.broker.exchange import run
from sagastream.broker.home import HOME_VARIABLE
from sagastream.broker.which_home import default_home, named_home
from sagastream.client.blocking import SagaClient
from sagastream.console import printable
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.strict_json import decode
from sagastream.errors import SagastreamError
from sagastream.store import events, layout
from sagastream_bridge.inspection import colours, message_views
from sagastream_bridge.local.stack import SAMPLES, Stack, claim_samples

#: Prints a line, with its colours.
Write = Callable[[str], object]
#: How long a saga of the demonstration may take, in seconds; it takes a few milliseconds.
_TIMEOUT_S: Final = 10.0


def _saga(saga_id: str, user_id: str, amount: float, order_id: str) -> dict[str, object]:
    return {
        "saga_id": saga_id,
        "steps": [
            {
                "transaction": "ReserveInventory",
                "service": "inventory",
                "params": {"sku": "abc123", "quantity": 1},
            },
            {
                "transaction": "ChargePayment",
                "service": "payment",
                "params": {"user_id": user_id, "amount": amount},
            },
            {"transaction": "CreateShipment", "service": "shipping", "params": {"order_id": order_id}},
        ],
    }


#: Two reservations at once, a person who approves, a payment with what they returned, a parcel, and no gift wrap.
_ORDER: Final[dict[str, object]] = {
    "saga_id": "saga45",
    "input": {"user": "u7", "total": 20, "gift": False, "item": {"sku": "lamp", "quantity": 1}},
    "steps": [
        {
            "id": "lamp",
            "transaction": "ReserveInventory",
            "service": "inventory",
            "params": {"$ref": "/input/item"},
            "after": [],
        },
        {
            "id": "bulb",
            "transaction": "ReserveInventory",
            "service": "inventory",
            "params": {"sku": "bulb", "quantity": 2},
            "after": [],
        },
        {
            "id": "wrap",
            "transaction": "ReserveInventory",
            "service": "inventory",
            "params": {"sku": "gift_wrap", "quantity": 1},
            "after": ["lamp", "bulb"],
            "when": {"eq": [{"$ref": "/input/gift"}, True]},
        },
        {"id": "approval", "wait": "approval", "timeout_ms": 60_000, "after": ["wrap"]},
        {
            "id": "pay",
            "transaction": "ChargePayment",
            "service": "payment",
            "kind": "pivot",
            "params": {
                "user_id": {"$ref": "/input/user"},
                "amount": {"$ref": "/input/total"},
                "for": [{"$ref": "/steps/lamp/result/reservation_id"}, {"$ref": "/steps/bulb/result/reservation_id"}],
                "approved_by": {"$ref": "/steps/approval/result/name"},
            },
        },
        {
            "id": "ship",
            "transaction": "CreateShipment",
            "service": "shipping",
            "kind": "retriable",
            "params": {"order_id": {"$concat": ["paid by ", {"$ref": "/steps/pay/result/payment_id"}]}},
        },
    ],
}
_SAGAS: Final = (
    ("all goes well", _saga("saga42", "u42", 50, "o123")),
    ("a user without the money", _saga("saga43", "u999", 99999, "o124")),
    ("the money is spent: what was reserved is released", _saga("saga44", "u42", 99.99, "o125")),
    ("two at once, then a person approves", _ORDER),
)
#: The saga that waits for a signal; and when the demonstration signals: after this many replies.
_SIGNALLED: Final = "saga45"
_REPLIES: Final = 2


def demonstrate(write: Write) -> None:
    """Run it in `demo` below the home, from scratch each time. The data stay there, for people to look at."""
    home = (named_home() or default_home()) / "demo"
    EmbeddedServer(home).erase()
    broker = Broker(home=home)
    claim_samples(broker)
    stack = Stack(broker, workers=1, services=tuple(SAMPLES.values()), log_dir=home)
    try:
        for title, body in _SAGAS:
            begin = parse_begin(body, request_id=uuid.uuid4().hex, echo=True)
            write(colours.styled(f"{begin.saga_id}: {title}", bold=True))
            after = run(broker.client, events.newest(layout.check(broker).partitions))
            SagaClient(broker).begin_request(begin)
            _watch(broker, stack, begin.saga_id, after, write)
            write("")
        key = layout.check(broker).saga("saga44")
        _show_hash(broker, key, write)
    finally:
        stack.stop()
        broker.close()
    write("See for yourself:")
    there = f"{HOME_VARIABLE}={shlex.quote(str(home))}"
    write(f"  {there} sagastream show saga44")
    write(f"  {there} sagastream show {_SIGNALLED}")
    write(f"  {there} sagastream up       # and in another terminal:")
    write(f"  {_redis_cli(broker)} HGETALL '{key}'")


def _watch(broker: Broker, stack: Stack, saga_id: str, after: events.Place, write: Write) -> None:
    """Print the messages of one saga that come after this event, until it has ended."""
    deadline, replies = time.monotonic() + _TIMEOUT_S, 0
    partitions = layout.check(broker).partitions
    while time.monotonic() < deadline:
        stack.tend()
        heard = run(broker.client, events.after(partitions, after, 500))
        after = events.moved(partitions, after, heard)
        for event in heard:
            if event.fields.get(b"saga_id") != saga_id.encode():
                continue
            body = decode(event.fields[b"body"])
            if (kind := event.fields[b"kind"].decode()) == "outcome":
                mark = "=" if body["status"] == "COMPLETED" else "x"
                write(f"  {mark}  {colours.status(body['status'])}  {printable(body.get('reason', ''))}".rstrip())
                return
            if kind in ("command", "reply"):
                write("  " + message_views.message(body, event.fields[b"service"].decode(), kind))
            replies += kind == "reply"
            if saga_id == _SIGNALLED and (kind, replies) == ("reply", _REPLIES):
                write(f"  {colours.styled('-- sagastream signal', bold=True)} {saga_id} approval")
                SagaClient(broker).signal(saga_id, "approval", {"name": "Ada"}, _TIMEOUT_S, actor="Ada")
    assert broker.embedded is not None
    raise SagastreamError(f"the saga has not ended within {_TIMEOUT_S:g} s; see the logs in {broker.embedded.home}")


def _show_hash(broker: Broker, key: str, write: Write) -> None:
    write(colours.styled(f"HGETALL {key}", bold=True))
    fields: Any = broker.client.hgetall(key)
    for name, value in fields.items():
        write(f"  {printable(name.decode()):<28} {printable(value.decode())}")
    write("")


def _redis_cli(broker: Broker) -> str:
    assert broker.embedded is not None
    path = broker.embedded.endpoint.path
    short = os.path.relpath(path)
    return f"redis-cli -s {shlex.quote(short if len(short) < len(str(path)) else str(path))}"
