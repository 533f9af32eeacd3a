"""The services of the measurements. They do nothing, so that only the way there and back is measured."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from sagastream import Context, Reject, Service


def _service(number: int) -> Service:
    service = Service(f"bench-{number}")

    @service.command("BenchDo", compensation="BenchUndo")
    def do(params: Any, _: Context) -> dict[str, str]:
        if params == "fail":
            raise Reject("as asked")
        return {"id": "r1"}

    @service.compensation("BenchUndo")
    def undo(_params: Any, _: Context) -> None:
        return

    return service


first, second, third = (_service(number) for number in (1, 2, 3))

#: Where they are, as `sagastream service` takes them.
WHERE = tuple(f"{__name__}:{name}" for name in ("first", "second", "third"))


def saga(shape: str, *, failing: bool = False) -> dict[str, Any]:
    """The members of a saga of the measurements, without its id. `failing`: its last step fails."""
    return SHAPES[shape](failing)


def _step(number: int, params: Any, **more: Any) -> dict[str, Any]:
    return {"transaction": "BenchDo", "service": f"bench-{number}", "params": params} | more


def _ref(pointer: str) -> dict[str, str]:
    return {"$ref": pointer}


def _chain(failing: bool) -> dict[str, Any]:
    params = {"sku": "abc123", "quantity": 1}
    return {"steps": [_step(1, params), _step(2, params), _step(3, "fail" if failing else params)]}


def _references(failing: bool) -> dict[str, Any]:
    """The same steps, whose params are made of the input and of what the steps before them return."""
    last = {"sku": _ref("/input/sku"), "of": [_ref("/steps/1/result/id"), _ref("/steps/2/result/id")]}
    steps = [
        _step(1, {"sku": _ref("/input/sku"), "quantity": _ref("/input/quantity")}),
        _step(2, {"sku": _ref("/input/sku"), "of": _ref("/steps/1/result/id")}),
        _step(3, _ref("/input/last") if failing else last),
    ]
    return {"input": {"sku": "abc123", "quantity": 1, "last": "fail"}, "steps": steps}


def _fan_out(failing: bool) -> dict[str, Any]:
    """Ten steps at once."""
    params = {"sku": "abc123", "quantity": 1}
    steps = [_step(n % 3 + 1, "fail" if failing and n == 9 else params, after=[]) for n in range(10)]
    return {"input": {}, "steps": steps}


def _compose_post(failing: bool) -> dict[str, Any]:
    """A post: four parts at once, then the post and two timelines at once."""
    post = {name: _ref(f"/steps/{name}/result/id") for name in ("text", "creator", "media", "id")}
    timeline = {"owner": _ref("/steps/creator/result/id"), "post": _ref("/steps/id/result/id")}
    steps = [
        _step(1, {"text": _ref("/input/text")}, id="text", after=[]),
        _step(2, {"user": _ref("/input/user")}, id="creator", after=[]),
        _step(3, {"media": _ref("/input/media")}, id="media", after=[]),
        _step(1, None, id="id", after=[]),
        _step(2, post, id="post", after=list(post)),
        _step(3, timeline, id="own", after=["creator", "id"]),
        _step(3, _ref("/input/last") if failing else timeline, id="home", after=["text", "creator", "id"]),
    ]
    return {"input": {"user": "ada", "text": "hello", "media": ["m1"], "last": "fail"}, "steps": steps}


#: The sagas that can be measured, by name: each makes the members of one.
SHAPES: Final[Mapping[str, Callable[[bool], dict[str, Any]]]] = {
    "chain": _chain,
    "references": _references,
    "fan-out": _fan_out,
    "compose-post": _compose_post,
}
