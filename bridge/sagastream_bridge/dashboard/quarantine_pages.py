"""The pages about messages that were set aside: all of them, and one."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from sagastream.errors import QuarantineError
from sagastream_bridge.dashboard import wording
from sagastream_bridge.dashboard.page import Page
from sagastream_bridge.dashboard.reading import MOST_QUARANTINED


class QuarantinePages:
    """The list of what was set aside, and each message."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._reader = page.reader

    def quarantine(self, request: Request) -> Response:
        return self._page.show(
            request, "quarantine", messages=self._reader.quarantined(), total=len(self._reader.quarantine),
            most=MOST_QUARANTINED,
        )  # fmt: skip

    def quarantined(self, request: Request) -> Response:
        return self.one(request, request.path_params["entry_id"])

    def one(
        self,
        request: Request,
        entry_id: str,
        status: int = 200,
        complaint: str | None = None,
        given: Mapping[str, str] | None = None,
    ) -> Response:
        try:
            message = self._reader.quarantine.get(entry_id)
        except QuarantineError as error:
            return self._page.show(request, "missing", 404, what=f"{error}. Somebody may have dealt with it.")
        return self._page.show(
            request,
            "quarantined",
            status,
            message=message,
            body=wording.body(message),
            complaint=complaint,
            given=given or {},
            at=None if complaint is None else f"/quarantine/{entry_id}",
        )
