"""sagastream: sagas over Redis streams.

Read on in the order in which data travels: messages, decision, store, orchestrator, service.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagastream.broker import Broker as Broker
    from sagastream.broker import connect as connect
    from sagastream.client import SagaClient as SagaClient
    from sagastream.effects import Effects as Effects
    from sagastream.errors import CorruptSaga as CorruptSaga
    from sagastream.errors import MalformedMessage as MalformedMessage
    from sagastream.errors import Reject as Reject
    from sagastream.errors import RequestRefused as RequestRefused
    from sagastream.saga import SagaState as SagaState
    from sagastream.saga import SagaStatus as SagaStatus
    from sagastream.service import Context as Context
    from sagastream.service import Service as Service

_WHERE = {
    "Broker": "broker",
    "Context": "service",
    "CorruptSaga": "errors",
    "Effects": "effects",
    "MalformedMessage": "errors",
    "Reject": "errors",
    "RequestRefused": "errors",
    "SagaClient": "client",
    "SagaState": "saga",
    "SagaStatus": "saga",
    "Service": "service",
    "connect": "broker",
}

__all__ = [
    "Broker",
    "Context",
    "CorruptSaga",
    "Effects",
    "MalformedMessage",
    "Reject",
    "RequestRefused",
    "SagaClient",
    "SagaState",
    "SagaStatus",
    "Service",
    "connect",
]


def __getattr__(name: str) -> object:
    """Import on first use: the command line starts in a fraction of the time that redis takes to import."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
