"""The next release of the services of support/oracle.py: it has a command more, `Pack`, with a compensation of its
own."""

import os

from sagastream import Service
from support import oracle


def _service(name: str) -> Service:
    service = Service(name, lease_ms=int(os.environ.get("ORACLE_LEASE_MS", "30000")))
    for command, compensation in (("Do", "Undo"), ("Pack", "Unpack")):
        service.command(command, compensation=compensation)(oracle.do)
        service.compensation(compensation)(oracle.undo)
    return service


alpha, beta, gamma = map(_service, oracle.NAMES)
