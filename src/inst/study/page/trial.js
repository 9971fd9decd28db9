// One pair: painting and photo beside two results. A click or a key chooses.

import { say } from "./texts.js";

const $ = (id) => document.getElementById(id);
const ROLES = ["photo", "painting", "first", "second"];
const KEYS = { ArrowLeft: "first", 1: "first", ArrowRight: "second", 2: "second" };
// A double click is one choice, not the choice of the next pair too.
const SETTLE = 350;
const RETRY = 2000;

const address = (key) => `pictures/${key}`;
const sleep = (milliseconds) => new Promise((wake) => setTimeout(wake, milliseconds));

/** Counts the seconds that the page is in sight. */
class Watch {
  start() {
    this.sum = 0;
    this.since = document.hidden ? null : performance.now();
  }
  pause(hidden) {
    if (this.sum === undefined) return;
    if (hidden && this.since !== null) this.sum += performance.now() - this.since;
    this.since = hidden ? null : performance.now();
  }
  seconds() {
    return (this.sum + (this.since === null ? 0 : performance.now() - this.since)) / 1000;
  }
}

export class Trial {
  /** `on` has the functions answer(index, choice, seconds), back(index), keep(index) and failed(error). */
  constructor(on) {
    this.on = on;
    this.open = false;
    this.shown = 0;
    this.watch = new Watch();
    for (const role of ROLES) this.#fill(role);
    $("back").addEventListener("click", () => this.#back());
    $("keep").addEventListener("click", () => this.open && on.keep(this.index));
    $("close").addEventListener("click", () => $("enlarged").close());
    $("enlarged").addEventListener("click", (event) => event.target.id === "enlarged-picture" && $("enlarged").close());
    document.addEventListener("visibilitychange", () => this.watch.pause(document.hidden));
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  #figure(role) {
    return document.querySelector(`[data-role="${role}"]`);
  }

  #fill(role) {
    const result = role === "first" || role === "second";
    const frame = document.createElement(result ? "button" : "div");
    frame.className = "frame";
    frame.append(document.createElement("img"));
    if (result) {
      frame.type = "button";
      frame.addEventListener("click", () => this.#choose(role));
    }
    const enlarge = Object.assign(document.createElement("button"), { type: "button", className: "enlarge" });
    enlarge.textContent = "⤢";
    enlarge.addEventListener("click", () => this.#enlarge(role));
    const caption = document.createElement("figcaption");
    caption.append(document.createElement("span"));
    if (result) {
      caption.append(Object.assign(document.createElement("kbd"), { textContent: role === "first" ? "←" : "→" }));
      caption.lastChild.ariaHidden = "true";
    }
    caption.append(enlarge);
    this.#figure(role).append(frame, caption);
  }

  /** Shows the pair `trials[index]`; it can be answered when all its pictures are there. */
  async show(trials, index) {
    const one = trials[index];
    const turn = ++this.shown;
    this.index = index;
    this.open = false;
    $("progress").max = trials.length;
    $("progress").value = index;
    $("progress-text").textContent = say("progress", { position: index + 1, count: trials.length });
    $("back").disabled = index === 0;
    $("keep").hidden = one.chosen === null;
    $("status").textContent = say("loading");
    for (const role of ROLES) this.#label(role, one);
    await Promise.all([sleep(SETTLE), ...ROLES.map((role) => this.#load(role, one[role], turn))]);
    if (turn !== this.shown) return;
    $("status").textContent = one.chosen === null ? "" : `${say("chosen")}: ${say(one.chosen)}`;
    this.#enable(true);
    this.watch.start();
    const next = trials[index + 1];
    if (next) for (const role of ROLES) new Image().src = address(next[role]);
  }

  #label(role, one) {
    const figure = this.#figure(role);
    const name = say(role);
    figure.querySelector("img").alt = name;
    const enlarge = figure.querySelector(".enlarge");
    enlarge.ariaLabel = enlarge.title = say("enlarge", { what: name });
    figure.querySelector("figcaption span").textContent = name;
    if (!figure.classList.contains("result")) return;
    const frame = figure.querySelector(".frame");
    frame.ariaPressed = String(one.chosen === role);
    frame.ariaDisabled = "true"; // rather than disabled, which would take the focus away
  }

  async #load(role, key, turn) {
    const image = this.#figure(role).querySelector("img");
    image.removeAttribute("src"); // the picture before must not be taken for this one
    while (turn === this.shown) {
      image.src = address(key);
      try {
        await image.decode();
        return;
      } catch {
        if (turn !== this.shown) return;
        $("status").textContent = say("offline");
        await sleep(RETRY);
        image.removeAttribute("src");
      }
    }
  }

  #enable(is) {
    this.open = is;
    for (const frame of document.querySelectorAll(".result .frame")) frame.ariaDisabled = String(!is);
  }

  async #choose(role) {
    if (!this.open) return;
    const seconds = this.watch.seconds();
    this.#enable(false);
    for (const one of ["first", "second"]) this.#figure(one).querySelector(".frame").ariaPressed = String(one === role);
    $("back").disabled = true;
    $("status").textContent = say("saving");
    try {
      await this.on.answer(this.index, role, seconds);
    } catch (error) { this.on.failed(error); }
  }

  #back() {
    if (this.open && this.index > 0) this.on.back(this.index);
  }

  #enlarge(role) {
    $("enlarged-name").textContent = say(role);
    $("enlarged-picture").src = this.#figure(role).querySelector("img").src;
    $("enlarged-picture").alt = say(role);
    $("enlarged").showModal();
  }

  #key(event) {
    if ($("trial").hidden || $("enlarged").open) return;
    if (event.repeat) { // a key held down is one choice
      if (event.key === "Enter") event.preventDefault();
      return;
    }
    if (event.ctrlKey || event.altKey || event.metaKey) return; // the browser's own keys
    if (event.key === "Backspace") this.#back();
    else if (KEYS[event.key]) this.#choose(KEYS[event.key]);
    else return;
    event.preventDefault();
  }
}
