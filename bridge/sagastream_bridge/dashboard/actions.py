"""What a person may do from a page. Each action takes a reason and a name, and does what the command of an operator
does: both are kept in the store. Nothing here is reached unless the dashboard may act."""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote

import redis
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from sagastream.broker.failures import told
from sagastream.core.messages import MAX_ACTOR_CHARS, MAX_REASON_CHARS, is_id, is_service
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage, QuarantineError, SagastreamError
from sagastream.store.pauses import Heard
from sagastream.telemetry import Log
from sagastream_bridge.dashboard.bulk_pages import READ_ONLY
from sagastream_bridge.dashboard.offers import CALLED
from sagastream_bridge.dashboard.outage import is_away
from sagastream_bridge.dashboard.page import Page
from sagastream_bridge.dashboard.quarantine_pages import QuarantinePages
from sagastream_bridge.dashboard.saga_pages import SagaPages
from sagastream_bridge.dashboard.service_pages import ServicePages

#: The longest form that is read, in bytes: a payload of a signal may have a megabyte.
MOST_BYTES: Final = 2 << 20
#: How long an action waits for a worker, in seconds.
_WAIT_S: Final = 5.0
_NO_REASON: Final = "Say why: the reason is kept, for those who ask later."
_NO_NAME: Final = "Say who you are: your name is kept with the reason."


class Refused(Exception):
    """What was asked for is not done; the text says why."""


Form = Mapping[str, str]


