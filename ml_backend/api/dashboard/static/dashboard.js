// Keeps the page fresh, asks again for pictures, copies commands, and looks whether this browser reaches PUBLIC_URL.
"use strict";

const EVERY_MS = 4000;
document.documentElement.classList.add("scripted");

// -- copy

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const text = button.dataset.copy;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not over http from another machine: select it, so that the keyboard can copy it.
    getSelection().selectAllChildren(button.previousElementSibling);
    return;
  }
  button.firstChild.textContent = "Copied";
  setTimeout(() => { button.firstChild.textContent = "Copy"; }, 1500);
});

// -- pictures

const failed = new WeakMap();

// Only so many are drawn at once, a backend may be away for long, and a browser does not ask again by itself.
function askAgain(picture) {
  const src = picture.getAttribute("src");
  const last = failed.get(picture);
  const times = last?.src === src ? last.times + 1 : 1;
  failed.set(picture, { src, times });
  setTimeout(() => {
    if (picture.isConnected && picture.getAttribute("src") === src) picture.setAttribute("src", src);
  }, 500 * 2 ** Math.min(times, 6));
}

document.addEventListener("error", ({ target }) => {
  if (target instanceof HTMLImageElement) askAgain(target);
}, true);

// What failed before this script was there.
for (const one of document.querySelectorAll("img[src]")) if (one.complete && !one.naturalWidth) askAgain(one);

// -- fresh

// A page that answers to a form is shown at the project's own address, where it is asked for again.
const own = document.querySelector("link[rel=canonical]");
if (own) history.replaceState(null, "", own.href + location.hash);

const HELD_MS = 60000;
const WITHIN_MS = 30000;
const PLACES = "a, button, summary, [tabindex]";
const stale = document.getElementById("stale");
let seen = new Date(), tag = null, failures = 0, refreshing = false, touched = 0;

for (const kind of ["keydown", "pointerdown"]) addEventListener(kind, () => { touched = Date.now(); }, true);

// Who is at a link or a button of it, or has text of it marked, keeps a part as it is, for a minute. A table that
// was clicked on has the focus, too, and stays where it is by itself.
function held(part) {
  if (Date.now() - touched > HELD_MS) return false;
  const at = document.activeElement, text = getSelection();
  return part.contains(at) && at.matches("a, button, summary") || part.contains(text.anchorNode) && !text.isCollapsed;
}

const called = (one) => one.getAttribute("aria-label") || one.getAttribute("href") || one.textContent;

// The newer part, with what was opened, scrolled and focused as it is.
function replace(part, newer) {
  const at = part.contains(document.activeElement) ? document.activeElement : null;
  const places = [...part.querySelectorAll(PLACES)].map((one) => [called(one), one.scrollLeft]);
  part.replaceChildren(...newer.childNodes);
  for (const one of part.querySelectorAll(PLACES)) {
    const left = places.find(([name]) => name === called(one))?.[1];
    if (left) one.scrollLeft = left;
    if (at && called(one) === called(at)) one.focus({ preventScroll: true });
  }
}

// One refresh that fails may be chance.
function notFresh(why) {
  failures++;
  if (failures < 2) return;
  const since = seen.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const says = `Not fresh since ${since}: ${why}`;
  if (stale.textContent !== says) stale.textContent = says;
  stale.hidden = false;
}

async function refresh() {
  if (document.hidden || refreshing) return;
  refreshing = true;
  let fresh, known;
  try {
    const headers = { Accept: "text/html", ...(tag && { "If-None-Match": tag }) };
    const answer = await fetch(location.pathname + location.search, { headers, cache: "no-store", signal: AbortSignal.timeout(WITHIN_MS) });
    known = answer.status === 304;
    if (!answer.ok && !known) {
      const mend = answer.status < 500 ? " Load the page again." : "";
      return notFresh(`this backend answers ${answer.status}.${mend}`);
    }
    if (!known) {
      fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!fresh.getElementById("stale")) return notFresh("another page answers in its place. Load the page again.");
      tag = answer.headers.get("ETag"); // once all of it is there: a line may be cut in it
    }
  } catch {
    return notFresh("this backend does not answer."); // what was seen last stays
  } finally {
    refreshing = false;
  }
  seen = new Date();
  failures = 0;
  stale.hidden = true;
  if (known) return;
  for (const part of document.querySelectorAll("[data-live]")) {
    const newer = fresh.getElementById(part.id);
    if (!newer) continue;
    if (held(part)) {
      tag = null; // what is kept back now is asked for again
      continue;
    }
    const open = part.querySelectorAll("details");
    newer.querySelectorAll("details").forEach((one, i) => { if (open[i]) one.open = open[i].open; });
    if (newer.innerHTML !== part.innerHTML) replace(part, newer);
  }
  document.title = fresh.title;
}

if (stale) setInterval(refresh, EVERY_MS);

// -- PUBLIC_URL

const PROBES = 3;
const PROBED_EVERY_MS = 2000;

// Only whether anything answers: what it answers is not for this page. One request that is lost may be chance.
async function answers(url) {
  for (let tried = 1; ; tried++) {
    try {
      await fetch(`${url}/slices/`, { mode: "no-cors", cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(5000) });
      return true;
    } catch {
      if (tried === PROBES) return false;
    }
    await new Promise((go) => setTimeout(go, PROBED_EVERY_MS));
  }
}

async function reach(said) {
  const url = said.dataset.publicUrl;
  const address = document.createElement("code");
  address.textContent = url;
  let mark = ["good", "✓ ok"], before = "This browser reaches ", after = ", where slices of volumes are fetched.";
  if (!await answers(url)) {
    mark = ["fault", "✕ wrong"];
    before = "This browser does not reach ";
    const mixed = location.protocol === "https:" && url.startsWith("http:") ? " A page on https may not fetch from http." : "";
    after = `, where slices of volumes are fetched: annotators would see none.${mixed} To mend it: PUBLIC_URL, the address of this backend as browsers see it.`;
  }
  const badge = document.createElement("span");
  badge.className = `mark ${mark[0]}`;
  badge.textContent = mark[1];
  said.replaceChildren(badge, before, address, after);
}

const said = document.querySelector("[data-public-url]");
if (said) reach(said);
