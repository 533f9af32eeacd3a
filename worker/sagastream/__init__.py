"""sagastream: sagas over Redis streams.

To read the code, follow the data: client, orchestrator, core, store, service.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker as Broker
    from sagastream.broker.connection import connect as connect
    from sagastream.client.answers import Accepted as Accepted
    from sagastream.client.answers import Refused as Refused
    from sagastream.client.answers import Unsettled as Unsettled
    from sagastream.client.blocking import SagaClient as SagaClient
    from sagastream.client.definition import Definition as Definition
    from sagastream.client.erasing import Erased as Erased
    from sagastream.client.event_loop import AsyncSagaClient as AsyncSagaClient
    from sagastream.client.expressions import Condition as Condition
    from sagastream.client.expressions import Reference as Reference
    from sagastream.client.expressions import all_of as all_of
    from sagastream.client.expressions import any_of as any_of
    from sagastream.client.expressions import concat as concat
    from sagastream.client.expressions import default as default
    from sagastream.client.expressions import exists as exists
    from sagastream.client.expressions import failure as failure
    from sagastream.client.expressions import index as index
    from sagastream.client.expressions import item as item
    from sagastream.client.expressions import literal as literal
    from sagastream.client.expressions import not_ as not_
    from sagastream.client.expressions import one_of as one_of
    from sagastream.client.expressions import saga_id as saga_id
    from sagastream.client.requests import PauseRequest as PauseRequest
    from sagastream.client.requests import SagaRequest as SagaRequest
    from sagastream.client.requests import StepRequest as StepRequest
    from sagastream.client.requests import WaitRequest as WaitRequest
    from sagastream.codecs.keyring import Keyring as Keyring
    from sagastream.core.bulks import Bulk as Bulk
    from sagastream.core.bulks import BulkResult as BulkResult
    from sagastream.core.bulks import BulkState as BulkState
    from sagastream.core.causes import Cause as Cause
    from sagastream.core.causes import CauseKind as CauseKind
    from sagastream.core.history_events import HistoryEvent as HistoryEvent
    from sagastream.core.history_events import HistoryKind as HistoryKind
    from sagastream.core.pauses import Pause as Pause
    from sagastream.core.saga import SagaState as SagaState
    from sagastream.core.saga import SagaStatus as SagaStatus
    from sagastream.core.sealing import Codec as Codec
    from sagastream.core.sealing import CodecContext as CodecContext
    from sagastream.effects.once import Effects as Effects
    from sagastream.errors import BrokerError as BrokerError
    from sagastream.errors import CannotOpen as CannotOpen
    from sagastream.errors import CorruptSaga as CorruptSaga
    from sagastream.errors import DefinitionError as DefinitionError
    from sagastream.errors import MalformedMessage as MalformedMessage
    from sagastream.errors import NewerFormat as NewerFormat
    from sagastream.errors import NotReplicated as NotReplicated
    from sagastream.errors import PackageMissing as PackageMissing
    from sagastream.errors import QuarantineError as QuarantineError
    from sagastream.errors import Reject as Reject
    from sagastream.errors import RequestRefused as RequestRefused
    from sagastream.errors import SagaAborted as SagaAborted
    from sagastream.errors import SagaNotCompleted as SagaNotCompleted
    from sagastream.errors import SagaParked as SagaParked
    from sagastream.errors import SagastreamError as SagastreamError
    from sagastream.errors import ServiceError as ServiceError
    from sagastream.errors import SettingsError as SettingsError
    from sagastream.errors import StoreFull as StoreFull
    from sagastream.errors import UnknownSaga as UnknownSaga
    from sagastream.errors import UnreadableSaga as UnreadableSaga
    from sagastream.service.context import Context as Context
    from sagastream.service.declaration import Service as Service
    from sagastream.store.definitions import Deployed as Deployed
    from sagastream.store.finding import Page as Page
    from sagastream.store.operations import Operation as Operation
    from sagastream.store.pauses import Heard as Heard
    from sagastream.store.quarantine import Newest as Newest
    from sagastream.store.quarantine import Quarantined as Quarantined
    from sagastream.store.unread import DroppedCommands as DroppedCommands


_WHERE = {
    "Accepted": "client.answers",
    "AsyncSagaClient": "client.event_loop",
    "Broker": "broker.connection",
    "BrokerError": "errors",
    "Bulk": "core.bulks",
    "BulkResult": "core.bulks",
    "BulkState": "core.bulks",
    "CannotOpen": "errors",
    "Cause": "core.causes",
    "CauseKind": "core.causes",
    "Codec": "core.sealing",
    "CodecContext": "core.sealing",
    "Condition": "client.expressions",
    "Context": "service.context",
    "CorruptSaga": "errors",
    "Definition": "client.definition",
    "DefinitionError": "errors",
    "Deployed": "store.definitions",
    "DroppedCommands": "store.unread",
    "Effects": "effects.once",
    "Erased": "client.erasing",
    "Heard": "store.pauses",
    "HistoryEvent": "core.history_events",
    "HistoryKind": "core.history_events",
    "Keyring": "codecs.keyring",
    "MalformedMessage": "errors",
    "NewerFormat": "errors",
    "Newest": "store.quarantine",
    "Operation": "store.operations",
    "NotReplicated": "errors",
    "PackageMissing": "errors",
    "Page": "store.finding",
    "Pause": "core.pauses",
    "PauseRequest": "client.requests",
    "QuarantineError": "errors",
    "Quarantined": "store.quarantine",
    "Reference": "client.expressions",
    "Refused": "client.answers",
    "Reject": "errors",
    "RequestRefused": "errors",
    "SagaAborted": "errors",
    "SagaClient": "client.blocking",
    "SagaNotCompleted": "errors",
    "SagaParked": "errors",
    "SagaRequest": "client.requests",
    "SagaState": "core.saga",
    "SagaStatus": "core.saga",
    "SagastreamError": "errors",
    "Service": "service.declaration",
    "ServiceError": "errors",
    "SettingsError": "errors",
    "StepRequest": "client.requests",
    "StoreFull": "errors",
    "UnknownSaga": "errors",
    "UnreadableSaga": "errors",
    "Unsettled": "client.answers",
    "WaitRequest": "client.requests",
    "all_of": "client.expressions",
    "any_of": "client.expressions",
    "concat": "client.expressions",
    "connect": "broker.connection",
    "default": "client.expressions",
    "exists": "client.expressions",
    "failure": "client.expressions",
    "index": "client.expressions",
    "item": "client.expressions",
    "literal": "client.expressions",
    "not_": "client.expressions",
    "one_of": "client.expressions",
    "saga_id": "client.expressions",
}

__all__ = [
    "Accepted",
    "AsyncSagaClient",
    "Broker",
    "BrokerError",
    "Bulk",
    "BulkResult",
    "BulkState",
    "CannotOpen",
    "Cause",
    "CauseKind",
    "Codec",
    "CodecContext",
    "Condition",
    "Context",
    "CorruptSaga",
    "Definition",
    "DefinitionError",
    "Deployed",
    "DroppedCommands",
    "Effects",
    "Erased",
    "Heard",
    "HistoryEvent",
    "HistoryKind",
    "Keyring",
    "MalformedMessage",
    "NewerFormat",
    "Newest",
    "NotReplicated",
    "Operation",
    "PackageMissing",
    "Page",
    "Pause",
    "PauseRequest",
    "QuarantineError",
    "Quarantined",
    "Reference",
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
    "SettingsError",
    "StepRequest",
    "StoreFull",
    "UnknownSaga",
    "UnreadableSaga",
    "Unsettled",
    "WaitRequest",
    "all_of",
    "any_of",
    "concat",
    "connect",
    "default",
    "exists",
    "failure",
    "index",
    "item",
    "literal",
    "not_",
    "one_of",
    "saga_id",
]


def __dir__() -> list[str]:
    """The public names, even those that are not imported yet."""
    return __all__


def __getattr__(name: str) -> object:
    """Import a public name when it is first used. So the command line need not import redis, which takes longer than
    all else that it does at its start."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
