"""Tests of sagas: in process, without a broker, on a clock that never waits, with any fault that a test asks for.

    def test_a_shipment_that_fails_gives_the_money_back(sagas):
        sagas.serve(inventory, payment, shipping)
        sagas.command("CreateShipment").rejects("no carrier")
        saga = sagas.run([...])
        assert saga.status == "ABORTED"

Decisions, the rules of services and the calls of handlers are those of production. docs/testing.md says what differs.
"""

from sagastream.testing.clock import Clock
from sagastream.testing.faults import CommandFaults, Fault
from sagastream.testing.saga import Saga
from sagastream.testing.sagas import Sagas
from sagastream.testing.sweep import Sweep, check_every_fault

__all__ = ["Clock", "CommandFaults", "Fault", "Saga", "Sagas", "Sweep", "check_every_fault"]
