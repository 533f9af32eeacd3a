"""The sample services keep books as the contract asks: what was done, what was undone, and what was rejected."""

import json
from typing import Any

import pytest
import redis

from support.processes import Commands
from support.servers import Server
from support.stores import ONLY
from support.waiting import until


def answer(
    client: redis.Redis, saga_id: str, amount: int, *, undo: bool = False, retried: bool = False
) -> dict[str, Any]:
    """The answer to a command that this service has no record of."""
    body: dict[str, Any] = {"type": "ChargePayment", "saga_id": saga_id, "step": 1}
    body |= (
        {"type": "RefundPayment", "compensating": True} if undo else {"params": {"user_id": "u42", "amount": amount}}
    )
    client.delete(ONLY.done("payment", 1), ONLY.replies("payment"))
    entry: dict[Any, Any] = {"body": json.dumps(body), "begun_ms": 1} | ({"retried": 1} if retried else {})
    client.xadd(ONLY.commands("payment"), entry)
    until(lambda: client.xlen(ONLY.replies("payment")), what="the service answers")
    found: Any = client.xrange(ONLY.replies("payment"))
    told: dict[str, Any] = json.loads(found[0][1][b"body"])
    return told


@pytest.mark.parametrize("retried", [False, True])
def test_what_was_rejected_stays_rejected_unless_it_will_be_sent_again(
    server: Server, commands: Commands, retried: bool
) -> None:
    commands.quiet("service", "sagastream_stubs.payment:service", env={"REDIS_URL": server.url})
    client: redis.Redis = server.broker().client
    assert answer(client, "a", 50)["type"] == "ChargePayment_ok"
    assert answer(client, "b", 45, retried=retried)["error"] == "insufficient_funds"
    assert answer(client, "a", 50, undo=True)["type"] == "RefundPayment_ok"
    again = answer(client, "b", 45)
    assert again["type"] == ("ChargePayment_ok" if retried else "ChargePayment_failed")
    assert answer(client, "b", 45, undo=True)["type"] == "RefundPayment_ok"
    assert answer(client, "b", 45)["error"] == "cancelled"
