// The ranking: factors are dragged, or moved with buttons or keys, between "your order" and "left out".

import { text } from "./texts.js";

const $ = (id) => document.getElementById(id);
let handlers;

const name = (item) => text(`factors.${item.dataset.factor}.name`);
const order = () => Array.from($("ranked").children, (item) => item.dataset.factor);

/** Shows the factors. `options` has draft (JSON of an order, or null), changed(order), back(), send(order or null). */
export function startRanking(factors, options) {
  handlers = options;
  let draft = [];
  try { draft = JSON.parse(options.draft ?? "[]").filter((factor) => factors.includes(factor)); } catch { /* none */ }
  $("ranked").dataset.empty = text("emptyRanked");
  $("unranked").dataset.empty = text("emptyUnranked");
  $("ranked").replaceChildren(...draft.map(makeItem));
  $("unranked").replaceChildren(...factors.filter((factor) => !draft.includes(factor)).map(makeItem));
  $("rank-back").onclick = handlers.back;
  $("skip").onclick = () => send(null);
  $("send").onclick = () => send(order());
  $("skip").disabled = false;
  update();
}

async function send(ranking) {
  $("send").disabled = $("skip").disabled = true;
  await handlers.send(ranking);
}

function update() {
  $("send").disabled = !$("ranked").children.length;
  handlers.changed(order());
}

function announce(item) {
  const place = order().indexOf(item.dataset.factor) + 1;
  const values = { what: name(item), place, count: order().length };
  $("moved").textContent = place ? text("placed", values) : text("removed", values);
}

function makeItem(factor) {
  const item = document.createElement("li");
  item.dataset.factor = factor;
  item.tabIndex = 0;
  const grip = Object.assign(document.createElement("span"), { className: "grip", textContent: "⠿" });
  grip.ariaHidden = "true";
  const place = Object.assign(document.createElement("span"), { className: "place" });
  const label = Object.assign(document.createElement("span"), { className: "name", textContent: name(item) });
  label.append(Object.assign(document.createElement("small"), { textContent: text(`factors.${factor}.help`) }));
  const tools = Object.assign(document.createElement("span"), { className: "tools" });
  tools.append(
    tool("↑", "up", "ranked-only", () => move(item, -1), item),
    tool("↓", "down", "ranked-only", () => move(item, 1), item),
    tool("✕", "remove", "ranked-only", () => toggle(item), item),
    tool("+", "add", "unranked-only", () => toggle(item), item),
  );
  item.append(grip, place, label, tools);
  grip.addEventListener("pointerdown", (event) => drag(event, item));
  // The item moves in the page while the finger is on it. Without this, Chromium ignores the next tap.
  grip.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  item.addEventListener("keydown", (event) => key(event, item));
  return item;
}

function tool(sign, key, kind, act, item) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: sign, className: kind });
  button.ariaLabel = button.title = text(key, { what: name(item) });
  button.addEventListener("click", act);
  return button;
}

function move(item, by) {
  const other = by < 0 ? item.previousElementSibling : item.nextElementSibling;
  if (item.parentElement !== $("ranked") || !other) return;
  const focused = document.activeElement;
  if (by < 0) other.before(item); else other.after(item);
  focused.focus(); // an element loses the focus when it is moved
  finishMove(item);
}

function toggle(item) {
  (item.parentElement === $("ranked") ? $("unranked") : $("ranked")).append(item);
  item.focus();
  finishMove(item);
}

function finishMove(item) {
  update();
  announce(item);
}

function key(event, item) {
  if (event.target !== item || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Enter" || event.key === " ") toggle(item);
  else if (event.key === "ArrowUp") move(item, -1);
  else if (event.key === "ArrowDown") move(item, 1);
  else return;
  event.preventDefault();
}

/** The dragged item follows the pointer from place to place, in and between the lists. */
function drag(start, item) {
  if (start.button !== 0) return;
  start.preventDefault();
  item.classList.add("dragged");
  const follow = (event) => {
    if (event.pointerId !== start.pointerId) return;
    const lists = [$("ranked"), $("unranked")];
    const boundary = lists[1].getBoundingClientRect().top - lists[0].getBoundingClientRect().bottom;
    const list = event.clientY < lists[0].getBoundingClientRect().bottom + boundary / 2 ? lists[0] : lists[1];
    const middle = (child) => (child.getBoundingClientRect().top + child.getBoundingClientRect().bottom) / 2;
    const next = Array.from(list.children).find((child) => child !== item && event.clientY < middle(child)) ?? null;
    if (item.parentElement !== list || item.nextElementSibling !== next) list.insertBefore(item, next);
  };
  const end = (event) => {
    if (event.pointerId !== start.pointerId) return;
    window.removeEventListener("pointermove", follow);
    window.removeEventListener("pointerup", end);
    window.removeEventListener("pointercancel", end);
    item.classList.remove("dragged");
    finishMove(item);
  };
  window.addEventListener("pointermove", follow);
  window.addEventListener("pointerup", end);
  window.addEventListener("pointercancel", end);
}
