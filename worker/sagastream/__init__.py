"""sagastream: sagas over Redis streams.

Read on in the order in which data travels: messages, decision, store, orchestrator, service.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagastream.async_client import AsyncSagaClient as AsyncSagaClient
    from sagastream.broker import Broker as Broker
    from sagastream.broker import connect as connect
    from sagastream.client import SagaClient as SagaClient
    from sagastream.effects import Effects as Effects
    from sagastream.errors import BrokerError as BrokerError
    from sagastream.errors import CorruptSaga as CorruptSaga
    from sagastream.errors import MalformedMessage as MalformedMessage
    from sagastream.errors import Reject as Reject
    from sagastream.errors import RequestRefused as RequestRefused
    from sagastream.errors import SagaAborted as SagaAborted
    from sagastream.errors import SagaNotCompleted as SagaNotCompleted
    from sagastream.errors import SagaParked as SagaParked
    from sagastream.errors import SagastreamError as SagastreamError
    from sagastream.errors import ServiceError as ServiceError
    from sagastream.requests import Accepted as Accepted
    from sagastream.requests import Refused as Refused
    from sagastream.requests import SagaRequest as SagaRequest
    from sagastream.requests import StepRequest as StepRequest
    from sagastream.requests import Unsettled as Unsettled
    from sagastream.saga import SagaState as SagaState
    from sagastream.saga import SagaStatus as SagaStatus
    from sagastream.service import Context as Context
    from sagastream.service import Service as Service

_WHERE = {
    "Accepted": "requests",
    "AsyncSagaClient": "async_client",
    "Broker": "broker",
    "BrokerError": "errors",
    "Context": "service",
    "CorruptSaga": "errors",
    "Effects": "effects",
    "MalformedMessage": "errors",
    "Refused": "requests",
    "Reject": "errors",
    "RequestRefused": "errors",
    "SagaAborted": "errors",
    "SagaClient": "client",
    "SagaNotCompleted": "errors",
    "SagaParked": "errors",
    "SagaRequest": "requests",
    "SagaState": "saga",
    "SagaStatus": "saga",
    "SagastreamError": "errors",
    "Service": "service",
    "ServiceError": "errors",
    "StepRequest": "requests",
    "Unsettled": "requests",
    "connect": "broker",
}

__all__ = [
    "Accepted",
    "AsyncSagaClient",
    "Broker",
    "BrokerError",
    "Context",
    "CorruptSaga",
    "Effects",
    "MalformedMessage",
    "Refused",
    "Reject",
    "RequestRefused",
    "SagaAborted",
    "SagaClient",
    "SagaNotCompleted",
    "SagaParked",
    "SagaRequest",
    "SagaState",
    "SagaStatus",
    "SagastreamError",
    "Service",
    "ServiceError",
    "StepRequest",
    "Unsettled",
    "connect",
]


def __dir__() -> list[str]:
    """The public names, whether they were used before or not."""
    return __all__


def __getattr__(name: str) -> object:
    """Import on first use: the command line starts in a fraction of the time that redis takes to import."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
