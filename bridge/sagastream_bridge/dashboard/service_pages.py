"""The page of services: workers, services with their processes, what people did to them."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from sagastream_bridge.dashboard import standing
from sagastream_bridge.dashboard.page import Page
from sagastream_bridge.inspection import sharing


class ServicePages:
    """The page of services."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._reader = page.reader

    def services(self, request: Request) -> Response:
        return self.shown(request)

    def shown(
        self,
        request: Request,
        status: int = 200,
        complaint: str | None = None,
        given: Mapping[str, str] | None = None,
        service: str | None = None,
    ) -> Response:
        """The page of services. `complaint`: why what was asked for was not done; `given`: what stood in the form of
        this `service`."""
        now = self._reader.standing()
        processes = self._reader.processes()
        rows = [
            {
                "queue": queue,
                "name": queue.facts.name,
                "notices": standing.of_service(queue, now),
                "pauses": [one for one in now.evidence.pauses if one.service == queue.facts.name],
                "is_paused": any(one.name == queue.facts.name for one in now.evidence.pauses),
                "processes": [one for one in processes if one.service == queue.facts.name],
                "commands": self._reader.recent().commands.get(queue.facts.name, ()),
            }
            for queue in now.queues
        ]
        workers = [one for one in processes if one.service is None and one.kind == "worker"]
        return self._page.show(
            request,
            "services",
            status,
            now=now,
            rows=rows,
            strangers=standing.of_strangers(now),
            workers=workers,
            prefers=sharing.told(processes, len(self._reader.keys().partitions)),
            sample=self._reader.recent().looked_at,
            operations=self._reader.operations(),
            complaint=complaint,
            given=given or {},
            given_of=service,
            at=None if complaint is None else "/services",
        )
