"""What services publish, as it is written and read."""

from typing import Any

from sagastream import keys, published


class Hashes:
    """As much of a client as publishing takes: hashes, and a pipeline that reads them."""

    def __init__(self, hashes: dict[str, dict[bytes, bytes]] | None = None) -> None:
        self.hashes = hashes or {}
        self.asked: list[str] = []

    def hset(self, key: str, mapping: dict[str, str]) -> None:
        self.hashes.setdefault(key, {}).update({name.encode(): undo.encode() for name, undo in mapping.items()})

    def pipeline(self, *, transaction: bool) -> "Hashes":
        assert not transaction
        return self

    def hgetall(self, key: str) -> None:
        self.asked.append(key)

    def execute(self, *, raise_on_error: bool) -> list[Any]:
        return [self.hashes.get(key, {}) for key in self.asked]


def read(hashes: Hashes, *services: str) -> Any:
    client: Any = hashes
    return published.read(client, list(services))


def publish(hashes: Hashes, service: str, commands: dict[str, str | None]) -> None:
    client: Any = hashes
    published.publish(client, service, commands)


def test_what_is_published_is_read_back() -> None:
    hashes = Hashes()
    publish(hashes, "payment", {"Charge": "Refund", "Remind": None})
    publish(hashes, "inventory", {"Reserve": "Release"})
    assert read(hashes, "payment", "inventory") == {
        "payment": {"Charge": "Refund", "Remind": None},
        "inventory": {"Reserve": "Release"},
    }
    assert hashes.asked == [keys.published("payment"), keys.published("inventory")]


def test_what_an_older_release_published_stays_and_the_newer_one_counts() -> None:
    hashes = Hashes()
    publish(hashes, "payment", {"Charge": "Refund", "Old": "UndoOld"})
    publish(hashes, "payment", {"Charge": "Refund2"})
    assert read(hashes, "payment") == {"payment": {"Charge": "Refund2", "Old": "UndoOld"}}


def test_a_service_that_published_nothing_is_left_out() -> None:
    hashes = Hashes({keys.published("payment"): {b"Charge": b"Refund"}})
    assert read(hashes, "mail", "payment") == {"payment": {"Charge": "Refund"}}
    assert read(Hashes()) == {}


def test_a_compensation_whose_name_no_command_could_carry_is_left_out() -> None:
    names = {
        b"A": b"a b",
        b"B": b"\xff",
        b"C": b"x" * 129,
        b"D": b"Undo\n",
        b"E": b"",
        b"F": b"UndoF",
        b"\xff": b"UndoG",
    }
    assert read(Hashes({keys.published("s"): names}), "s") == {"s": {"E": None, "F": "UndoF", "\ufffd": "UndoG"}}
