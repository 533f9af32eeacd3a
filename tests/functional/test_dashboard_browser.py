"""A dashboard in a real Chromium: every page, every action, on wide and narrow screens, light and dark."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from sagastream.broker.connection import Broker
from sagastream.core.saga import SagaState
from sagastream.store.quarantine import Quarantine
from sagastream_bridge.dashboard import feed
from sagastream_bridge.dashboard.server import DashboardServer
from support.browsers import Complaints
from support.dashboards import HOSTILE, PIVOT, Shop, listening
from support.scenes import Scene, do
from support.servers import OwnServer, Server, start_server
from support.stores import KEYS
from support.waiting import until

PAGES = {
    "/": "Overview",
    "/sagas": "Sagas",
    "/sagas/branches": "branches",
    "/sagas/parked-0": "parked-0",
    "/sagas/waits": "waits",
    "/sagas/went-back": "went-back",
    "/sagas/hurt": "hurt",
    "/services": "Services",
    "/parked": "Parked",
    "/sagas?status=parked": "Sagas",
    "/bulks": "Bulks",
    "/bulks/begin?verb=cancel&status=pending": "Cancel all",
    "/quarantine": "Quarantine",
    "/definitions": "Definitions",
    "/definitions/order?explore=yes": "order",
}
#: What is seen on a page and is too small to be read, in a drawing that was scaled down.
SMALL_TEXTS = """[...document.querySelectorAll("svg text")].filter(one => {
    const high = one.getBoundingClientRect().height; return high > 0 && high < 10 }).map(one => one.textContent)"""
#: The attributes in a list that are not wholly seen.
HIDDEN_ATTRIBUTES = """[...document.querySelectorAll(".attribute")].filter(one => {
    const box = one.getBoundingClientRect(), cell = one.closest("td").getBoundingClientRect();
    return !box.height || box.right > cell.right + 1 || box.bottom > cell.bottom + 1
        || one.scrollWidth > one.clientWidth }).map(one => one.textContent)"""
#: The cells of tables that are cut at the edge of their panel, and those that are so narrow that words are broken.
CUT_CELLS = """[...document.querySelectorAll(".panel td")].filter(one => {
    const box = one.getBoundingClientRect(), panel = one.closest(".panel").getBoundingClientRect();
    const words = one.innerText.split(/\\s+/).map(word => word.length);
    return box.width && (box.right > panel.right + 1 || (box.height > 60 && box.width < 7 * Math.min(9, ...words)))
    }).map(one => one.innerText)"""
#: Of the errors that come most often, those of which less than 12 characters are seen.
UNSEEN_ERRORS = """[...document.querySelectorAll(".table .sub.cut")].filter(one => {
    const text = one.firstChild, from = "most often: ".length;
    const range = document.createRange(), box = one.getBoundingClientRect();
    range.setStart(text, from); range.setEnd(text, Math.min(from + 12, text.length));
    return range.getBoundingClientRect().bottom > box.bottom + 1 }).map(one => one.textContent)"""
TOKEN = "correct-horse-battery-staple"
#: The id of a saga, as many programs make them.
LONG = "order-2f6d1c9e-8b7a-4c1d-9e0f-5a4b3c2d1e0f"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A store with sagas in every state, and with hostile text in every field, where all is at work."""
    server = start_server("valkey", tmp_path_factory.mktemp("browser"), Server)
    try:
        found = Shop(scene := Scene(server.broker()))
        found.fill()
        scene.begin(LONG, do(1), do("fail", attempts=1))
        found.until(LONG, "ended")
        scene.begin("hurt", do({HOSTILE: HOSTILE}), do("fail", attempts=1))
        found.until("hurt", "ended")
        scene.redis.hset(KEYS.saga("hurt"), "reason", HOSTILE)
        scene.redis.xadd(KEYS.partitions[0].interventions, {"body": '{"type": "<script>", "saga_id": "<script>"}'})
        scene.turns_until(lambda: scene.redis.xlen(KEYS.partitions[0].quarantine) == 3)
        with found.moving():
            yield found
    finally:
        server.stop()


@pytest.fixture(scope="module")
def dashboard(shop: Shop) -> Iterator[DashboardServer]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(feed, "_IDLE_MS", 100)
        patched.setattr(feed, "_WATCHED_MS", 100)
        patched.setattr(feed, "_TELL_EVERY_S", 0.1)
        patched.setattr(feed, "_TELL_ANYWAY_S", 0.5)
        with listening(shop.scene, allow_actions=True) as found:
            yield found


