"""The pages about the whole store: the overview, and what is parked in it."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from sagastream_bridge.dashboard import charts, standing
from sagastream_bridge.dashboard.page import Page

#: So many parked sagas of a group are shown.
_OF_A_GROUP: Final = 20


class StorePages:
    """The overview, and the list of what is parked."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._reader = page.reader

    def overview(self, request: Request) -> Response:
        now = self._reader.standing()
        stretches = self._page.feed.rates.stretches(now.now_ms)
        return self._page.show(
            request,
            "overview",
            now=now,
            notices=standing.notices(now),
            parked=self._reader.parked(),
            recent=self._reader.recent(),
            chart=charts.rates(stretches, charts.WIDE),
            chart_narrow=charts.rates(stretches[-charts.NARROW_STRETCHES :], charts.NARROW),
            a_minute=self._page.feed.rates.a_minute(now.now_ms),
        )

    def parked(self, request: Request) -> Response:
        return self._page.show(request, "parked", parked=self._reader.parked(), most=_OF_A_GROUP)
