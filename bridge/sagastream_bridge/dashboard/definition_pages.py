"""The pages about definitions: all of them, and one with its versions."""

from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from sagastream.core.messages import is_service
from sagastream.store.definitions import Deployed, Version
from sagastream_bridge.dashboard import graph_drawing
from sagastream_bridge.dashboard.explored import Explorer, Table
from sagastream_bridge.dashboard.graph_drawing import spaced
from sagastream_bridge.dashboard.page import Page
from sagastream_bridge.definitions import outline
from sagastream_bridge.definitions.drawing import Form, Node


class DefinitionPages:
    """The list of definitions, and the page of each."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._reader = page.reader
        self._explorer = Explorer()

    def definitions(self, request: Request) -> Response:
        return self._page.show(
            request, "definitions", deployed=self._reader.definitions(), recent=self._reader.recent()
        )

    def definition(self, request: Request) -> Response:
        name, asked = request.path_params["name"], request.query_params.get("version", "")
        deployed = (
            next((one for one in self._reader.definitions() if one.name == name), None) if is_service(name) else None
        )
        version = None if deployed is None else _version(deployed, asked)
        if deployed is None or version is None:
            what = f"There is no definition {name!a:.140} in this store" + (
                f" in version {asked!a:.40}." if asked else "."
            )
            return self._page.show(request, "missing", 404, what=what, do=("sagastream deploy FILE  # brings one",))
        nodes = [node._replace(label=spaced(node.label)) for node in outline.nodes(version.definition.steps)]
        return self._page.show(
            request,
            "definition",
            deployed=deployed,
            version=version,
            drawing=graph_drawing.svg(nodes, _kinds(nodes), f"The graph of definition {name}"),
            nodes=nodes,
            steps=version.definition.steps,
            recent=self._reader.recent(),
            table=self._table(version) if "explore" in request.query_params else None,
        )

    def _table(self, version: Version) -> Table:
        services = {str(step["service"]) for step in version.definition.steps if "service" in step}
        return self._explorer.table(version.definition, self._reader.published(services))


def _kinds(nodes: Sequence[Node]) -> Mapping[int, str]:
    return {node.number: {Form.PIVOT: "back", Form.WAIT: "live"}.get(node.form, "plain") for node in nodes}


def _version(deployed: Deployed, asked: str) -> Version | None:
    """The version that is asked for or, without one, that is current or the newest."""
    if asked:
        return next((one for one in deployed.versions if str(one.definition.version) == asked), None)
    found = next((one for one in deployed.versions if one.definition.version == deployed.current), None)
    return found or (deployed.versions[-1] if deployed.versions else None)
