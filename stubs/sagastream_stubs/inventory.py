"""The sample inventory service: reserves stock."""

from typing import Any

from sagastream import Context, Reject, Service
from sagastream_stubs.ledger import Ledger

#: Pieces in stock at first; of everything else there is PLENTY.
STOCK = {"sold_out": 0}
PLENTY = 1_000_000

service = Service("inventory")
ledger = Ledger("inventory", "r")


@service.command("ReserveInventory", compensation="ReleaseReservation")
def reserve(params: Any, context: Context) -> dict[str, str]:
    try:
        sku, quantity = str(params["sku"]), params["quantity"]
    except (KeyError, TypeError):
        raise Reject("malformed_params: needs sku and quantity") from None
    if type(quantity) is not int or quantity < 1:
        raise Reject("malformed_params: quantity must be a whole number from 1")
    return {"reservation_id": ledger.take(context, sku, quantity, STOCK.get(sku, PLENTY), "out_of_stock")}


@service.compensation("ReleaseReservation")
def release(_params: Any, context: Context) -> None:
    ledger.give_back(context.transaction_key)