@contextmanager
def opened(chromium: Browser, dashboard: DashboardServer, **options: object) -> Iterator[Page]:
    context: BrowserContext = chromium.new_context(base_url=dashboard.url, **options)  # type: ignore[arg-type]
    context.set_default_timeout(60_000)
    try:
        yield context.new_page()
    finally:
        context.close()


@pytest.fixture
def page(chromium: Browser, dashboard: DashboardServer) -> Iterator[Page]:
    with opened(chromium, dashboard) as found:
        yield found


def saga(shop: Shop, saga_id: str) -> SagaState:
    state = shop.scene.client.get(saga_id)
    assert state is not None
    return state


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")], ids=["wide", "dark", "narrow"]
)
def test_every_page_fits_the_screen_and_complains_of_nothing(
    chromium: Browser, dashboard: DashboardServer, width: int, scheme: str
) -> None:
    with opened(chromium, dashboard, viewport={"width": width, "height": 740}, color_scheme=scheme) as page:
        complaints = Complaints(page)
        for path, title in PAGES.items():
            page.goto(path)
            expect(page.locator("h1")).to_have_text(title)
            assert page.title() == f"{title} · sagastream"
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert page.evaluate("window.hurt") is None, path
            assert page.evaluate(SMALL_TEXTS) == [], path
            assert page.evaluate(CUT_CELLS) == [], path
            if path == "/services":
                assert "most often: " in page.locator(".table .sub.cut").first.inner_text()
                assert page.evaluate(UNSEEN_ERRORS) == []
        assert complaints == []


def test_a_list_shows_the_values_of_attributes(chromium: Browser, dashboard: DashboardServer) -> None:
    for width in (1280, 360):
        with opened(chromium, dashboard, viewport={"width": width, "height": 740}) as page:
            page.goto("/sagas?where=customer%3Dc42")
            assert page.locator(".c-kind").first.is_visible()
            assert page.evaluate(HIDDEN_ATTRIBUTES) == [], width
            assert "customer=c42" in page.locator(".c-kind").first.inner_text()


def test_a_long_id_is_on_one_line_of_a_list_where_there_is_room(chromium: Browser, dashboard: DashboardServer) -> None:
    for width, lines in ((1280, 1), (360, 2)):
        with opened(chromium, dashboard, viewport={"width": width, "height": 740}) as page:
            page.goto("/sagas")
            assert (
                page.locator(f"tr[data-key={LONG}] .id").evaluate("one => one.getClientRects()[0].height") < 20 * lines
            )


def test_what_is_wider_than_a_narrow_screen_is_shaded_where_it_goes_on(
    chromium: Browser, dashboard: DashboardServer
) -> None:
    with opened(chromium, dashboard, viewport={"width": 360, "height": 740}) as page:
        page.goto("/sagas/branches")
        wide = page.locator(".scroll").filter(has=page.locator(".timeline"))
        assert wide.evaluate("one => one.scrollWidth > one.clientWidth")
        assert page.get_by_text("scrolls sideways").is_visible()
        before = wide.screenshot(animations="disabled")
        wide.evaluate("one => { one.style.background = 'none' }")
        assert before != wide.screenshot(animations="disabled")


def test_a_page_is_read_and_used_without_scripts(chromium: Browser, dashboard: DashboardServer) -> None:
    with opened(chromium, dashboard, java_script_enabled=False) as page:
        for path, title in PAGES.items():
            page.goto(path)
            expect(page.locator("h1")).to_have_text(title)
        expect(page.locator("#live")).to_be_hidden()


def fill(page: Page, action: str, reason: str = "the bank is back") -> None:
    """Open the form of an action, and send it."""
    page.locator(".act summary").filter(has=page.get_by_text(action, exact=True)).click()
    form = page.locator(".act[open] form")
    form.get_by_label("Reason").fill(reason)
    form.get_by_label("Who you are").fill("ada@works")
    form.get_by_role("button", name=action).click()


def ask_all(page: Page, button: str, rate: str) -> None:
    """Fill in the form that begins a bulk, and send it."""
    form = page.locator("form.asking")
    form.get_by_label("Reason").fill("done by hand")
    form.get_by_label("Who you are").fill("ada@works")
    form.get_by_label("At most so many a second").fill(rate)
    form.get_by_role("button", name=button).click()
    expect(page.locator(".banner-ok")).to_contain_text("has begun")


