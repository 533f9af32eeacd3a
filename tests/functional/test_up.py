"""`sagastream up` without --service starts the sample services, never in a store that has services of others. It says
if a worker is at work there already."""

import json
import subprocess
from pathlib import Path

from sagastream.client.blocking import SagaClient
from sagastream.store import heartbeat, published
from support.processes import Commands
from support.servers import Server
from support.stores import KEYS
from support.waiting import until

#: A service as a user writes it. Its name is that of a sample.
PAYMENT = """
from sagastream import Service

service = Service("payment")

@service.command("ChargePayment", compensation="RefundPayment")
def charge(params, context):
    return "real money"

@service.compensation("RefundPayment")
def refund(params, context):
    pass
"""
#: One step for it, of which the sample would say that it is done.
STEP = {"transaction": "ChargePayment", "service": "payment", "params": {"user_id": "u1", "amount": 1}}


def test_no_sample_joins_a_store_that_has_a_service_of_its_name(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url, "PYTHONPATH": str(commands.folder)}
    client = SagaClient(server.broker())
    (commands.folder / "pay.py").write_text(PAYMENT)
    process = commands.quiet("service", "pay:service", env=env)
    until(lambda: client._redis.exists(KEYS.published("payment")), what="it has published")
    begun = commands.run("begin", "-", given=json.dumps({"saga_id": "p1", "steps": [STEP]}), **env)
    assert "the saga waits for one: sagastream worker\n" in begun.stderr
    assert "sagastream up" not in commands.run("show", "p1", **env).stderr + commands.run("doctor", **env).stdout
    for is_running in (True, False):
        up = commands.run("up", **env)
        assert up.returncode == 1
        assert "service payment of this store is not the sample" in up.stderr
        assert "sagastream worker" in up.stderr
        assert not client._redis.exists(KEYS.samples)
        if is_running:
            process.terminate()
            process.wait(60)
    commands.quiet("up", "--service", "pay:service", env=env)
    until(lambda: (state := client.get("p1")) and state.ended, what="its own service does it")
    assert client.wait("p1", 1).results == ["real money"]


def test_samples_join_no_store_that_has_only_services_of_others(server: Server) -> None:
    client = server.broker().client

    def refused_for() -> str | None:
        return published.claim_for_samples(client, KEYS, ["payment", "shipping"])

    client.sadd(KEYS.services, "tlil")  # that a saga names it does not make it a service
    assert refused_for() is None
    published.publish(client, KEYS, "till", {"Charge": None})
    assert refused_for() is None  # the samples are there already
    client.delete(KEYS.samples)
    assert refused_for() == "till"
    assert not client.exists(KEYS.samples)


def test_up_refuses_to_start_samples_beside_other_services_and_a_second_one_says_that_it_is_one(
    server: Server, commands: Commands
) -> None:
    env = {"REDIS_URL": server.url, "PYTHONPATH": str(commands.folder)}
    (commands.folder / "till.py").write_text(PAYMENT.replace("payment", "till"))
    client, said = server.broker().client, commands.folder / "said"
    started(commands, said, "up", "--service", "till:service", env=env)
    until(lambda: client.exists(KEYS.published("till")), what="it has published")
    until(lambda: heartbeat.worker_is_alive(client, KEYS), what="a worker is at work")
    assert "at work" not in said.read_text()
    refused = commands.run("up", **env)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "service till of this store is not a sample" in refused.stderr
    assert "sagastream up --service MODULE:NAME" in refused.stderr

    (worker,) = [one.name for one in heartbeat.processes(client, KEYS) if one.kind == "worker" and one.is_alive]
    started(commands, said, "up", "--service", "till:service", env=env)
    line = f"at work  already: worker {worker}; what starts now works beside it\n"
    until(lambda: line in said.read_text(), what="it says so")


def started(commands: Commands, said: Path, *arguments: str, env: dict[str, str]) -> "subprocess.Popen[bytes]":
    """What it prints on stdout is in the file `said`."""
    with said.open("wb") as file:
        return commands.start(*arguments, stdout=file, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)


def test_a_service_that_takes_the_name_of_a_sample_is_told_and_keeps_it(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url, "PYTHONPATH": str(commands.folder)}
    redis = server.broker().client
    for _ in range(2):  # samples that have run before are no hindrance
        up = commands.quiet("up", env=env)
        until(lambda: redis.exists(KEYS.published("payment")), what="the sample has published")
        up.terminate()
        up.wait(60)
    (commands.folder / "pay.py").write_text(PAYMENT)
    log = commands.folder / "log"
    with log.open("wb") as said:
        process = commands.start("service", "pay:service", stdout=said, stderr=said, env=env)
    until(lambda: "sagastream up has started the sample service of this name" in log.read_text(), what="it is told")
    process.terminate()
    process.wait(60)
    assert "service payment of this store is not the sample" in commands.run("up", **env).stderr
