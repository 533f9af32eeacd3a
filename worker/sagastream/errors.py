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


class SagaNotCompleted(SagastreamError):
    """Raised where a client asked for a saga that has not completed to be an error: see its two kinds.

    `saga_id`, `reason`; `step` (from 1), `transaction` and `service`: the step on account of which, all three None
    where it is on account of none.
    """

    said = "has not completed"

    def __init__(
        self,
        saga_id: str,
        reason: str,
        step: int | None = None,
        transaction: str | None = None,
        service: str | None = None,
    ) -> None:
        where = "" if step is None else f" (step {step}, {transaction} of {service})"
        super().__init__(f"saga {saga_id} {self.said}: {reason}{where}")
        self.saga_id = saga_id
        self.reason = reason
        self.step = step
        self.transaction = transaction
        self.service = service


class SagaAborted(SagaNotCompleted):
    """The saga has ended ABORTED; the step is the one that failed, None where it was cancelled."""

    said = "was aborted"


class SagaParked(SagaNotCompleted):
    """The saga stands still until a person acts; the step is the one that it is parked at, and `transaction` is what is
    parked: the compensation, where the saga is being undone."""

    said = "is parked"


class UnreadableSaga(SagastreamError):
    """A saga is in the store, and this release cannot read it: see its two kinds."""


class CorruptSaga(UnreadableSaga):
    """A saga's hash cannot be read: another type stands at its key, or fields are missing or garbled."""


class NewerFormat(UnreadableSaga):
    """A saga's hash has a format that only a newer release knows. Nothing is wrong with it: leave it to that release.

    `saga_id`; `format`, the number of the format.
    """

    def __init__(self, saga_id: str, number: int) -> None:
        super().__init__(f"saga {saga_id} has format {number}: only a newer release of sagastream can read it")
        self.saga_id = saga_id
        self.format = number


class ImpossibleTransition(SagastreamError):
    """A saga or a step was to change as none can: a fault in sagastream, which refuses to go on with that change."""


class BrokerError(SagastreamError):
    """The broker cannot be used: it does not start, refuses the login, or is too old. Waiting will not help."""


class StoreMismatch(BrokerError):
    """The store was laid out for another number of partitions than this release runs."""


class QuarantineError(SagastreamError):
    """A quarantined message is not there, or cannot be put back."""


class SettingsError(SagastreamError):
    """A variable of the environment has a value that it cannot have."""


class ServiceError(SagastreamError):
    """A service is declared wrongly, or cannot be loaded from MODULE:NAME."""


class ScenarioError(SagastreamError):
    """A test asks sagastream.testing for what there is not: a service or command that is not served, or a fault that
    never happened."""


class JobRefused(SagastreamError):
    """An RQ job is none of ours, or of a service that the worker does not run."""


class Reject(Exception):
    """Raised by a handler: the step fails, and nothing of it remains to be undone.

    `error` is any JSON value; it becomes the `error` of the reply.
    """

    def __init__(self, error: object) -> None:
        super().__init__(error)
        self.error = error