@pytest.mark.parametrize(("width", "columns"), [(1280, 3), (360, 2)])
def test_an_event_whose_time_is_not_known_is_in_line_with_the_others(
    chromium: Browser, dashboard: DashboardServer, shop: Shop, width: int, columns: int
) -> None:
    saga_id = f"forgot-{width}"
    shop.scene.begin(saga_id, PIVOT, do("fail", kind="retriable", attempts=2))
    until(lambda: (state := shop.scene.client.get(saga_id)) and state.parked, what="it is parked")
    shop.scene.redis.hdel(KEYS.saga(saga_id), "journal")  # as if it had begun in an earlier release
    with opened(chromium, dashboard, viewport={"width": width, "height": 740}) as page:
        page.goto(f"/sagas/{saga_id}")
        expect(page.locator(".events")).to_contain_text("1 earlier attempt is not kept in the history")
        lefts = "all => [...new Set(all.map(one => one.getBoundingClientRect().left))].length"
        assert page.locator(".event-text, .event-step, .event-time time").evaluate_all(lefts) == columns


@pytest.mark.parametrize(
    ("saga_id", "action", "said"),
    [
        ("to-retry", "Retry", "Retry was done"),
        ("to-skip", "Skip", "Skip was done"),
        ("to-abandon", "Abandon", "Abandon was done"),
        ("to-cancel", "Cancel now", "Cancel was done"),
        ("to-signal", "Send approve", "The signal was taken"),
        ("to-decline", "Decline approve", "The signal was taken"),
    ],
)
def test_each_action_is_done_with_its_reason_and_who_asked(
    page: Page, shop: Shop, saga_id: str, action: str, said: str
) -> None:
    if action in ("Retry", "Skip", "Abandon"):
        shop.scene.begin(saga_id, PIVOT, do("fail", kind="retriable", attempts=1))
        until(lambda: (state := shop.scene.client.get(saga_id)) and state.parked, what="it is parked")
    elif action == "Cancel now":
        shop.scene.begin(saga_id, do(1), do(1, service="away"))
        until(lambda: (state := shop.scene.client.get(saga_id)) and state.current_step == 2, what="it is out")
    else:
        shop.begin_graph(saga_id, {"wait": "approve", "timeout_ms": 600_000, "after": []})
        until(lambda: shop.scene.client.get(saga_id), what="it waits")
    page.goto(f"/sagas/{saga_id}")
    fill(page, action)
    expect(page.locator(".banner-ok")).to_have_text(f"{said}.")  # the page below moves on, this text does not
    assert page.url.endswith(f"/sagas/{saga_id}")  # without what was told, which is told once
    expect(page.locator(".events")).to_contain_text("by ada@works")
    assert saga(shop, saga_id).interventions[-1].actor == "ada@works"


def test_all_that_a_search_finds_is_asked_and_its_bulk_is_followed(
    chromium: Browser, dashboard: DashboardServer, shop: Shop
) -> None:
    names = [f"many-{number}" for number in range(12)]
    for name in names:
        shop.begin_graph(
            name, PIVOT, do("fail", kind="retriable", attempts=1, after=[1]), attributes={"customer": "many"}
        )
    until(lambda: all((state := shop.scene.client.get(one)) and state.parked for one in names), what="they are parked")
    with opened(chromium, dashboard, viewport={"width": 360, "height": 740}) as page:
        complaints = Complaints(page)
        page.goto("/sagas?where=customer%3Dmany")
        expect(page.get_by_role("button", name="Skip all")).to_be_hidden()
        page.locator(".act summary").click()
        page.get_by_role("button", name="Skip all").click()
        expect(page.locator("h1")).to_have_text("Skip all")
        expect(page.locator("main")).to_contain_text("12 sagas with customer=many, status PARKED")
        expect(page.locator("tbody tr")).to_have_count(10)
        ask_all(page, "Skip all", rate="1")  # so it goes on while it is looked at
        for action, state in (("Pause", "paused"), ("Stop", "stopped")):
            fill(page, action, "wait for me")
            expect(page.locator(".title .pill")).to_have_text(state)
        [stopped] = shop.scene.client.bulks()
        until(lambda: not shop.scene.client.bulk(stopped.bulk_id).open, what="what was asked is answered")
        left = 12 - shop.scene.client.bulk(stopped.bulk_id).done
        page.goto("/bulks/begin?verb=skip&where=customer%3Dmany")
        ask_all(page, "Skip all", rate="200")
        bulk, _ = shop.scene.client.bulks()
        until(lambda: shop.scene.client.bulk(bulk.bulk_id).ended, what="it has ended")
        expect(page.locator(".title .pill")).to_have_text("done")  # without loading it again
        expect(page.locator(".tile").filter(has_text="Taken").locator(".tile-value")).to_have_text(str(left))
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator("nav").get_by_role("link", name="Bulks").click()
        expect(page.locator("tbody tr").first).to_contain_text(f"{left} taken; {left} found of {left}")
        assert complaints == []
    for name in names:
        assert [(one.verb, one.reason, one.actor) for one in saga(shop, name).interventions] == [
            ("skip", "done by hand", "ada@works")
        ]