async def read_form(request: Request) -> Form:
    """The fields of a form. Raises Refused if it is too long or is none, or if not all of it comes."""
    data = b""
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > MOST_BYTES:
                raise Refused("What was sent is too long.")
    except ClientDisconnect:
        raise Refused("Whoever sent it has gone away.") from None
    try:
        return dict(parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise Refused("What was sent is not a form.") from None


class Actions:
    """The actions."""

    def __init__(self, page: Page, sagas: SagaPages, services: ServicePages, quarantine: QuarantinePages) -> None:
        self._page = page
        self._sagas = sagas
        self._services = services
        self._quarantine = quarantine
        self._client = page.reader.client
        self._log = Log("dashboard", "sagastream dashboard")

    def forbidden(self, request: Request, form: Form) -> Response | None:
        """Why this form is not acted on; None: it is."""
        if not self._page.allow_actions:
            return PlainTextResponse(READ_ONLY, 403)
        session = request.state.session or ""
        if not self._page.sessions.is_form_token(form.get("form_token", ""), session):
            return PlainTextResponse("This form is too old. Go back, load the page again, and repeat it.\n", 403)
        return None

    def on_saga(self, request: Request, form: Form) -> Response:
        """A verb about a saga, or a signal to it."""
        saga_id, verb = request.path_params["saga_id"], request.path_params["verb"]
        if verb not in CALLED or not is_id(saga_id):
            return PlainTextResponse("There is no such action.\n", 404)
        try:
            reason, actor = reason_and_name(form)
            text = self._asked(verb, saga_id, reason, actor, form)
        except Refused as error:
            return self._sagas.one(request, saga_id, 422, str(error), form)
        self._log.info(f"{actor}: {verb} of saga {saga_id}: {reason}", extra={"saga_id": saga_id})
        return self.done(request, f"/sagas/{quote(saga_id, safe=':')}", text, actor)

    def on_quarantined(self, request: Request, form: Form) -> Response:
        """A message is put back, or dropped."""
        entry_id, verb = request.path_params["entry_id"], request.path_params["verb"]
        acts: Mapping[str, tuple[Callable[..., Any], str]] = {
            "replay": (self._page.reader.quarantine.replay, "was put back into its stream, to be read again"),
            "drop": (self._page.reader.quarantine.drop, "was dropped"),
        }
        if verb not in acts:
            return PlainTextResponse("There is no such action.\n", 404)
        act, became = acts[verb]
        try:
            reason, actor = reason_and_name(form)
            act(entry_id, actor=actor, reason=reason)
        except (Refused, QuarantineError) as error:
            return self._quarantine.one(request, entry_id, 422, str(error), form)
        self._log.info(f"{actor}: {verb} of quarantined message {entry_id}: {reason}")
        return self.done(request, "/quarantine", f"Message {entry_id} {became}.", actor)

    def on_service(self, request: Request, form: Form) -> Response:
        """A service, or one of its commands, is paused or resumed."""
        service, verb = request.path_params["service"], request.path_params["verb"]
        if verb not in ("pause", "resume") or not is_service(service):
            return PlainTextResponse("There is no such action.\n", 404)
        try:
            reason, actor = reason_and_name(form)
            command = form.get("command", "").strip() or None
            heard: Heard = getattr(self._client, verb)(service, command, reason=reason, actor=actor)
        except Refused as error:
            return self._services.shown(request, 422, str(error), form, service)
        except redis.RedisError as error:
            if is_away(error):
                raise
            return self._services.shown(request, 422, f"{told(error, role='operator')}.", form, service)
        except SagastreamError as error:
            return self._services.shown(request, 422, sentence(error), form, service)
        self._log.info(f"{actor}: {verb} of {heard.pause.told}: {reason}")
        return self.done(request, "/services", _done_to_service(verb, heard), actor)

    def _asked(self, verb: str, saga_id: str, reason: str, actor: str, form: Form) -> str:
        """Send the request, and wait until a worker has done it. Returns what became of it. Raises Refused."""
        try:
            if verb == "resume":
                command = form.get("command") or None
                heard = self._client.resume(form.get("service", ""), command, reason=reason, actor=actor)
                return _done_to_service(verb, heard)
            self._send(verb, saga_id, reason, actor, form)
        except TimeoutError as error:
            return sentence(error)
        except redis.RedisError as error:
            if is_away(error):
                raise  # then nothing can be shown either
            raise Refused(f"{told(error, role='operator')}.") from None
        except SagastreamError as error:
            raise Refused(sentence(error)) from None
        # The page below says how the saga stands, and moves on with it; this text would not.
        return "The signal was taken." if verb == "signal" else f"{verb.capitalize()} was done."

    def _send(self, verb: str, saga_id: str, reason: str, actor: str, form: Form) -> None:
        if verb == "signal":
            self._signal(saga_id, reason, actor, form)
            return
        options: dict[str, Any] = {"actor": actor, "parked_at": form.get("parked_at") or None}
        if verb in ("cancel", "abandon"):
            options["now"] = form.get("now") == "yes"
        if verb != "cancel":
            step = form.get("step") or None
            is_number = step is not None and step.isascii() and step.isdigit() and len(step) < 6
            options["step"] = int(step) if step is not None and is_number else step
        getattr(self._client, verb)(saga_id, reason, _WAIT_S, **options)

    def _signal(self, saga_id: str, reason: str, actor: str, form: Form) -> None:
        name = form.get("name", "")
        if "decline" in form:
            self._client.signal(saga_id, name, None, _WAIT_S, decline=reason, actor=actor)
            return
        try:
            payload = decode(form.get("payload", "").strip().encode() or b"null")
        except MalformedMessage as error:
            raise Refused(f"The payload must be JSON: {error}.") from None
        self._client.signal(saga_id, name, payload, _WAIT_S, actor=actor)

    def done(self, request: Request, where: str, text: str, actor: str) -> Response:
        """Show the page again, with what became of it. The name is filled in the next time."""
        self._page.reader.forget()
        answer = RedirectResponse(f"{where}?told={self._page.outcomes.keep('ok', text)}", 303)
        name = quote(actor, safe="@.+-_")
        headers = MutableHeaders(raw=answer.raw_headers)
        headers.append(
            "set-cookie", f"{request.state.cookie}_who={name}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax"
        )
        return answer


def _done_to_service(verb: str, heard: Heard) -> str:
    """What was paused or resumed, and who knows it."""
    became = "paused: nothing of it is sent" if verb == "pause" else "resumed: what was held is sent"
    text = f"{heard.pause.told} is {became}"
    if heard.known:
        text += f"; workers that know it: {len(heard.known)}"
    if heard.late:
        text += f"; workers that have not read it yet: {', '.join(heard.late)}"
    if not (heard.known or heard.late):
        text += ", as soon as a worker runs"
    if heard.ignorant:
        text += f"; workers of an earlier release do not know it: {', '.join(heard.ignorant)}"
    if (before := heard.before) is not None:
        text += f". It was paused already{f' by {before.actor}' if before.actor else ''}: {before.reason}"
    if heard.left:
        text += f". Still paused: {', '.join(one.told for one in heard.left)}"
    return f"{text[:1].upper()}{text[1:]}."


def sentence(error: Exception) -> str:
    """What an error says, as a page says it."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def reason_and_name(form: Form) -> tuple[str, str]:
    """Why and who. Why a signal is a decline is told by that name. Raises Refused if one of them is missing."""
    reason, actor = form.get("decline", form.get("reason", "")).strip(), form.get("actor", "").strip()
    for text, missing, most in ((reason, _NO_REASON, MAX_REASON_CHARS), (actor, _NO_NAME, MAX_ACTOR_CHARS)):
        if not text:
            raise Refused(missing)
        if len(text) > most:
            raise Refused(f"That is too long: {len(text)} characters, and {most} are kept.")
    return reason, actor
