// Keeps a page as it is in the store while somebody looks at it, and brings a few keys. Every page works without it.
"use strict";

(() => {
  const main = document.getElementById("main");
  const button = document.getElementById("live");
  const lost = document.getElementById("lost");
  const address = document.body.dataset.live;
  if (!main || !button) return;

  const LEAST_APART_MS = 1000; // between two loadings
  let events = null;
  let timer = null;
  let loading = false;
  let again = false;
  let loadedAt = Date.now();
  let wanted = true;

  // --- a page that is loaded again

  // Makes the children of `old` those of `fresh`. What is alike stays, so the focus, what is open and where it was
  // scrolled stay too. Rows and parts of a page are known by their key, wherever they stand.
  function morph(old, fresh) {
    const wanted = new Set([...fresh.children].map(keyOf));
    const keyed = new Map();
    for (const child of [...old.children]) {
      const key = keyOf(child);
      if (!key) continue;
      if (wanted.has(key)) keyed.set(key, child);
      else if (!isKept(child)) child.remove();
    }
    let place = past(old.firstChild);
    for (const node of [...fresh.childNodes]) {
      const key = keyOf(node);
      let mine = key ? keyed.get(key) : place;
      if (mine && !key && keyOf(mine)) mine = null; // it is another part
      if (mine && mine.nodeType === node.nodeType && mine.nodeName === node.nodeName) {
        if (mine === place) place = past(place.nextSibling);
        else old.insertBefore(mine, place);
        become(mine, node);
      } else {
        old.insertBefore(document.importNode(node, true), place);
      }
    }
    while (place) {
      const next = past(place.nextSibling);
      place.remove();
      place = next;
    }
  }

  function keyOf(node) {
    if (node.nodeType !== Node.ELEMENT_NODE) return null;
    return node.dataset.key || node.id || node.getAttribute("aria-labelledby");
  }

  // What is told once stays until the next page.
  function isKept(node) {
    return node.nodeType === Node.ELEMENT_NODE && node.hasAttribute("data-once");
  }

  function past(node) {
    while (node && isKept(node)) node = node.nextSibling;
    return node;
  }

  function become(mine, wanted) {
    if (mine.nodeType !== Node.ELEMENT_NODE) {
      if (mine.nodeValue !== wanted.nodeValue) mine.nodeValue = wanted.nodeValue;
      return;
    }
    if (mine.isEqualNode(wanted) || mine.id === "lost") return;
    if (mine.matches("input, textarea, select")) {
      if (mine.type === "hidden") mine.value = wanted.value;
      return; // what somebody types stays
    }
    for (const { name } of [...mine.attributes]) {
      if (!wanted.hasAttribute(name) && !(name === "open" && mine.hasAttribute("data-keep"))) mine.removeAttribute(name);
    }
    for (const { name, value } of wanted.attributes) {
      if (name === "open" && mine.hasAttribute("data-keep")) continue;
      if (mine.getAttribute(name) !== value) mine.setAttribute(name, value);
    }
    morph(mine, wanted);
  }

  async function load() {
    if (loading) {
      again = true;
      return;
    }
    loading = true;
    loadedAt = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual" });
      if (answer.type === "opaqueredirect") return location.reload(); // the session has ended
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("main");
      if (fresh && page.querySelector("nav")) {
        become(main, fresh);
        become(document.querySelector("nav"), page.querySelector("nav"));
        document.title = page.title;
      }
      say(false);
    } catch {
      say(true);
    } finally {
      loading = false;
      if (again) {
        again = false;
        soon();
      }
    }
  }

  function soon() {
    if (timer !== null) return;
    timer = setTimeout(() => {
      timer = null;
      if (wanted && !document.hidden) load();
    }, Math.max(0, LEAST_APART_MS - (Date.now() - loadedAt)));
  }

  function say(isLost) {
    lost.hidden = !isLost;
    button.classList.toggle("lost", isLost);
  }

  // --- what tells that something has changed

  function follow() {
    if (events || !wanted || document.hidden) return;
    events = new EventSource(address);
    events.addEventListener("changed", soon);
    events.addEventListener("open", () => say(false));
    events.addEventListener("error", () => {
      say(true);
      if (events && events.readyState === EventSource.CLOSED) {
        events = null;
        setTimeout(follow, 3000);
      }
    });
  }

  function leave() {
    if (events) events.close();
    events = null;
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    wanted = !wanted;
    button.setAttribute("aria-pressed", String(wanted));
    button.querySelector(".live-word").textContent = wanted ? "Live" : "Paused";
    if (!wanted) return leave();
    follow();
    load();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return leave();
    follow();
    if (wanted) load();
  });
  addEventListener("pagehide", leave);
  addEventListener("pageshow", follow);
  follow();

  // A page that was reached by an action says so once, not each time that it is loaded.
  // One that answers a form stands at the address of what it shows.
  if (document.body.dataset.at) history.replaceState(null, "", document.body.dataset.at);
  const query = new URLSearchParams(location.search);
  if (query.has("told")) {
    query.delete("told");
    history.replaceState(null, "", location.pathname + (query.size ? `?${query}` : "") + location.hash);
  }

  // --- keys, and what can be copied

  const PAGES = { o: "/", s: "/sagas", p: "/parked", b: "/bulks", v: "/services", q: "/quarantine", d: "/definitions" };
  let went = 0; // when g was pressed

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "g") {
      went = Date.now();
    } else if (Date.now() - went < 1500 && PAGES[event.key]) {
      location.assign(PAGES[event.key]);
    } else if (event.key === "/") {
      const first = document.querySelector(".filters input");
      if (first) {
        event.preventDefault();
        first.focus();
      }
    } else if (event.key === "j" || event.key === "k") {
      move(event.key === "j" ? 1 : -1);
    }
  });

  function move(step) {
    const links = [...main.querySelectorAll("tbody tr td:first-child a, tbody tr .c-id a, .steps summary")];
    const at = links.indexOf(document.activeElement);
    const next = links[at < 0 ? (step > 0 ? 0 : links.length - 1) : at + step];
    if (next) next.focus();
  }

  document.addEventListener("click", async (event) => {
    const thing = event.target.closest("[data-copy]");
    if (!thing || !navigator.clipboard || String(getSelection())) return;
    try {
      await navigator.clipboard.writeText(thing.textContent);
      thing.classList.add("copied");
      setTimeout(() => thing.classList.remove("copied"), 1200);
    } catch {
      // The browser does not let a page copy: then a person selects the text.
    }
  });
})();
