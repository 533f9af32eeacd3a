"""Every error sagastream raises, and when. Imports nothing, so that everything may import it."""


class SagastreamError(Exception):
    """The base of all others. Its text is one line, fit to show a person."""


class MalformedMessage(SagastreamError):
    """A body is not the strict JSON, or not the message, that the protocol asks for (protocol code 12)."""


class RequestRefused(SagastreamError):
    """A request is not accepted: a saga_begin because another saga has its id, an operator's because the saga is not in
    a state in which that can be done.

    `code` is the protocol's error code (22 precondition failed, 20 no such saga, 13 the saga's hash is damaged).
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class CorruptSaga(SagastreamError):
    """A saga's hash cannot be read: another type stands at its key, or fields are missing or garbled."""


class BrokerError(SagastreamError):
    """The broker cannot be used: it does not start, refuses the login, or is too old. Waiting will not help."""


class StoreMismatch(BrokerError):
    """The store was laid out for another number of partitions than this release runs."""


class QuarantineError(SagastreamError):
    """A quarantined message is not there, or cannot be put back."""


class ServiceError(SagastreamError):
    """A service is declared wrongly, or cannot be loaded from MODULE:NAME."""


class JobRefused(SagastreamError):
    """An RQ job is none of ours, or of a service that the worker does not run."""


class Reject(Exception):
    """Raised by a handler: the step fails, and nothing of it remains to be undone.

    `error` is any JSON value; it becomes the `error` of the reply.
    """

    def __init__(self, error: object) -> None:
        super().__init__(error)
        self.error = error
