// Follows a run: asks the server for the state of the run, and exchanges those sections of the page that changed.
// Scroll position, opened details and focus stay. A section is not exchanged under a pointer that reads a value, or
// under selected text.

const EVERY_MS = 2000;
const live = document.getElementById("live");
const nameOf = (node) => node.id || node.className.split(" ")[0] || node.tagName;
const named = (nodes) => {
  const found = new Map();
  for (const node of nodes) {
    let name = nameOf(node);
    while (found.has(name)) name += "'";
    found.set(name, node);
  }
  return found;
};
let sources = new Map([...named(document.querySelector("main").children)].map(([name, node]) => [name, node.outerHTML]));
let version = live.dataset.page;
let failures = 0;

function keepOpen(old, fresh) {
  const open = new Map([...old.querySelectorAll("details")].map((node) => [node.querySelector("summary").dataset.name || node.querySelector("summary").textContent, node.open]));
  for (const node of fresh.querySelectorAll("details")) {
    const summary = node.querySelector("summary");
    const was = open.get(summary.dataset.name || summary.textContent);
    if (was !== undefined) node.open = was;
  }
  return [...old.querySelectorAll("pre, .scroll, .answers")].map((node) => [node.scrollLeft, node.scrollTop]);
}

function scrollInside(fresh, places) {
  const boxes = [...fresh.querySelectorAll("pre, .scroll, .answers")];
  if (boxes.length === places.length) boxes.forEach((node, index) => node.scrollTo({ left: places[index][0], top: places[index][1], behavior: "instant" }));
}

function exchange(page) {
  const main = document.querySelector("main");
  const old = named(main.children);
  const fresh = named([...page.querySelector("main").children]);
  const data = page.getElementById("figures").textContent;
  document.getElementById("figures").textContent = data;
  figures = JSON.parse(data);
  const written = new Map();
  let place = main.firstElementChild;
  for (const [name, node] of fresh) {
    const html = node.outerHTML;
    written.set(name, html);
    const before = old.get(name);
    if (before && sources.get(name) === html) {
      if (before === place) place = place.nextElementSibling;
      else main.insertBefore(before, place);
      continue;
    }
    const focused = before && before.contains(document.activeElement) && document.activeElement.dataset.chart;
    const places = before ? keepOpen(before, node) : [];
    main.insertBefore(document.adoptNode(node), place);
    if (before) {
      if (before === place) place = place.nextElementSibling;
      before.remove();
    }
    scrollInside(node, places);
    node.querySelectorAll(".plot").forEach(attach);
    if (focused) node.querySelector(`[data-chart="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }
  for (const [name, node] of old) if (!fresh.has(name)) node.remove();
  document.querySelector(".top nav").replaceChildren(...page.querySelectorAll(".top nav > *"));
  sources = written;
}

function keepPlace(change) {
  const tops = [...named(document.querySelector("main").children)].map(([name, node]) => [name, node.getBoundingClientRect()]);
  const isDown = scrollY > 0;
  const edge = Math.max(0, live.getBoundingClientRect().bottom);
  change();
  if (!isDown) return;
  const now = named(document.querySelector("main").children);
  const seen = tops.find(([name, box]) => box.bottom > edge && now.has(name));
  if (seen) scrollBy({ top: now.get(seen[0]).getBoundingClientRect().top - seen[1].top, behavior: "instant" });
}

function isRead() {
  const selection = getSelection();
  return document.querySelector("main .tip") !== null || (!selection.isCollapsed && document.querySelector("main").contains(selection.anchorNode));
}

function showStrip(markup) {
  const fresh = new DOMParser().parseFromString(markup, "text/html").getElementById("live");
  if (fresh.innerHTML === live.dataset.shown) return;
  live.dataset.shown = fresh.innerHTML;
  live.dataset.status = fresh.dataset.status;
  const places = keepOpen(live, fresh);
  live.replaceChildren(...fresh.childNodes);
  scrollInside(live, places);
}

async function look() {
  const answer = await fetch("status.json", { cache: "no-cache" });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const status = await answer.json();
  keepPlace(() => showStrip(status.strip));
  document.title = status.title;
  if (status.page === version || isRead()) return;
  const reply = await fetch("/", { cache: "no-cache" });
  if (!reply.ok) throw new Error(`status ${reply.status}`);
  const page = new DOMParser().parseFromString(await reply.text(), "text/html");
  keepPlace(() => exchange(page));
  version = reply.headers.get("ETag").replaceAll('"', "");
}

function sayLost() {
  if (live.querySelector(".lost")) return;
  make("p", "lost", live, "The server does not answer any more: it was stopped, or its run has ended. This is the last state that it sent.").setAttribute("role", "status");
  live.dataset.shown = "";
}

async function follow() {
  try {
    if (!document.hidden) await look();
    failures = 0;
  } catch (error) {
    if (!(error instanceof TypeError) && !(error instanceof Error && error.message.startsWith("status "))) throw error;
    failures += 1;
    if (failures > 1) sayLost();
  } finally {
    setTimeout(follow, EVERY_MS);
  }
}

setTimeout(follow, EVERY_MS);
