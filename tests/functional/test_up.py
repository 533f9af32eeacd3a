"""`sagastream up` without --service starts the sample services: never in a store that has a service of their name."""

import json

from sagastream.client.blocking import SagaClient
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
