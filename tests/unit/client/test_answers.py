"""What clients are answered."""

from collections.abc import Iterator

import pytest

from sagastream import RequestRefused, SagaClient, SagaRequest, SagaState, SagaStatus, UnreadableSaga
from sagastream.client.answers import Accepted, Refused, granted
from sagastream.client.requests import to_begin


def test_a_type_checker_has_what_is_no_saga_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # As above, with the comments: what is yielded has no status before its type was checked.
    def look(client: SagaClient) -> Iterator[str]:
        for ended in client.as_completed(["s1"]):
            yield ended.status  # type: ignore[union-attr]
            yield str(ended.error) if isinstance(ended, Refused) else ended.status
        for found in client.list():
            yield found.status  # type: ignore[union-attr]
            yield str(found) if isinstance(found, UnreadableSaga) else found.status

    saga = SagaState(saga_id="s1", status=SagaStatus.COMPLETED, current_step=1, steps=(), begun_ms=0, updated_ms=0)
    with SagaClient("redis://nowhere.invalid") as client:
        monkeypatch.setattr(client, "as_completed", lambda _: [saga])
        monkeypatch.setattr(client, "list", lambda: [saga])
        assert list(look(client)) == ["COMPLETED"] * 4


def test_what_was_accepted_is_shown_without_its_steps() -> None:
    saga: SagaRequest = {"saga_id": "s1", "steps": [{"transaction": "Do", "service": "work", "params": "secret"}]}
    assert repr(Accepted(begin=to_begin(saga))) == "Accepted(saga_id='s1')"


def test_a_refusal_is_a_value_until_it_is_asked_for() -> None:
    assert granted(5) == 5
    with pytest.raises(RequestRefused, match="why"):
        granted(Refused(saga_id="s1", error=RequestRefused(22, "why")))
