"""A trip: flight and hotel in parallel, a person's approval, the payment of what was booked. It starts tomorrow."""

import sqlite3
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from sagastream import Context, Definition, Effects, Reject, SagaClient, Service, concat

flights, hotels, payments = Service("flights"), Service("hotels"), Service("payments")
effects = Effects(lambda: sqlite3.connect("travel.db", timeout=30))
effects.create_table()
with sqlite3.connect("travel.db") as table:
    table.execute("CREATE TABLE IF NOT EXISTS done (id TEXT PRIMARY KEY, what TEXT)")


@dataclass
class Trip:
    traveller: str
    to: str
    leaves: date
    nights: int = 1


@flights.command("BookFlight", compensation="CancelFlight")
@hotels.command("BookHotel", compensation="CancelHotel")
@effects.once
def book(trip: Trip, context: Context, db: sqlite3.Connection) -> dict[str, str]:
    if trip.leaves.year < 2026 or trip.nights < 1:
        raise Reject("there is no such trip")
    db.execute("INSERT INTO done VALUES (?, ?)", (context.key, f"{trip.to} on {trip.leaves:%d %B}, {trip.nights}"))
    return {"id": context.key}


@payments.command("Pay", compensation=None)
@effects.once
def pay(bill: dict[str, str], context: Context, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO done VALUES (?, ?)", (context.key, "{text}: {flight}, {hotel}; {by}".format(**bill)))


@flights.compensation("CancelFlight")
@hotels.compensation("CancelHotel")
@effects.undo
def cancel(trip: Trip, context: Context, db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM done WHERE id = ?", (context.result["id"],))


travel = Definition("travel", version=1, input=Trip)
flight = travel.step("BookFlight", service="flights", params=travel.input)
hotel = travel.step("BookHotel", service="hotels", params=travel.input, after=[])
approval = travel.wait("approval", timeout_ms=2 * 24 * 3600 * 1000, after=[flight, hotel])
bill = {"flight": flight.result.id, "hotel": hotel.result.id, "by": approval.result.by}
travel.step("Pay", service="payments", params=bill | {"text": concat("for ", travel.input.traveller)}, kind="pivot")

if __name__ == "__main__":
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    trip = Trip("Ada", "Lagos", date(2026, 12, 24), nights=3)
    SagaClient().begin(travel, trip, saga_id="trip-1", start_at=tomorrow)
