"""The runs that the protocol fixes byte for byte, on a cold start in an empty folder."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import Commands
from waiting import until

RESERVE = {"transaction": "ReserveInventory", "service": "inventory", "params": {"sku": "abc123", "quantity": 1}}
INIT: dict[str, object] = {"src": "c0", "dest": "orchestrator", "body": {"type": "init", "msg_id": 1}}
INIT_OK = '{"src": "orchestrator", "dest": "c0", "body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}\n'


def begin(saga_id: str, user: str, amount: float, order: str) -> dict[str, object]:
    steps = [
        RESERVE,
        {"transaction": "ChargePayment", "service": "payment", "params": {"user_id": user, "amount": amount}},
        {"transaction": "CreateShipment", "service": "shipping", "params": {"order_id": order}},
    ]
    body = {"type": "saga_begin", "msg_id": 2, "saga_id": saga_id, "steps": steps}
    return {"src": "c1", "dest": "orchestrator", "body": body}


def jsonl(*lines: dict[str, object]) -> str:
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


COMPLETES = (jsonl(INIT, begin("saga42", "u42", 50, "o123")), "saga42", "COMPLETED")
COMPENSATES = (jsonl(INIT, begin("saga43", "u999", 99999, "o124")), "saga43", "ABORTED")


@pytest.mark.parametrize(("given", "saga_id", "status"), [COMPLETES, COMPENSATES], ids=["completes", "compensates"])
def test_a_sample_comes_out_byte_for_byte_when_input_ends_at_once(
    commands: Commands, given: str, saga_id: str, status: str
) -> None:
    began = time.monotonic()
    done = commands.run("bridge", given=given)
    took = time.monotonic() - began
    assert (done.stdout, done.returncode, done.stderr) == (INIT_OK, 0, "")
    assert took < 5
    assert json.loads(commands.run("show", "--json", saga_id).stdout)["status"] == status


@pytest.mark.parametrize(("given", "saga_id", "status"), [COMPLETES, COMPENSATES], ids=["completes", "compensates"])
def test_a_sample_comes_out_while_input_is_held_open(commands: Commands, given: str, saga_id: str, status: str) -> None:
    env = commands.environment()
    bridge = subprocess.Popen(
        [sys.executable, "-m", "sagastream_bridge"],
        cwd=commands.folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    commands.running.append(bridge)
    assert bridge.stdin is not None
    assert bridge.stdout is not None
    began = time.monotonic()
    bridge.stdin.write(given.encode())
    bridge.stdin.flush()
    assert bridge.stdout.readline().decode() == INIT_OK

    def ended() -> bool:
        shown = commands.run("show", "--json", saga_id)
        return shown.returncode == 0 and json.loads(shown.stdout)["status"] == status

    until(ended, what=f"{saga_id} is {status}")
    assert time.monotonic() - began < 5
    bridge.stdin.close()
    assert bridge.stdout.read() == b""
    assert bridge.wait(10) == 0


def test_the_shared_samples_are_the_ones_tested_here() -> None:
    folder = Path(__file__).parents[3] / "shared" / "samples"
    if not folder.is_dir():
        pytest.skip("the samples are not beside the checkout")
    for name, given in (("completes", COMPLETES[0]), ("compensates", COMPENSATES[0])):
        assert (folder / f"{name}.in.jsonl").read_text() == given
        assert (folder / f"{name}.out.jsonl").read_text() == INIT_OK


def test_the_run_of_the_protocol_comes_out_message_by_message(commands: Commands) -> None:
    given = jsonl(begin("saga42", "u42", 99.99, "o123"))
    done = commands.run("bridge", "--trace", "--outcomes", given=given)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    reservation = {"type": "ReserveInventory", "saga_id": "saga42", "step": 1}
    charge = {"type": "ChargePayment", "saga_id": "saga42", "step": 2}
    release = {"type": "ReleaseReservation", "saga_id": "saga42", "step": 1}
    assert [(line["src"], line["dest"], line["body"]) for line in lines] == [
        ("orchestrator", "inventory", reservation | {"params": {"sku": "abc123", "quantity": 1}}),
        ("inventory", "orchestrator", reservation | {
            "type": "ReserveInventory_ok", "result": {"reservation_id": "r1"},
        }),
        ("orchestrator", "payment", charge | {"params": {"user_id": "u42", "amount": 99.99}}),
        ("payment", "orchestrator", charge | {"type": "ChargePayment_failed", "error": "insufficient_funds"}),
        ("orchestrator", "inventory", release | {"compensating": True}),
        ("inventory", "orchestrator", release | {"type": "ReleaseReservation_ok"}),
        ("orchestrator", "c1", {
            "type": "saga_aborted", "in_reply_to": 2, "msg_id": 0, "saga_id": "saga42", "status": "ABORTED",
            "reason": "Step 2 failed: insufficient_funds",
        }),
    ]  # fmt: skip


def test_a_fresh_store_numbers_payments_and_shipments_from_one(commands: Commands) -> None:
    done = commands.run("bridge", "--trace", given=COMPLETES[0])
    results = [line["body"].get("result") for line in map(json.loads, done.stdout.splitlines())]
    assert [r for r in results if r] == [{"reservation_id": "r1"}, {"payment_id": "p1"}, {"shipment_id": "s1"}]
