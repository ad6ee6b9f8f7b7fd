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

const TRIES = 5;
const failed = new WeakMap();

// Only so many are drawn at once, and a browser does not ask again by itself.
document.addEventListener("error", ({ target }) => {
  if (!(target instanceof HTMLImageElement)) return;
  const src = target.getAttribute("src");
  const last = failed.get(target);
  const times = last?.src === src ? last.times + 1 : 1;
  failed.set(target, { src, times });
  if (times > TRIES) return;
  setTimeout(() => {
    if (target.getAttribute("src") === src) target.setAttribute("src", src);
  }, 500 * 2 ** times);
}, true);

// -- fresh

// A page that answers to a form is shown at the project's own address, where it is asked for again.
const own = document.querySelector("link[rel=canonical]");
if (own) history.replaceState(null, "", own.href + location.hash);

let refreshing = false;

async function refresh() {
  if (document.hidden || refreshing) return;
  refreshing = true;
  let fresh;
  try {
    const answer = await fetch(location.pathname + location.search, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    return; // the backend is away: what was seen last stays
  } finally {
    refreshing = false;
  }
  for (const part of document.querySelectorAll("[data-live]")) {
    const newer = fresh.getElementById(part.id);
    // Who is in it with the keyboard, or has text of it marked, keeps it as it is.
    const held = part.contains(document.activeElement) || part.contains(getSelection().anchorNode) && !getSelection().isCollapsed;
    if (newer && !held && newer.innerHTML !== part.innerHTML) part.replaceChildren(...newer.childNodes);
  }
  document.title = fresh.title;
}

if (document.querySelector("[data-live]")) setInterval(refresh, EVERY_MS);

// -- PUBLIC_URL

async function reach(said) {
  const url = said.dataset.publicUrl;
  const address = document.createElement("code");
  address.textContent = url;
  let mark = ["good", "✓ ok"], before = "This browser reaches ", after = ", where slices of volumes are fetched.";
  try {
    // Only whether anything answers: what it answers is not for this page.
    await fetch(`${url}/slices/`, { mode: "no-cors", cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(5000) });
  } catch {
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
