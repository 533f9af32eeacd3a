"""The sample payment service: charges users."""

from decimal import Decimal
from typing import Any

from sagastream import Context, Reject, Service
from sagastream_stubs.ledger import Ledger

#: What users have at first, in cents; everybody else has PLENTY.
BALANCE = {"u42": 75_00}
PLENTY = 10_000_00
#: More than anybody has, in whole units. A larger amount is cut to this before it is counted.
MOST = Decimal(1_000_000_000)

service = Service("payment")
ledger = Ledger("payment", "p")


@service.command("ChargePayment", compensation="RefundPayment")
def charge(params: Any, context: Context) -> dict[str, str]:
    try:
        user, amount = str(params["user_id"]), Decimal(str(params["amount"]))
        # Cut first: -1e999999 as an integer takes a minute to write.
        cents = int(max(min(amount, MOST), Decimal(0)) * 100)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise Reject("malformed_params: needs user_id and amount") from None
    if cents < 1:
        raise Reject("malformed_params: amount must be a cent or more")
    return {"payment_id": ledger.take(context, user, cents, BALANCE.get(user, PLENTY), "insufficient_funds")}


@service.compensation("RefundPayment")
def refund(_params: Any, context: Context) -> None:
    ledger.give_back(context.transaction_key)
