"""The services whose steps a process runs as RQ jobs."""

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from sagastream.codecs.setting import codec_of
from sagastream.errors import ServiceError
from sagastream.rq_steps.queues import SERVICES_VARIABLE
from sagastream.service.declaration import Service
from sagastream.service.loading import load_service
from sagastream.service.named_function import NamedFunction

#: The services of this process, by name.
LOADED: Final[dict[str, Service]] = {}


def coverage(queues: Sequence[str], services: Collection[Service]) -> list[str]:
    """What a worker of these queues does for these services, and what it does not do; one line each."""
    lines = []
    for service in services:
        if own := [queue for queue in service.queues if queue in queues]:
            lines.append(f"runs steps of {service.name}, of queue {', '.join(own)}")
        lines += [
            f"warning: steps of {service.name} wait in queue {queue} too, on which this worker does not work"
            for queue in service.queues
            if queue not in queues
        ]
    known = {queue for service in services for queue in service.queues}
    return lines + [
        f"warning: works on queue {queue}, in which no step of {', '.join(service.name for service in services)} runs"
        for queue in queues
        if queue not in known
    ]


def load_services(names: Iterable[str]) -> list[str]:
    """Load the services (MODULE:NAME) whose steps this process runs. Returns the queues of their jobs.

    Raises ServiceError, and SettingsError if the environment names a codec that cannot be used.
    """
    url = os.environ.get("REDIS_URL") or os.environ.get("RQ_REDIS_URL")  # the latter is RQ's own name for it
    if not url:
        raise ServiceError("REDIS_URL is not set; it names the broker that the answers go to")
    os.environ["REDIS_URL"] = url
    for where in filter(None, names):
        service = load_service(where)
        service.publishes()
        codec_of(service.codec)
        if not service.queues:
            raise ServiceError(f'no step of {where} runs on RQ; declare one with via="rq"')
        _load_functions(service)
        LOADED[service.name] = service
    if not LOADED:
        raise ServiceError(f"{SERVICES_VARIABLE} is not set; it names the services to run, as MODULE:NAME")
    return sorted({queue for service in LOADED.values() for queue in service.queues})


def _load_functions(service: Service) -> None:
    """Import the functions that its jobs call by name. Raises ServiceError with all that cannot be imported: found out
    later, each would be an unknown outcome of some saga."""
    wrong = []
    for one in service.registrations:
        if one.queue is not None and isinstance(one.handler, NamedFunction):
            try:
                one.handler.load()
            except ServiceError as error:
                wrong.append(f"{one.name}: {error}")
    if wrong:
        raise ServiceError(f"service {service.name}: {'; '.join(wrong)}; run it where the modules are found")