def test_what_is_refused_is_told_beside_what_was_typed(page: Page, shop: Shop) -> None:
    page.goto("/sagas/parked-1")
    page.evaluate("document.querySelectorAll('[name=reason]').forEach(one => one.required = false)")
    fill(page, "Retry", reason="   ")
    expect(page.get_by_role("alert")).to_have_text("Say why: the reason is kept, for those who ask later.")
    assert page.url.endswith("/sagas/parked-1")
    expect(page.locator(".act[open] [name=actor]")).to_have_value("ada@works")
    assert saga(shop, "parked-1").interventions == ()


def test_messages_are_dropped_and_put_back(page: Page, shop: Shop) -> None:
    quarantine = Quarantine(shop.scene.redis, KEYS)
    before = len(quarantine)
    page.goto("/quarantine")
    page.get_by_role("row", name="saga_fly").get_by_role("link").first.click()
    fill(page, "Put back")
    expect(page.locator(".banner-ok")).to_contain_text("was put back into its stream")
    until(lambda: len(quarantine) == before, what="it was set aside again")
    page.goto("/quarantine")
    page.get_by_role("row", name="saga_fly").get_by_role("link").first.click()
    fill(page, "Drop")
    expect(page.locator(".banner-ok")).to_contain_text("was dropped")
    assert len(quarantine) == before - 1


def test_a_service_is_paused_and_resumed(page: Page, shop: Shop) -> None:
    page.goto("/services")
    work = page.locator("#service-work")
    work.locator(".act summary").filter(has_text="Pause").click()
    form = work.locator(".act[open] form")
    form.get_by_label("Command, if only one is meant").fill("NoneOfOurs")
    form.get_by_label("Reason").fill("it migrates")
    form.get_by_label("Who you are").fill("ada@works")
    form.get_by_role("button", name="Pause").click()
    expect(page.locator(".banner-ok")).to_contain_text("NoneOfOurs of service work is paused")
    expect(work.locator(".pill").first).to_have_text("a command is paused")
    expect(work.locator(".notices")).to_contain_text("it holds nothing: service work publishes no command NoneOfOurs")
    work.locator(".act summary").filter(has_text="Resume").click()
    form = work.locator(".act[open] form")
    form.get_by_label("Reason").fill("it is back")
    form.get_by_role("button", name="Resume").click()
    expect(page.locator(".banner-ok")).to_contain_text("is resumed")
    expect(page.get_by_role("row", name="resume work/NoneOfOurs")).to_contain_text("it is back")
    assert shop.scene.client.paused() == []


def test_what_changes_is_shown_at_once_and_what_a_person_does_stays(page: Page, shop: Shop) -> None:
    shop.begin_graph("changes", {"id": "a", "wait": "go", "timeout_ms": 600_000, "after": []}, do(1, after=[1]))
    until(lambda: shop.scene.client.get("changes"), what="it has begun")
    page.goto("/sagas/changes")
    page.locator("#step-2 summary").click()
    page.locator(".act summary").filter(has_text="Send go").click()
    reason = page.locator(".act[open] [name=reason]")
    reason.fill("half a sentence")
    shop.scene.client.signal("changes", "go", {"by": "bo"}, 30)
    expect(page.locator("h2").filter(has_text="How it ended")).to_be_visible()
    expect(page.locator(".title .pill")).to_have_text("completed")
    expect(page.locator("#step-2 details")).to_have_attribute("open", "")
    page.goto("/sagas")
    page.locator("a.id").filter(has_text="branches").focus()
    shop.scene.begin("newest", PIVOT, do("fail", kind="retriable", attempts=1))
    expect(page.locator("tr[data-key=newest] .pill")).to_have_text("parked")
    assert page.evaluate("document.activeElement.textContent") == "branches"


def test_typing_goes_on_while_the_page_changes(page: Page, shop: Shop) -> None:
    shop.scene.begin("typing", PIVOT, do("fail", kind="retriable", attempts=1))
    until(lambda: (state := shop.scene.client.get("typing")) and state.parked, what="it is parked")
    page.goto("/sagas/typing")
    page.locator(".act summary").filter(has_text="Skip").click()
    page.locator(".act[open] [name=reason]").press_sequentially("half a ")
    shop.scene.client.retry("typing", "meanwhile", 30)
    expect(page.locator("#step-2 .facts")).to_contain_text("2, of which it has 1 by itself")
    page.keyboard.type("sentence")
    expect(page.locator(".act[open] [name=reason]")).to_have_value("half a sentence")


