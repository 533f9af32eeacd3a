"""A dashboard whose broker is away or hangs: each page says so soon, and none waits behind another."""

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

import pytest

from sagastream.broker.connection import Broker
from sagastream_bridge.dashboard import feed
from sagastream_bridge.dashboard.reading import ANSWER_TIMEOUT_S
from sagastream_bridge.dashboard.server import DashboardServer
from support.dashboards import listening
from support.scenes import Scene, do
from support.servers import OwnServer
from support.waiting import takes_less_than, until

pytestmark = pytest.mark.own_server
PAGES = ("", "sagas", "sagas/s1", "sagas/no", "services", "parked", "bulks", "quarantine", "definitions", "nothing")
#: So many pages are asked for at once: more than threads read the store.
AT_ONCE = 60
#: How long a page may take while the broker hangs, in seconds: it waits for the broker once.
BAR_S = 3.5
#: … and how long if that is known.
KNOWN_S = 0.5


class Answer(NamedTuple):
    status: int
    text: str
    path: str


class Person:
    """A person with a browser."""

    def __init__(self, dashboard: DashboardServer) -> None:
        self._url = dashboard.url
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def look(self, path: str) -> Answer:
        return self._answer(urllib.request.Request(self._url + path, headers={"accept": "text/html"}))

    def act(self, path: str, token: str, page: str, **more: str) -> Answer:
        form = {"form_token": token, "reason": "the bank is back", "actor": "ada"} | more
        headers = {"origin": self._url[:-1], "referer": self._url + page}
        return self._answer(urllib.request.Request(self._url + path, urlencode(form).encode(), headers))

    def _answer(self, request: urllib.request.Request) -> Answer:
        try:
            with self._opener.open(request, timeout=60) as found:
                return Answer(found.status, found.read().decode(), urlsplit(found.url).path.strip("/"))
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode(), urlsplit(error.url).path.strip("/"))


@pytest.fixture
def dashboard(server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[DashboardServer]:
    monkeypatch.setattr(feed, "_IDLE_MS", 100)
    scene = Scene(server.broker())
    scene.begin("s1", do(1))
    scene.play("s1")
    scene.begin("s2", do(1, service="away"))
    scene.turns_until(lambda: scene.client.get("s2") is not None)
    scene.broker = Broker(server.url, answer_timeout_s=ANSWER_TIMEOUT_S)
    with listening(scene, allow_actions=True) as found:
        yield found
        server.resume()
    scene.broker.close()


def form_token(page: str) -> str:
    return str(re.findall(r'name="form_token" value="([^"]+)"', page)[0])


@pytest.mark.both_in_soak
def test_a_broker_that_hangs_holds_no_page_for_long_and_none_behind_another(
    dashboard: DashboardServer, server: OwnServer
) -> None:
    person = Person(dashboard)
    token = form_token(person.look("sagas/s2").text)
    assert [person.look(page).status for page in PAGES] == [200] * 3 + [404] + [200] * 5 + [404]
    server.pause()
    with ThreadPoolExecutor(AT_ONCE) as pool, takes_less_than(BAR_S):
        asked = [PAGES[number % len(PAGES)] for number in range(AT_ONCE)]
        statuses = {answer.status for answer in pool.map(person.look, asked)}
    assert 503 in statuses
    assert statuses <= {200, 404, 503}  # what was read a moment ago may still be shown
    for path in PAGES:
        with takes_less_than(KNOWN_S):
            answer = person.look(path)
        assert answer.status == 503, path
        assert "<h1>The broker does not answer</h1>" in answer.text
        assert "it hangs, was stopped, or is too busy" in answer.text
        assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in answer.text
        assert "Traceback" not in answer.text
    with takes_less_than(KNOWN_S):
        refused = person.act("sagas/s2/cancel", token, "sagas/s2")
    assert refused.status == 503
    assert "What you asked for was not done." in refused.text
    assert 'data-at="/sagas/s2"' in refused.text  # so what is loaded again is a page, and not the action
    assert 'content="5; url=/sagas/s2"' in refused.text
    server.resume()
    until(lambda: person.look("sagas/s1").status == 200, what="it goes on", timeout_s=20)


@pytest.mark.both_in_soak
def test_an_action_during_which_the_broker_hangs_says_that_nobody_knows(
    dashboard: DashboardServer, server: OwnServer
) -> None:
    person = Person(dashboard)
    token = form_token(person.look("sagas/s2").text)
    begun = person.act("bulks/begin", token, "bulks", verb="cancel", status="pending", rate="9")
    assert begun.status == 200
    bulk = begun.path
    actions = {"sagas/s2/cancel": "sagas/s2", "services/work/pause": "services", f"{bulk}/pause": bulk}
    server.pause()
    with ThreadPoolExecutor() as pool, takes_less_than(BAR_S):
        answers = list(pool.map(lambda path: person.act(path, token, actions[path]), actions))
    for page, answer in zip(actions.values(), answers, strict=True):
        assert answer.status == 503
        assert "What you asked for may have been done, or not. Look before you ask again." in answer.text
        assert f'data-at="/{page}"' in answer.text
    server.resume()
    until(lambda: person.look("services").status == 200, what="it goes on")


def test_a_broker_that_is_away_is_told_on_every_page(dashboard: DashboardServer, server: OwnServer) -> None:
    person = Person(dashboard)
    token = form_token(person.look("sagas/s2").text)
    server.kill()
    until(lambda: person.look("").status == 503, what="the figures that were read before are too old")
    for path in PAGES:
        answer = person.look(path)
        assert (answer.status, "The broker does not answer" in answer.text) == (503, True)
        assert "Traceback" not in answer.text
    answer = person.act("sagas/s2/cancel", token, "sagas/s2")
    assert (answer.status, "What you asked for was not done." in answer.text) == (503, True)
    server.start()
    until(lambda: person.look("").status == 200, what="it goes on")
