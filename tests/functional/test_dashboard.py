"""The pages of a dashboard and their rules, on real servers, without a browser."""

import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from html import unescape
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from sagastream.core.filtering import Filter
from sagastream.core.saga import SagaState
from sagastream.store.quarantine import Quarantine
from sagastream.store.roles import Role
from sagastream_bridge.dashboard import feed
from sagastream_bridge.dashboard.app import Dashboard
from sagastream_bridge.dashboard.rules import Names
from support.dashboards import HOSTILE, Shop
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server, free_port, start_server
from support.stores import KEYS
from support.users import Users
from support.waiting import until

TOKEN = "correct-horse-battery-staple"
PAGES = (
    "/",
    "/sagas",
    "/sagas/branches",
    "/sagas/waits",
    "/sagas/went-back",
    "/services",
    "/parked",
    "/bulks",
    "/quarantine",
    "/definitions",
    "/definitions/order",
    "/definitions/order?version=1&explore=yes",
)
HERE = "http://127.0.0.1:8420"


@pytest.fixture(autouse=True)
def _short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that is to end does not wait for long."""
    monkeypatch.setattr(feed, "_IDLE_MS", 100)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A store with sagas in every state, for all tests of this file that take it."""
    server = start_server("valkey", tmp_path_factory.mktemp("dashboard"), Server)
    try:
        found = Shop(Scene(server.broker()))
        found.fill()
        yield found
    finally:
        server.stop()


Asked = Callable[..., TestClient]


@pytest.fixture
def asks(shop: Shop) -> Asked:
    """Makes a browser of a dashboard of the shop."""
    return lambda **options: browser(shop.scene, **options)


def browser(scene: Scene, **options: Any) -> TestClient:
    dashboard = Dashboard(scene.broker, names=Names.of("127.0.0.1"), port=lambda: 8420, **options)
    return TestClient(dashboard.app, base_url=HERE, headers={"accept": "text/html"}, follow_redirects=False)