def test_a_page_that_nobody_sees_asks_for_nothing(page: Page, dashboard: DashboardServer) -> None:
    follows = dashboard._dashboard.feed
    page.goto("/")
    until(lambda: follows.viewers == 1, what="the page follows")
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    changed = "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(hide % "true" + changed)
    until(lambda: follows.viewers == 0, what="the hidden page follows no more")
    page.evaluate(hide % "false" + changed)
    until(lambda: follows.viewers == 1, what="it follows again")
    page.get_by_role("button", name="Live").click()
    expect(page.get_by_role("button", name="Paused")).to_have_attribute("aria-pressed", "false")
    until(lambda: follows.viewers == 0, what="the paused page follows no more")


def test_a_page_says_that_the_broker_is_away_or_hangs_and_goes_on_when_it_is_back(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_IDLE_MS", 100)
    monkeypatch.setattr(feed, "_WATCHED_MS", 100)
    server = start_server("valkey", tmp_path, OwnServer)
    try:
        scene = Scene(server.broker())
        scene.broker = Broker(server.url, answer_timeout_s=0.5)
        with listening(scene) as dashboard, opened(chromium, dashboard) as page:
            page.goto("/")
            expect(page.locator("h1")).to_have_text("Overview")
            until(lambda: dashboard._dashboard.feed.viewers == 1, what="it follows")
            server.kill()
            expect(page.locator("h1")).to_have_text("The broker does not answer", timeout=30_000)
            server.start()
            expect(page.locator("h1")).to_have_text("Overview", timeout=30_000)
            server.pause()
            expect(page.locator("h1")).to_have_text("The broker does not answer", timeout=30_000)
            expect(page.get_by_role("alert")).to_contain_text("it hangs, was stopped, or is too busy")
            server.resume()
            expect(page.locator("h1")).to_have_text("Overview", timeout=30_000)
            scene.broker.close()
    finally:
        server.stop()


def test_nothing_on_a_page_moves_while_it_is_loaded_or_changes(page: Page) -> None:
    page.add_init_script(
        "window.moved = 0; new PerformanceObserver(list => list.getEntries().forEach(one => window.moved += one.value))"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    for path in ("/", "/sagas", "/sagas/branches", "/services"):
        page.goto(path)
        with page.expect_response(f"**{path}"):  # it was loaded again
            pass
        assert page.evaluate("window.moved") < 0.01, path


def test_a_page_is_used_by_keys_alone(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the content")
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    page.keyboard.press("g")
    page.keyboard.press("s")
    expect(page.locator("h1")).to_have_text("Sagas")
    page.keyboard.press("/")
    page.keyboard.type("order")
    expect(page.locator(":focus")).to_have_value("order")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    focused = page.locator(":focus")
    assert focused.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    saga_id = focused.text_content()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(str(saga_id))


def test_who_knows_the_token_signs_in_and_out(chromium: Browser, shop: Shop) -> None:
    with listening(shop.scene, token=TOKEN) as dashboard, opened(chromium, dashboard) as page:
        complaints = Complaints(page)
        page.goto("/sagas?status=PARKED")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("h1")).to_have_text("Sagas")
        assert page.url.endswith("/sagas?status=PARKED")
        until(lambda: dashboard._dashboard.feed.viewers == 1, what="it follows")
        page.get_by_role("button", name="Sign out").click()
        page.goto("/parked")
        expect(page.get_by_label("Token")).to_be_visible()
        assert complaints == []


def test_a_form_of_another_site_changes_nothing(page: Page, dashboard: DashboardServer, shop: Shop) -> None:
    page.goto("/sagas/parked-0")
    token = page.locator("[name=form_token]").first.input_value()
    # Another port is another origin, but the same site: the browser sends the cookie along.
    form = f"""<form method="post" action="{dashboard.url}sagas/parked-0/retry"><input name="reason" value="r">
        <input name="actor" value="w"><input name="form_token" value="{token}"><button>Win a prize</button></form>"""
    page.route("http://127.0.0.1:1/", lambda route: route.fulfill(body=form, content_type="text/html"))
    page.goto("http://127.0.0.1:1/")
    with page.expect_navigation() as answer:
        page.get_by_role("button").click()
    assert answer.value.status == 403
    assert "cookie" in answer.value.request.all_headers()
    expect(page.locator("body")).to_have_text("This request did not come from a page of this dashboard.")
    assert saga(shop, "parked-0").interventions == ()
