"""The runs that the protocol fixes byte for byte, each on a cold start in an empty folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import Commands
from support.waiting import takes_less_than, until

SAMPLES = Path(__file__).parent / "samples"
CASES = [("completes", "saga42", "COMPLETED"), ("compensates", "saga43", "ABORTED")]


def sample(name: str) -> tuple[str, str]:
    """The input of the bridge, and the output that must follow."""
    return (SAMPLES / f"{name}.in.jsonl").read_text(), (SAMPLES / f"{name}.out.jsonl").read_text()


@pytest.mark.parametrize(("name", "saga_id", "status"), CASES)
def test_a_sample_comes_out_byte_for_byte_when_input_ends_at_once(
    commands: Commands, name: str, saga_id: str, status: str
) -> None:
    given, expected = sample(name)
    with takes_less_than(5):
        done = commands.run("bridge", given=given)
    assert (done.stdout, done.returncode, done.stderr) == (expected, 0, "")
    assert json.loads(commands.run("show", "--json", saga_id).stdout)["status"] == status


@pytest.mark.parametrize(("name", "saga_id", "status"), CASES)
def test_a_sample_comes_out_while_input_is_held_open(commands: Commands, name: str, saga_id: str, status: str) -> None:
    given, expected = sample(name)
    env = commands.environment()
    bridge = subprocess.Popen(
        [sys.executable, "-m", "sagastream_bridge"],
        cwd=commands.folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    commands.running.append(bridge)
    assert bridge.stdin is not None
    assert bridge.stdout is not None

    def ended() -> bool:
        shown = commands.run("show", "--json", saga_id)
        return shown.returncode == 0 and json.loads(shown.stdout)["status"] == status

    with takes_less_than(5):
        bridge.stdin.write(given.encode())
        bridge.stdin.flush()
        assert bridge.stdout.readline().decode() == expected
        until(ended, what=f"{saga_id} is {status}")
    bridge.stdin.close()
    assert bridge.stdout.read() == b""
    assert bridge.wait(60) == 0


@pytest.mark.parametrize("options", [[], ["--outcomes"], ["--no-outcomes"]])
def test_the_run_of_the_protocol_comes_out_message_by_message_and_then_its_end(
    commands: Commands, options: list[str]
) -> None:
    given = sample("completes")[0].splitlines()[1].replace('"amount":50', '"amount":99.99')
    done = commands.run("bridge", "--trace", *options, given=given)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    reservation = {"type": "ReserveInventory", "saga_id": "saga42", "step": 1}
    charge = {"type": "ChargePayment", "saga_id": "saga42", "step": 2}
    release = {"type": "ReleaseReservation", "saga_id": "saga42", "step": 1}
    run = [
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
    told = run[:-1] if "--no-outcomes" in options else run
    assert [(line["src"], line["dest"], line["body"]) for line in lines] == told


def test_a_fresh_store_numbers_payments_and_shipments_from_one(commands: Commands) -> None:
    done = commands.run("bridge", "--trace", given=sample("completes")[0])
    results = [line["body"].get("result") for line in map(json.loads, done.stdout.splitlines())]
    assert [r for r in results if r] == [{"reservation_id": "r1"}, {"payment_id": "p1"}, {"shipment_id": "s1"}]
