"""The doctor's look at RQ: can its server be used, do steps wait in queues that no worker reads?"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.failures import is_outage
from sagastream.broker.server import Server
from sagastream.console import describe
from sagastream.core.causes import CauseKind
from sagastream.errors import BrokerError
from sagastream.rq_steps.server import RQ_VARIABLE, RqServer
from sagastream_bridge.inspection.findings import Finding, ok, problem, warning

_SET: Final = f"set {RQ_VARIABLE} to the server of RQ, in all processes"


def examine(broker: Broker, store: str) -> Iterator[Finding]:
    """`store`: the prefix of its keys."""
    try:
        found = RqServer(broker)
    except BrokerError as error:
        yield problem("rq", str(error), _SET)
        return
    with closing(found) as server:
        try:
            server.check()
        except BrokerError as error:
            if server.is_apart:  # otherwise it is a cluster, on which no step may run on RQ: its processes say so
                yield problem("rq", str(error), _SET)
            return
        except redis.RedisError as error:
            if not server.is_apart:
                raise
            start = "start it, or " if is_outage(error) else ""
            text = f"{server.told(error, advises=False)}. Steps that run on RQ wait for it"
            yield problem("rq", text, f"{start}{_SET}")
            return
        try:
            if server.is_apart:
                yield _apart(server)
            yield from _jobs(server, store)
        except redis.ResponseError as error:
            yield warning("rq", f"what waits in RQ's queues cannot be read: {describe(error)}")


def _apart(server: RqServer) -> Finding:
    """RQ's server is another one than the broker."""
    text = f"its jobs are on {server.shown}, as {RQ_VARIABLE} says"
    told: Any = server.client.info()
    info = Server.read(told)
    if info.is_replica:
        return problem("rq", f"{text}. That is a replica: no job can be sent there", "name its master")
    if info.may_drop is not None:
        drops = f"maxmemory-policy is {info.maxmemory_policy}, so it may drop jobs; each is an unknown outcome"
        return warning("rq", f"{text}. Its {drops}", "set noeviction there")
    return ok("rq", text)


def _jobs(server: RqServer, store: str) -> Iterator[Finding]:
    # Imported here: that takes longer than the rest of the command.
    from sagastream.rq_steps.queues import START_WORKER, if_set, queues_of_sagas, start_worker, waiting_for_worker

    waiting = waiting_for_worker(server.client, queues_of_sagas(server.client, store))
    for queue, jobs in waiting.items():
        text = f"no RQ worker works on it; jobs that wait: {jobs}"
        do = (f"{START_WORKER}  # starts one", f"{start_worker(queue)}  # so does this, {if_set()}")
        yield problem(f"queue {queue}", text, *do, kind=CauseKind.NO_RQ_WORKER)
