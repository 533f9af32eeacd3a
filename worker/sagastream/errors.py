"""Every error that sagastream raises, and when. This module imports nothing, so every other one may import it."""


class SagastreamError(Exception):
    """The base class of all errors of sagastream. The text is one line that can be shown to a person."""


class MalformedMessage(SagastreamError):
    """The body of a message is not strict JSON, or is not as the protocol requires (protocol code 12)."""


class RequestRefused(SagastreamError):
    """A request was refused: a saga_begin because another saga has its id, or an operator's request because the state
    of the saga does not allow it.

    `code` is the protocol's error code: 22 precondition failed, 20 no such saga (UnknownSaga), 13 the saga's hash is
    damaged, 11 the store is full (StoreFull).
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class StoreFull(RequestRefused):
    """There is no room for more sagas now: this request was not taken. Begin the saga again later, with the same id: an
    earlier request for it that was accepted still stands, and the saga begins once there is room.

    `code` is 11. `retry_after_s`: in how many seconds to try again.
    """

    def __init__(self, code: int, text: str, retry_after_s: float) -> None:
        super().__init__(code, text)
        self.retry_after_s = retry_after_s


class UnknownSaga(RequestRefused):
    """There is no such saga: nobody has begun it, or it has expired. If its request was refused lately, the text says
    why.

    `code` is 20, `saga_id` the id that was asked for.
    """

    CODE = 20

    def __init__(self, text: str, saga_id: str) -> None:
        super().__init__(self.CODE, text)
        self.saga_id = saga_id


def of_refusal(code: int, text: str, saga_id: str) -> RequestRefused:
    """The error for a request about this saga that a worker has refused."""
    return UnknownSaga(text, saga_id) if code == UnknownSaga.CODE else RequestRefused(code, text)


class NotReplicated(SagastreamError):
    """A begin with `durable="replica"`: the broker has accepted it, but no replica has confirmed it in time, or none is
    connected. The saga begins, unless the broker fails before a replica has it. To be sure, begin it again with the
    same id: nothing is done twice.

    `saga_id` is the id of the saga.
    """

    def __init__(self, saga_id: str, within_ms: int, *, connected: bool = True) -> None:
        why = f"no replica has confirmed it within {within_ms} ms" if connected else "no replica is connected to it"
        text = f"saga {saga_id}: the broker has accepted it, but {why}"
        super().__init__(f"{text}; begin it again with the same id")
        self.saga_id = saga_id


class SagaNotCompleted(SagastreamError):
    """A saga did not complete. Raised only if the client asked for that; see the two subclasses.

    - `saga_id`, and `reason`: why it did not complete.
    - `step` (from 1), `transaction` and `service`: the step that was the cause. All three are None if no step was.
      Of a step that waits, `transaction` is the name of the signal, and `service` is empty.
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
        of = f" of {service}" if service else ""
        where = "" if step is None else f" (step {step}, {transaction}{of})"
        super().__init__(f"saga {saga_id} {self.said}: {reason}{where}")
        self.saga_id = saga_id
        self.reason = reason
        self.step = step
        self.transaction = transaction
        self.service = service


class SagaAborted(SagaNotCompleted):
    """The saga has ended ABORTED. The step is the one that failed; None if the saga was cancelled."""

    said = "was aborted"


class SagaParked(SagaNotCompleted):
    """The saga is parked: it stands still until a person acts. The step is the one at which it is parked. `transaction`
    is the command that is parked: if the saga is being undone, the step's compensation."""

    said = "is parked"


class UnreadableSaga(SagastreamError):
    """A saga is in the store, but this release cannot read it; see the two subclasses."""


class CorruptSaga(UnreadableSaga):
    """A saga's hash cannot be read: its key holds another type, or fields are missing or damaged."""


class NewerFormat(UnreadableSaga):
    """A saga's hash has a format that only a newer release knows. Nothing is wrong with it: leave it to that release.

    `saga_id` is the id of the saga, `format` the number of the format.
    """

    def __init__(self, saga_id: str, number: int) -> None:
        super().__init__(f"saga {saga_id} has format {number}: only a newer release of sagastream can read it")
        self.saga_id = saga_id
        self.format = number


class CannotOpen(SagastreamError):
    """A sealed value cannot be opened here: its key is not known, or it is not what was sealed. It stays as it is, so
    nothing is lost: another process may have the key.

    `key` is the id of the key with which it is sealed; None: that is not known.
    """

    def __init__(self, text: str, *, key: str | None = None) -> None:
        super().__init__(text)
        self.key = key


class CannotBuild(SagastreamError):
    """What a step is to be given cannot be built of the saga's data, or its condition cannot be decided: a reference
    finds nothing, a value is too large, of the wrong type or sealed. The text names the reference."""


class ImpossibleTransition(SagastreamError):
    """A saga or a step was to change as none can: a fault in sagastream, which refuses to go on with that change."""


class BrokerError(SagastreamError):
    """The broker cannot be used: it does not start, refuses the login, or is too old. Waiting does not help."""


class StoreMismatch(BrokerError):
    """The store has another number of partitions than this release uses."""


class DefinitionError(SagastreamError):
    """The store has no such definition, or has other content under that version, or what it has is damaged."""


class QuarantineError(SagastreamError):
    """A quarantined message is not there, or cannot be put back."""


class TransferError(SagastreamError):
    """A store cannot be exported or imported: it is at work or not empty, or the file is damaged."""


class SettingsError(SagastreamError):
    """A setting cannot be used: an environment variable has a value that is not allowed, or a file of keys cannot be
    read. Waiting does not help."""


class PackageMissing(SettingsError):
    """A package is not installed that only some need. The text names it, and says how to install it."""


class ServiceError(SagastreamError):
    """A service is declared in a way that is not allowed, or cannot be loaded from MODULE:NAME."""


class ScenarioError(SagastreamError):
    """A test with sagastream.testing names a service or a command that is not served, or a fault that never
    happened."""


class JobRefused(SagastreamError):
    """An RQ job is not a job of sagastream, or belongs to a service that the worker does not run."""


class Reject(Exception):
    """Raise it in a handler to say: the step has failed, and has left nothing that must be undone.

    `error` is any JSON value; it becomes the `error` of the reply.
    """

    def __init__(self, error: object) -> None:
        super().__init__(error)
        self.error = error
