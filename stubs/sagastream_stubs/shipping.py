"""The sample shipping service: creates shipments."""

from typing import Any

from sagastream import Context, Reject, Service
from sagastream_stubs.ledger import Ledger

#: How many shipments one order may have.
PARCELS = 1_000_000

service = Service("shipping")
#: The same service, with steps that run as RQ jobs; see the Procfile.
on_rq = Service("shipping")
ledger = Ledger("shipping", "s")


@on_rq.command("CreateShipment", compensation="CancelShipment", via="rq")
@service.command("CreateShipment", compensation="CancelShipment")
def create(params: Any, context: Context) -> dict[str, str]:
    try:
        order_id = str(params["order_id"])
    except (KeyError, TypeError):
        raise Reject("malformed_params: needs order_id") from None
    return {"shipment_id": ledger.take(context, order_id, 1, PARCELS, "too_many_parcels")}


@on_rq.compensation("CancelShipment", via="rq")
@service.compensation("CancelShipment")
def cancel(_params: Any, context: Context) -> None:
    ledger.give_back(context.transaction_key)