def text(page: str) -> str:
    """What a person reads on a page."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


def form_token(page: str) -> str:
    (first, *_) = re.findall(r'name="form_token" value="([^"]+)"', page)
    return str(first)


def act(client: TestClient, path: str, page: str, headers: Mapping[str, str] | None = None, **fields: str) -> Any:
    """Send a form of a page, as a browser does."""
    data = {"form_token": form_token(client.get(page).text), "reason": "the bank is back", "actor": "ada"} | fields
    return client.post(path, data=data, headers={"origin": HERE} if headers is None else headers)


# --- pages


@pytest.mark.both_in_soak
def test_every_page_is_shown_on_every_server(server: Server) -> None:
    Shop(scene := Scene(server.broker())).fill()
    client = browser(scene)
    for path in PAGES:
        assert client.get(path).status_code == 200, path


def test_an_empty_store_says_what_to_do(server: Server) -> None:
    client = browser(Scene(server.broker()))
    for path, said in {
        "/": "no worker is running",
        "/sagas": "Begin one: sagastream begin FILE",
        "/services": "sagastream worker",
        "/parked": "No saga is parked",
        "/bulks": "No bulk is kept",
        "/quarantine": "Nothing was set aside",
        "/definitions": "sagastream deploy FILE",
    }.items():
        assert said in text(client.get(path).text), path


def test_the_overview_says_what_is_wrong_and_what_helps(asks: Asked) -> None:
    page = text(asks().get("/").text)
    for said in (
        "no process of service away is listening, and none ever was; 2 commands wait for one",
        "sagastream service MODULE:NAME starts one",
        "3 sagas are parked",
        "2 messages were set aside: see why",
        "effects of these sagas stand that are neither finished nor undone",
    ):
        assert said in page, said


@pytest.mark.both_in_soak
def test_of_a_misspelt_service_the_overview_advises_what_show_does(server: Server) -> None:
    scene = Scene(server.broker())
    client = browser(scene)
    elsewhere, misspelt = (do(1, service=name, compensation=None, after=[]) for name in ("away", "wrok"))
    for saga_id in ("typo-1", "typo-2"):  # the first of them waits for another service, too
        Shop(scene).begin_graph(saga_id, *([elsewhere] if saga_id == "typo-1" else []), misspelt)
        Shop(scene).until(saga_id, "begun")
    (cause,) = (one for one in scene.client.why("typo-1") if "wrok" in one.text)
    (advice,) = cause.do
    assert advice.startswith("sagastream cancel typo-1 --now --reason TEXT  # ")
    for path in ("/", "/services"):
        page = text(client.get(path).text)
        assert "is it a misspelling of work?; 2 commands wait for one" in page
        assert advice.replace("  # ", " ") in page
        assert page.count("sagastream service") == 1  # of the other service
    with Shop(scene).moving():
        for saga_id in ("typo-1", "typo-2"):
            scene.client.cancel(saga_id, "misspelt", 10, now=True)
    for saga_id in ("typo-1", "typo-2"):  # as if a worker that has not heard of it sent them
        body = f'{{"type":"Do","saga_id":"{saga_id}","step":1,"params":null}}'
        scene.redis.xadd(KEYS.partitions[0].commands("wrok"), {"body": body})
    client = browser(scene)
    for path in ("/", "/services"):
        page = text(client.get(path).text)
        assert "is it a misspelling of work?; no saga waits for 2 commands of it" in page
        assert "sagastream drop-commands wrok" in page
        assert "sagastream service" not in page


def test_a_saga_says_why_it_waits_as_show_does(asks: Asked, shop: Shop) -> None:
    page = text(asks().get("/sagas/branches").text)
    for cause in shop.scene.client.why("branches"):
        assert cause.text in page
        for line in cause.do:
            assert line.replace("  # ", " ") in page


def test_a_saga_that_went_back_says_how_much_of_it_was_undone(asks: Asked) -> None:
    assert "Steps 1 of 2 done, 1 undone" in text(asks().get("/sagas/went-back").text)
    assert "Steps 2 of 2 done How it ended" in text(asks().get("/sagas/done-0").text)


@pytest.mark.both_in_soak
def test_what_was_erased_is_said_to_be_erased(server: Server) -> None:
    shop = Shop(scene := Scene(server.broker()))
    then = do({"$ref": "/input/name"}, id="then", when={"eq": [{"$ref": "/input/name"}, "Ada"]}, after=["first"])
    shop.begin_graph("s1", do(1, id="first", after=[]), then, input={"name": "Ada"})
    client = browser(scene)
    shop.until("s1", "begun")
    assert "Params, not filled in yet" in text(client.get("/sagas/s1").text)
    shop.until("s1", "ended")
    page = text(client.get("/sagas/s1").text)
    assert ('Input { "name": "Ada" }' in page, "not filled in" in page, "(erased)" in page) == (True, False, False)
    scene.client.erase("s1", "she asked for it", actor="bo")
    page = text(client.get("/sagas/s1").text)
    assert page.count("Params (erased)") == 2
    assert "Condition (erased)" in page
    assert "Input (erased)" in page
    assert ("not filled in" in page, "null" in page, "Ada" in page) == (False, False, False)


def test_a_saga_that_is_not_there_says_so(asks: Asked) -> None:
    client = asks()
    assert "There is no saga nope" in text((answer := client.get("/sagas/nope")).text)
    assert answer.status_code == 404
    assert client.get("/sagas/a%20b").status_code == 404
    assert client.get("/definitions/nope").status_code == 404
    assert client.get("/definitions/order?version=99").status_code == 404
    assert client.get("/quarantine/1-1").status_code == 404
    assert "There is no such page" in client.get("/nothing").text


def test_sagas_are_found_by_what_a_page_is_asked_for(asks: Asked) -> None:
    client = asks()

    def ids(query: str) -> set[str]:
        return set(re.findall(r'class="id" href="/sagas/([^"]+)"', client.get(f"/sagas?{query}").text))

    assert ids("status=parked") == {"parked-0", "parked-1", "branches"}
    assert ids("where=customer%3Dc42") == {"branches"}
    assert ids("status=ABORTED") == {"went-back"}
    assert ids("at=away/Do") == {"branches", "lonely"}
    assert ids("at=away/Do&where=customer%3Dc42") == {"branches"}
    assert ids("error=AS+ASKED&status=completed") == set()
    assert ids("parked=work/Do") == {"parked-0", "parked-1", "branches"}
    assert ids("parked=work/DoForGood") == set()
    assert ids("older=1h") == set()
    assert "No saga is like that" in client.get("/sagas?older=1h").text
    for query, said in {
        "older=soon": "is not a duration like 500ms, 90s",
        "where=customer": "customer",
        "where=customer%3Da+customer%3Db": "names customer twice",
        "at=work": "work is a service: at work/COMMAND",
        "cursor=nonsense": "no cursor that a page has had",
    }.items():
        wrong = client.get(f"/sagas?{query}")
        assert (wrong.status_code, said in wrong.text) == (422, True), query
        assert "Sagas that were found" not in wrong.text  # nor a panel with nothing in it


def test_a_list_goes_on_page_by_page(asks: Asked, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagastream_bridge.dashboard.reading._OF_A_PAGE", 4)
    client, found, address = asks(), list[str](), "/sagas"
    while address:
        page = client.get(address).text
        found += re.findall(r'class="id" href="/sagas/([^"]+)"', page)
        address = "".join(re.findall(r'rel="next" href="([^"]+)"', page))
    everything = [one.saga_id for one in shop.scene.client.list() if isinstance(one, SagaState)]
    assert found == everything
    assert f"shown of {len(everything)}" in page


def test_a_page_says_among_which_it_found_none(asks: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagastream.store.finding._LOOKED_AT", 3)
    page = asks().get("/sagas?error=nobody+says+that").text
    assert "None among the 3 that began last" in page
    assert "choose the status aborted, compensating or parked" in page
    assert "shown of" not in page
    address = re.findall(r'rel="next" href="([^"]+)"', page)[0].replace("&amp;", "&")
    assert "None among the next 3" in asks().get(address).text
    other = asks().get(address.replace("nobody", "somebody"))
    assert (other.status_code, "this cursor is of another search" in other.text) == (422, True)


def test_a_definition_shows_what_can_become_of_its_sagas(asks: Asked) -> None:
    page = text(asks().get("/definitions/order?explore=yes").text)
    assert "It can end completed aborted parked" in page
    assert re.search(r"4 charge .*3 stock, then 1 reserve", page)


def test_hostile_text_in_every_field_is_shown_as_text(server: Server) -> None:
    scene = Scene(server.broker())
    scene.begin("hurt", do({HOSTILE: HOSTILE}, attempts=1), do("fail", attempts=1))
    Shop(scene).until("hurt", "ended")
    scene.begin(
        "stuck", do(HOSTILE, "DoForGood", kind="pivot", compensation=None), do("fail", kind="retriable", attempts=1)
    )
    Shop(scene).until("stuck", "parked")
    scene.redis.xadd(
        KEYS.partitions[0].interventions, {"body": '{"type": "<script>", "saga_id": "<script>"}', HOSTILE: HOSTILE}
    )
    scene.redis.sadd(KEYS.services, HOSTILE)
    scene.redis.hset(KEYS.saga("stuck"), "reason", HOSTILE)
    scene.redis.zadd(KEYS.alive, {'{"name": "<script>alive", "kind": "worker"}': 9e15})
    scene.turns_until(lambda: scene.redis.xlen(KEYS.partitions[0].quarantine) == 1)
    [bulk] = [scene.client.begin_bulk("skip", "<script>", error=HOSTILE[:30], actor="<img src=x>")]
    scene.redis.hset(KEYS.bulk(bulk.bulk_id), "last_error", HOSTILE)
    scene.redis.hset(KEYS.bulk(bulk.bulk_id), "refused", 2)
    scene.redis.xadd(KEYS.bulk_results(bulk.bulk_id), {"saga_id": HOSTILE, "refused": HOSTILE})
    scene.redis.xadd(KEYS.bulk_results(bulk.bulk_id), {"done": HOSTILE})
    client = browser(scene, allow_actions=True)
    [message] = Quarantine(scene.redis, KEYS).newest_first()
    begin = f"/bulks/begin?verb=retry&status=parked&error={quote(HOSTILE[:200])}"
    pages = ("/", "/sagas", "/sagas/hurt", "/sagas/stuck", "/services", "/parked", "/quarantine")
    for path in (*pages, "/bulks", f"/bulks/{bulk.bulk_id}", begin):
        page = client.get(path).text
        assert page.count("<script") == 1, path  # that of the page itself
        assert "<img" not in page
        assert "\x1b" not in page
        assert "\u202e" not in page
        assert "49}}" not in page
    assert "&lt;script&gt;" in client.get("/sagas/hurt").text
    assert "&lt;script&gt;" in client.get(f"/quarantine/{message.id}").text
    assert f"/sagas?error={'x' * 3}" not in client.get("/sagas", params={"error": HOSTILE}).text
    assert client.get("/sagas", params={"error": HOSTILE}).text.count("<script") == 1


# --- rules


def test_every_answer_forbids_what_comes_from_elsewhere(asks: Asked) -> None:
    client = asks(token=TOKEN)
    for path in ("/login", "/", "/static/dashboard.css", "/static/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/login").headers["cache-control"] == "no-store"
    assert "immutable" in client.get("/static/dashboard.css?v=1").headers["cache-control"]


def test_no_page_has_script_or_style_of_its_own(asks: Asked) -> None:
    client = asks(allow_actions=True)
    for path in PAGES:
        page = client.get(path).text
        assert re.findall(r"<script(?! src=)|<style|\sstyle=|\son\w+=|javascript:", page) == [], path
        assert all(found.startswith("/") for found in re.findall(r'(?:src|href|action)="([^"#]+)"', page)), path


def test_the_server_answers_to_its_own_names_only(asks: Asked) -> None:
    client = asks()
    for host in ("evil.example", "127.0.0.1.evil.example:8420", ""):
        assert client.get("/", headers={"host": host}).status_code == 421, host
    assert client.get("/", headers={"host": "localhost:8420"}).status_code == 200


def test_what_another_site_sends_is_refused(asks: Asked, shop: Shop) -> None:
    client = asks(allow_actions=True)
    path, page = "/sagas/parked-0/retry", "/sagas/parked-0"
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {}):
        answer = act(client, path, page, headers)
        assert (answer.status_code, answer.text) == (403, "This request did not come from a page of this dashboard.\n")
    assert client.get("/", headers={"origin": "http://evil.example"}).status_code == 403
    wrong = act(client, path, page, form_token="0" * 64)
    assert (wrong.status_code, "too old" in wrong.text) == (403, True)
    token = form_token(client.get(page).text)
    client.cookies.clear()  # it is another session's
    assert act(client, path, page, form_token=token).status_code == 403
    state = shop.scene.client.get("parked-0")
    assert state is not None
    assert state.interventions == ()


def test_who_does_not_know_the_token_sees_nothing(asks: Asked) -> None:
    client = asks(token=TOKEN, allow_actions=True)
    for path in PAGES:
        answer = client.get(path)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/login?to=%2F")
    assert client.get("/live", headers={"accept": "text/event-stream"}).status_code == 401
    assert client.post("/sagas/parked-0/retry", headers={"origin": HERE}).status_code == 401
    assert client.get("/static/dashboard.css").status_code == 200
    for path in ("/static/nothing", "/login/nothing", "/loginx"):
        assert (client.get(path).status_code, client.get(path).text) == (404, "There is no such page.\n"), path
    assert client.get("/", headers={"authorization": "Bearer wrong"}).status_code == 303
    for given, begins in (("Bearer wrong", "The header Authorization does not have"), (f"Basic {TOKEN}", "The header")):
        refused = client.get("/", headers={"authorization": given, "accept": "*/*"})
        assert (refused.status_code, refused.text.startswith(begins)) == (401, True)
    assert client.get("/", headers={"accept": "*/*"}).text.startswith("Sign in first, or send the token")
    assert client.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/").status_code == 303  # that was no session


def test_the_token_begins_a_session_which_ends(asks: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagastream_bridge.dashboard.app._WRONG_TOKEN_S", 0)
    client = asks(token=TOKEN)
    wrong = client.post("/login", data={"token": "wrong", "to": "/parked"}, headers={"origin": HERE})
    assert (wrong.status_code, "That is not the token" in wrong.text) == (403, True)
    assert "set-cookie" not in wrong.headers
    assert client.post("/login", data={"token": TOKEN}).status_code == 403  # without an origin
    answer = client.post("/login", data={"token": TOKEN, "to": "/parked"}, headers={"origin": HERE})
    assert (answer.status_code, answer.headers["location"]) == (303, "/parked")
    assert "HttpOnly; SameSite=Lax" in answer.headers["set-cookie"]
    assert "Secure" not in answer.headers["set-cookie"]
    assert TOKEN not in answer.headers["set-cookie"]
    assert client.get("/parked").status_code == 200
    client.post("/logout", headers={"origin": HERE})
    assert client.get("/parked").status_code == 303


@pytest.mark.parametrize("to", ["https://evil.example", "//evil.example", "/\\evil.example", "evil", "/a\r\nx: y"])
def test_who_signs_in_stays_here(asks: Asked, to: str) -> None:
    client = asks(token=TOKEN)
    answer = client.post("/login", data={"token": TOKEN, "to": to}, headers={"origin": HERE})
    assert answer.headers["location"] == "/"


def test_a_dashboard_that_only_shows_acts_on_nothing(asks: Asked, shop: Shop) -> None:
    client = asks()
    page = client.get("/sagas/parked-0").text
    assert "<form" not in page
    assert "start it with --allow-actions" in text(page)
    [message, *_] = Quarantine(shop.scene.redis, KEYS).newest_first()
    bulks = ("/bulks/begin", f"/bulks/{'a' * 12}/stop")
    for path in ("/sagas/parked-0/retry", "/services/work/pause", f"/quarantine/drop/{message.id}", *bulks):
        answer = client.post(path, data={"reason": "r", "actor": "w"}, headers={"origin": HERE})
        assert (answer.status_code, "only shows" in answer.text) == (403, True)
    assert "<form" not in client.get(f"/quarantine/{message.id}").text
    assert "<form" not in client.get("/parked").text
    assert "/bulks/begin" not in client.get("/sagas?status=parked").text
    assert client.get("/bulks/begin?verb=retry&status=parked").status_code == 403
    assert Quarantine(shop.scene.redis, KEYS).get(message.id)


def test_only_get_shows_and_only_post_acts(asks: Asked) -> None:
    client = asks(allow_actions=True)
    assert client.get("/sagas/parked-0/retry").status_code == 405
    assert client.post("/parked", headers={"origin": HERE}).status_code == 405
    assert client.put("/", headers={"origin": HERE}).status_code == 405


def test_whatever_an_address_or_a_form_says_is_answered(asks: Asked) -> None:
    client = asks(allow_actions=True)
    many = "9" * 5000  # more digits than int() reads
    for version in (many, "-1", "0x1", "\N{SUPERSCRIPT TWO}"):
        assert client.get("/definitions/order", params={"version": version}).status_code == 404
    for cursor in (many, f"1.{Filter().mark}.{many}.0.0e.x", f"1.{Filter().mark}.1.1.1e.\0"):
        assert client.get("/sagas", params={"cursor": cursor}).status_code == 422
    [message, *_] = re.findall(r'href="/quarantine/([^"]+)"', client.get("/quarantine").text)
    names = ("self", "request", "saga_id", "entry_id", "service", "status", "complaint", "given")
    # as if somebody had left out the reason
    fields: dict[str, str] = dict.fromkeys(names, "x") | {"reason": ""}
    for path in ("/sagas/parked-0/retry", "/services/work/pause", f"/quarantine/drop/{message}"):
        answer = act(client, path, "/sagas/parked-0", None, **fields)
        assert (answer.status_code, "Say why" in text(answer.text)) == (422, True), path
    assert act(client, "/sagas/parked-0/retry", "/sagas/parked-0", step=many).status_code == 422


# --- actions


@pytest.fixture
def acting(server: Server) -> Iterator[tuple[TestClient, Shop]]:
    """A dashboard that may act, on a store that moves."""
    shop = Shop(scene := Scene(server.broker()))
    for number in range(2):
        scene.begin(
            f"p{number}", do(1, "DoForGood", kind="pivot", compensation=None), do("fail", kind="retriable", attempts=1)
        )
        shop.until(f"p{number}", "parked")
    scene.begin("out", do(1), do(1, service="away"))
    shop.until("out", "OUT")
    scene.begin("undo", do(1), do(1, compensation="NoSuch", compensation_attempts=1), do("fail"))
    shop.until("undo", "parked")
    shop.begin_graph("waits", {"wait": "approve", "timeout_ms": 600_000, "after": []})
    shop.until("waits", "AWAITING")
    scene.redis.xadd(KEYS.partitions[0].interventions, {"body": '{"type":"saga_fly","saga_id":"p0"}'})
    scene.turns_until(lambda: scene.redis.xlen(KEYS.partitions[0].quarantine) == 1)
    with shop.moving():
        yield browser(scene, allow_actions=True), shop


def test_an_action_needs_a_reason_and_a_name_which_stay_with_the_saga(acting: tuple[TestClient, Shop]) -> None:
    client, shop = acting
    for missing, said in (("reason", "Say why"), ("actor", "Say who you are")):
        answer = act(client, "/sagas/p0/skip", "/sagas/p0", None, **{missing: "  "}, key="skip")
        assert answer.status_code == 422
        assert said in answer.text
        assert ' open>\n  <summary><span class="button">Skip' in answer.text  # with what was typed already
        assert 'data-at="/sagas/p0"' in answer.text
    assert act(client, "/sagas/p0/skip", "/sagas/p0", reason="a" * 501).status_code == 422
    answer = act(client, "/sagas/p0/skip", "/sagas/p0", parked_at="2/transaction/1", actor="Ada Öz, ops")
    assert answer.status_code == 303
    then = client.get(answer.headers["location"])
    assert ">Skip was done.</div>" in then.text  # how the saga stands is told below: it may change
    assert "skip by Ada Öz, ops: the bank is back" in text(then.text)
    for page in (then, client.get("/sagas?status=completed")):
        assert "ll steps are done, but for what was skipped: step 2" in text(page.text)
    state = shop.scene.client.get("p0")
    assert state is not None
    assert [(one.verb, one.actor, one.reason) for one in state.interventions] == [
        ("skip", "Ada Öz, ops", "the bank is back")
    ]
    assert 'value="Ada Öz, ops"' in client.get("/sagas/p1").text  # the name is filled in from now on


def test_each_verb_does_what_its_command_does(acting: tuple[TestClient, Shop]) -> None:
    client, shop = acting
    get = shop.scene.client.get
    retried = act(client, "/sagas/p0/retry", "/sagas/p0", parked_at="2/transaction/1")
    assert "Retry was done" in client.get(retried.headers["location"]).text
    until(lambda: (state := get("p0")) and state.steps[1].attempt == 2 and state.parked, what="it is parked again")
    assert act(client, "/sagas/p0/abandon", "/sagas/p0", parked_at="2/transaction/1").status_code == 422  # it has moved
    act(client, "/sagas/p0/abandon", "/sagas/p0", parked_at="2/transaction/2")
    assert (state := get("p0")) is not None
    assert state.status == "ABORTED"
    page = text(client.get("/sagas/p0").text)
    assert "It ended without going back: " in page
    assert "Not undone: DoForGood of step 1, abandoned by ada; Do of step 2, which may" in page
    act(client, "/sagas/undo/skip", "/sagas/undo")
    until(lambda: (state := get("undo")) and state.ended, what="it goes back")
    page = text(client.get("/sagas/undo").text)
    assert "It went back in part: Step 3 failed: as asked. Not undone: Do of step 2, skipped by ada." in page
    assert "Steps 2 of 3 done, 1 undone" in page
    act(client, "/sagas/out/cancel", "/sagas/out", now="yes")
    assert (state := get("out")) is not None
    assert state.interventions[-1].verb == "cancel now"
    wrong = act(client, "/sagas/waits/signal", "/sagas/waits", name="approve", payload="{")
    assert (wrong.status_code, "The payload must be JSON" in wrong.text) == (422, True)
    act(client, "/sagas/waits/signal", "/sagas/waits", name="approve", payload='{"by": "bo"}')
    assert (state := get("waits")) is not None
    assert (state.status, state.results) == ("COMPLETED", [{"by": "bo"}])
    assert act(client, "/sagas/p1/fly", "/sagas/p1").status_code == 404


def test_all_that_a_search_finds_is_asked_after_it_was_shown(acting: tuple[TestClient, Shop]) -> None:
    client, shop = acting
    assert "/bulks/begin" not in client.get("/sagas").text  # no search: nothing says which are meant
    assert "/bulks/begin" not in client.get("/sagas?status=completed").text
    for page in ("/sagas?status=parked&error=as+asked", "/parked"):
        assert 'name="verb" value="retry"' in client.get(page).text, page
    begin = "/bulks/begin?verb=abandon&parked=work/Do&status=parked"
    shown = client.get(begin)
    assert "2 sagas with status PARKED, parked at work/Do: those that are parked end as they are" in text(shown.text)
    assert set(re.findall(r'class="id" href="/sagas/([^"]+)"', shown.text)) == {"p0", "p1"}
    search: Any = {"verb": "abandon", "parked": "work/Do", "status": "parked", "rate": "200"}
    for wrong, said in (
        ({"reason": " "}, "Say why"),
        ({"actor": ""}, "Say who you are"),
        ({"rate": "0"}, "Rate must be a whole number from 1 to 2000 a second"),
        ({"rate": "x"}, "Rate must be a whole number from 1 to 2000 a second"),
    ):
        answer = act(client, "/bulks/begin", begin, None, **(search | wrong))
        assert (answer.status_code, said in answer.text) == (422, True), wrong
        assert "2 sagas with status PARKED, parked at work/Do" in text(answer.text)
        assert 'data-at="/bulks/begin?verb=abandon&amp;status=parked&amp;parked=work%2FDo"' in answer.text
    for headers in ({"origin": "http://evil.example"}, {}):
        assert act(client, "/bulks/begin", begin, headers, **search).status_code == 403
    assert act(client, "/bulks/begin", begin, None, form_token="0" * 64, **search).status_code == 403
    assert act(client, "/bulks/begin", begin, None, **(search | {"verb": "signal"})).status_code == 404
    assert shop.scene.client.bulks() == []
    answer = act(client, "/bulks/begin", begin, None, **search)
    [bulk] = shop.scene.client.bulks()
    assert answer.headers["location"].startswith(f"/bulks/{bulk.bulk_id}?told=")
    assert f"Bulk {bulk.bulk_id} has begun." in client.get(answer.headers["location"]).text
    assert (bulk.verb, bulk.reason, bulk.actor, bulk.total) == ("abandon", "the bank is back", "ada", 2)
    until(lambda: shop.scene.client.bulk(bulk.bulk_id).ended, what="it has ended")
    page = client.get(f"/bulks/{bulk.bulk_id}").text
    assert "Found 2 of 2 when it began Asked 2 all are answered Taken 2 as their pages tell" in text(page)
    assert {"p0", "p1"} <= set(re.findall(r'class="id" href="/sagas/([^"]+)"', page))
    assert "/stop" not in page  # it has ended
    assert "2 taken; 2 found of 2" in text(client.get("/bulks").text)
    state = shop.scene.client.get("p1")
    assert state is not None
    assert [(one.verb, one.reason, one.actor) for one in state.interventions] == [
        ("abandon", "the bank is back", "ada")
    ]
    assert "There is no such saga" in client.get(begin).text


@pytest.mark.both_in_soak
def test_a_bulk_says_how_many_of_its_sagas_are_parked_now(acting: tuple[TestClient, Shop]) -> None:
    client, shop = acting
    bulk_id = shop.scene.client.begin_bulk("retry", "mended", parked="work/Do", actor="ada").bulk_id

    def is_parked_again(saga_id: str) -> bool:
        state = shop.scene.client.get(saga_id)
        return state is not None and state.steps[1].attempt == 2 and state.parked is not None

    until(lambda: is_parked_again("p0") and is_parked_again("p1"), what="both are parked again")
    until(lambda: shop.scene.client.bulk(bulk_id).ended, what="it has ended")
    assert "Taken 2 2 parked now Refused" in text(client.get(f"/bulks/{bulk_id}").text)
    shop.scene.client.abandon("p0", "by hand", 10, actor="ada")
    assert "Taken 2 1 parked now Refused" in text(client.get(f"/bulks/{bulk_id}").text)


def test_a_search_that_a_verb_cannot_be_for_says_why(acting: tuple[TestClient, Shop]) -> None:
    client, shop = acting
    for query, said in {
        "verb=retry": "a bulk needs a search that says which sagas are meant",
        "verb=retry&status=completed": "a saga that has ended, COMPLETED, takes no retry",
        "verb=skip&older=soon": "is not a duration like 500ms, 90s",
    }.items():
        answer = client.get(f"/bulks/begin?{query}")
        assert (answer.status_code, said in text(answer.text)) == (422, True), query
    assert client.get("/bulks/begin?verb=fly&status=parked").status_code == 404
    begin = "/bulks/begin?verb=cancel&at=away/Do"
    assert 'name="now"' in client.get(begin).text
    wrong = act(client, "/bulks/begin", begin, verb="retry", status="parked", rate="1", now="yes")
    assert (wrong.status_code, "Now is for cancel and abandon" in wrong.text) == (422, True)
    answer = act(client, "/bulks/begin", begin, verb="cancel", at="away/Do", rate="1", now="yes")
    assert answer.status_code == 303
    until(lambda: (state := shop.scene.client.get("out")) and state.interventions, what="it was asked")
    state = shop.scene.client.get("out")
    assert state is not None
    assert state.interventions[-1].verb == "cancel now"


def test_a_bulk_is_paused_resumed_and_stopped(server: Server) -> None:
    scene = Scene(server.broker())  # no worker: it stands where it is
    bulk_id = scene.client.begin_bulk("retry", "mended", status="PARKED").bulk_id
    client, page = browser(scene, allow_actions=True), f"/bulks/{bulk_id}"
    assert "<form" not in browser(scene).get(page).text
    token = form_token(client.get(page).text)
    for verb, state, said in (
        ("pause", "PAUSED", "is paused: no more sagas are asked"),
        ("resume", "RUNNING", "goes on where it was"),
        ("stop", "STOPPED", "is stopped for ever"),
    ):
        missing = act(client, f"{page}/{verb}", page, reason="", verb=verb)
        assert (missing.status_code, "Say why" in missing.text, " open>" in missing.text) == (422, True, True)
        answer = act(client, f"{page}/{verb}", page)
        assert f"Bulk {bulk_id} {said}" in client.get(answer.headers["location"]).text
        assert scene.client.bulk(bulk_id).state == state
    late = client.post(  # somebody else was faster
        f"{page}/pause", data={"form_token": token, "reason": "it is late", "actor": "ada"}, headers={"origin": HERE}
    )
    assert (late.status_code, f"Bulk {bulk_id} is STOPPED: there is nothing to pause." in late.text) == (422, True)
    assert client.get("/bulks/000000000000").status_code == 404
    assert client.get("/bulks/nope").status_code == 404
    operations = text(client.get("/services").text)
    assert f"bulk stop {bulk_id} ada the bank is back" in operations


def test_messages_are_put_back_and_dropped(acting: tuple[TestClient, Shop]) -> None:
    client, shop = acting
    quarantine = Quarantine(shop.scene.redis, KEYS)
    [message] = quarantine.newest_first()
    page = f"/quarantine/{message.id}"
    assert act(client, f"/quarantine/replay/{message.id}", page, reason="", verb="replay").status_code == 422
    answer = act(client, f"/quarantine/replay/{message.id}", page)
    assert "was put back" in client.get(answer.headers["location"]).text
    [again] = until(lambda: [one for one in quarantine.newest_first() if one.id != message.id], what="it comes back")
    answer = act(client, f"/quarantine/drop/{again.id}", f"/quarantine/{again.id}")
    assert "was dropped" in client.get(answer.headers["location"]).text
    assert f"quarantine drop {again.id} ada the bank is back" in text(client.get("/services").text)
    assert len(quarantine) == 0


def test_a_pause_of_what_nobody_knows_is_shown_and_can_be_ended(server: Server) -> None:
    scene = Scene(server.broker())
    scene.client.pause("payments", "Charge", reason="the bank migrates", actor="ada")
    scene.begin("s1", do(1, service="away"))
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    client = browser(scene, allow_actions=True)
    page = client.get("/").text
    assert 'href="/services#service-payments"' in page
    assert page.index("no process of service away") < page.index("the bank migrates")  # the worst first
    services = client.get("/services").text
    assert 'id="service-payments"' in services
    assert "the bank migrates; it holds nothing: no process of service payments is listening" in text(services)
    answer = act(client, "/services/payments/resume", "/services", command="Charge", reason="it is done")
    assert answer.status_code == 303
    assert scene.client.paused() == []
    assert "service-payments" not in client.get("/services").text


def test_a_service_is_paused_and_resumed(acting: tuple[TestClient, Shop]) -> None:
    client, shop = acting
    for form, said in (({"reason": ""}, "Say why"), ({"command": "a b"}, "command")):
        answer = act(client, "/services/work/pause", "/services", None, **form)
        assert (answer.status_code, said in text(answer.text)) == (422, True)
    answer = act(client, "/services/work/pause", "/services", command="Do", reason="the bank migrates")
    assert "#" not in answer.headers["location"]  # what became of it stands on top of the page
    assert "Do of service work is paused: nothing of it is sent" in client.get(answer.headers["location"]).text
    services = text(client.get("/services").text)
    assert ("a command is paused" in services, "Resume Do" in services) == (True, True)
    shop.scene.begin("held", do(1))
    until(lambda: (state := shop.scene.client.get("held")) and state.step.is_held, what="it is held")
    until(lambda: "1 saga is held at this service" in text(client.get("/").text), what="the overview tells it")
    assert "the bank migrates" in text(client.get("/").text)
    page = text(client.get("/sagas/held").text)
    assert "held" in page
    assert "sagastream resume work Do --reason TEXT" in page
    assert act(client, "/services/work/resume", "/services").status_code == 422  # the service itself is not paused
    assert "Resume Do of work" in page
    assert act(client, "/sagas/held/resume", "/sagas/held", service="work").status_code == 422
    answer = act(client, "/sagas/held/resume", "/sagas/held", service="work", command="Do", reason="it is done")
    assert answer.headers["location"].startswith("/sagas/held?told=")
    assert "Do of service work is resumed: what was held is sent" in client.get(answer.headers["location"]).text
    until(lambda: (state := shop.scene.client.get("held")) and state.ended, what="it goes on")
    page = text(client.get("/services").text)
    assert "resume work/Do ada it is done" in page
    assert "pause work/Do ada the bank migrates" in page
    assert act(client, "/services/work/stop", "/services").status_code == 404


# --- what it costs


def test_a_dashboard_at_which_nobody_looks_asks_for_nothing_but_events(server: Server) -> None:
    scene = Scene(server.broker())
    scene.begin("s1", do(1))
    Shop(scene).until("s1", "ended")
    dashboard = Dashboard(scene.broker, names=Names.of("127.0.0.1"))

    def calls() -> dict[str, int]:
        found: Any = scene.redis.info("commandstats")
        return {name.removeprefix("cmdstat_"): one["calls"] for name, one in found.items()}

    dashboard.feed.start()
    try:
        until(lambda: calls().get("xread", 0) >= 2, what="it reads events")
        before = calls()
        until(lambda: calls()["xread"] >= before["xread"] + 5, what="it goes on")
        after = calls()
    finally:
        dashboard.feed.stop()
    assert {name for name, count in after.items() if count > before.get(name, 0)} <= {"xread", "info"}


def test_events_of_the_past_and_of_now_are_counted(server: Server) -> None:
    scene = Scene(server.broker())
    scene.begin("before", do(1))
    Shop(scene).until("before", "ended")
    dashboard = Dashboard(scene.broker, names=Names.of("127.0.0.1"))
    now_ms = dashboard.reader.standing().now_ms

    def counted(what: str) -> int:
        return sum(one.counts[what] for one in dashboard.feed.rates.stretches(now_ms + 5_000))

    dashboard.feed.start()
    try:
        until(lambda: counted("completed") == 1, what="the past was read")
        scene.begin("after", do(1), do("fail"))
        Shop(scene).until("after", "ended")
        until(lambda: counted("aborted") == 1, what="the new event was read")
    finally:
        dashboard.feed.stop()
    assert (counted("completed"), counted("parked")) == (1, 0)


# --- the command


@pytest.mark.both_in_soak
def test_the_command_serves_pages_until_it_is_told_to_end(server: Server, commands: Commands) -> None:
    port, env = free_port(), {"REDIS_URL": server.url}
    process = commands.start("dashboard", "--port", str(port), env=env)
    assert process.stdout is not None
    begins = [process.stdout.readline().decode() for _ in range(4)]
    assert begins[0] == f"dashboard  http://127.0.0.1:{port}/\n"
    assert begins[2] == "token      no: all who reach it may look\n"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/sagas") as answer:
        assert b"No saga yet" in answer.read()
    used = commands.run("dashboard", "--port", str(port), **env)
    assert (used.returncode, used.stderr.count("\n")) == (1, 1)
    assert f"cannot listen at port {port} of 127.0.0.1: Address already in use; --port takes another" in used.stderr
    process.terminate()
    assert process.wait(30) == 0


@pytest.mark.both_in_soak
def test_an_inspector_may_look_at_all_pages_and_an_operator_may_act(server: Server) -> None:
    shop = Shop(Scene(server.broker()))
    shop.fill()
    users = Users(server)

    def client_of(role: Role, **options: Any) -> TestClient:
        dashboard = Dashboard(users.broker(role), names=Names.of("127.0.0.1"), **options)
        return TestClient(dashboard.app, base_url=HERE, headers={"accept": "text/html"}, follow_redirects=False)

    inspector = client_of(Role.INSPECTOR)
    for path in PAGES:
        assert inspector.get(path).status_code == 200, path
    assert users.refused() == []
    refused = act(client_of(Role.INSPECTOR, allow_actions=True), "/sagas/parked-0/skip", "/sagas/parked-0")
    assert (refused.status_code, "may not do this" in refused.text) == (422, True)
    with shop.moving():
        done = act(client_of(Role.OPERATOR, allow_actions=True), "/sagas/parked-0/skip", "/sagas/parked-0")
    assert done.status_code == 303
    begin, many = "/bulks/begin?verb=retry&status=parked", {"verb": "retry", "status": "parked", "rate": "9"}
    refused = act(client_of(Role.INSPECTOR, allow_actions=True), "/bulks/begin", begin, None, **many)
    assert (refused.status_code, "may not do this" in refused.text) == (422, True)
    assert shop.scene.client.bulks() == []
    operator = client_of(Role.OPERATOR, allow_actions=True)
    page = act(operator, "/bulks/begin", begin, None, **many).headers["location"].partition("?")[0]
    assert inspector.get(page).status_code == 200
    assert act(operator, f"{page}/stop", page).status_code == 303
