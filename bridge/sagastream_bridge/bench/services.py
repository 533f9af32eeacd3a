"""The services of the measurements. They do nothing, so that only the way there and back is measured."""

from typing import Any

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


def steps(*, failing: bool = False) -> list[dict[str, Any]]:
    """The steps of a saga of the measurements."""
    params = {"sku": "abc123", "quantity": 1}
    return [
        {"transaction": "BenchDo", "service": f"bench-{n}", "params": "fail" if failing and n == 3 else params}
        for n in (1, 2, 3)
    ]
