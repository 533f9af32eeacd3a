"""The sample payment service: charges users."""

from decimal import Decimal, InvalidOperation
from typing import Any

from sagastream import Context, Reject, Service
from sagastream_stubs.ledger import Ledger

#: What users have at first, in cents; anybody else has PLENTY.
BALANCE = {"u42": 75_00}
PLENTY = 10_000_00

service = Service("payment")
ledger = Ledger("payment", "p")


@service.command("ChargePayment", compensation="RefundPayment")
def charge(params: Any, context: Context) -> dict[str, str]:
    try:
        user, cents = str(params["user_id"]), int(Decimal(str(params["amount"])) * 100)
    except (KeyError, TypeError, InvalidOperation, ValueError, OverflowError):
        raise Reject("malformed_params: needs user_id and amount") from None
    if cents < 1:
        raise Reject("amount_below_one_cent")
    return {"payment_id": ledger.take(context.key, user, cents, BALANCE.get(user, PLENTY), "insufficient_funds")}


@service.compensation("RefundPayment")
def refund(_params: Any, context: Context) -> None:
    ledger.give_back(context.transaction_key)
