// One pair: photo and painting beside two results. A click or a key chooses a result.

import { text } from "./texts.js";

const $ = (id) => document.getElementById(id);
const ROLES = ["photo", "painting", "first", "second"];
const KEYS = { ArrowLeft: "first", 1: "first", ArrowRight: "second", 2: "second" };
// Minimum time before an answer, so that a double click does not answer the next pair too.
const MINIMUM_MILLISECONDS = 350;
const RETRY_MILLISECONDS = 2000;

const address = (key) => `pictures/${key}`;
const sleep = (milliseconds) => new Promise((wake) => setTimeout(wake, milliseconds));

/** Counts the seconds while the page is visible. */
class Stopwatch {
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
  /** `handlers` has the functions answer(index, choice, seconds), back(index), keep(index) and failed(error). */
  constructor(handlers) {
    this.handlers = handlers;
    this.open = false;
    this.shown = 0;
    this.stopwatch = new Stopwatch();
    for (const role of ROLES) this.#fill(role);
    $("back").addEventListener("click", () => this.#back());
    $("keep").addEventListener("click", () => this.open && handlers.keep(this.index));
    $("close").addEventListener("click", () => $("enlarged").close());
    $("enlarged").addEventListener("click", (event) => event.target.id === "enlarged-picture" && $("enlarged").close());
    document.addEventListener("visibilitychange", () => this.stopwatch.pause(document.hidden));
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

  /** Shows the pair `trials[index]`; it can be answered when all its pictures are loaded. */
  async show(trials, index) {
    const trial = trials[index];
    const turn = ++this.shown;
    this.index = index;
    this.open = false;
    $("progress").max = trials.length;
    $("progress").value = index;
    $("progress-text").textContent = text("progress", { position: index + 1, count: trials.length });
    $("back").disabled = index === 0;
    $("keep").hidden = trial.chosen === null;
    $("status").textContent = text("loading");
    for (const role of ROLES) this.#label(role, trial);
    await Promise.all([sleep(MINIMUM_MILLISECONDS), ...ROLES.map((role) => this.#load(role, trial[role], turn))]);
    if (turn !== this.shown) return;
    $("status").textContent = trial.chosen === null ? "" : `${text("chosen")}: ${text(trial.chosen)}`;
    this.#enable(true);
    this.stopwatch.start();
    const next = trials[index + 1];
    if (next) for (const role of ROLES) new Image().src = address(next[role]);
  }

  #label(role, trial) {
    const figure = this.#figure(role);
    const name = text(role);
    figure.querySelector("img").alt = name;
    const enlarge = figure.querySelector(".enlarge");
    enlarge.ariaLabel = enlarge.title = text("enlarge", { what: name });
    figure.querySelector("figcaption span").textContent = name;
    if (!figure.classList.contains("result")) return;
    const frame = figure.querySelector(".frame");
    frame.ariaPressed = String(trial.chosen === role);
    frame.ariaDisabled = "true"; // not disabled, because a disabled button loses the focus
  }

  async #load(role, key, turn) {
    const image = this.#figure(role).querySelector("img");
    image.removeAttribute("src"); // so that the previous picture is not shown
    while (turn === this.shown) {
      image.src = address(key);
      try {
        await image.decode();
        return;
      } catch {
        if (turn !== this.shown) return;
        $("status").textContent = text("offline");
        await sleep(RETRY_MILLISECONDS);
        image.removeAttribute("src");
      }
    }
  }

  #enable(enabled) {
    this.open = enabled;
    for (const frame of document.querySelectorAll(".result .frame")) frame.ariaDisabled = String(!enabled);
  }

  async #choose(role) {
    if (!this.open) return;
    const seconds = this.stopwatch.seconds();
    this.#enable(false);
    for (const other of ["first", "second"]) {
      this.#figure(other).querySelector(".frame").ariaPressed = String(other === role);
    }
    $("back").disabled = true;
    $("status").textContent = text("saving");
    try {
      await this.handlers.answer(this.index, role, seconds);
    } catch (error) { this.handlers.failed(error); }
  }

  #back() {
    if (this.open && this.index > 0) this.handlers.back(this.index);
  }

  #enlarge(role) {
    $("enlarged-name").textContent = text(role);
    $("enlarged-picture").src = this.#figure(role).querySelector("img").src;
    $("enlarged-picture").alt = text(role);
    $("enlarged").showModal();
  }

  #key(event) {
    if ($("trial").hidden || $("enlarged").open) return;
    if (event.repeat) { // a repeated key is only one choice
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
