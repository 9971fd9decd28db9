// What a participant sees: consent, pairs, ranking, thanks. The server knows how far the participant is; the browser
// keeps nothing but a random token, so the page can be closed and opened again at any time.

import { ask, randomHex, Refused } from "./api.js";
import { startRanking } from "./ranking.js";
import { languages, preferred, say, speak } from "./texts.js";
import { Trial } from "./trial.js";

const SECONDS_A_PAIR = 12;
const $ = (id) => document.getElementById(id);

// Where storing is forbidden, the study works as long as the page is open.
function recall(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}
function remember(name, value) {
  try { localStorage.setItem(name, value); } catch { /* see above */ }
}

let study, session;
const known = recall("inst-study-token");
const token = known ?? randomHex(32);

function offline(is) {
  $("offline").textContent = is ? say("offline") : "";
  $("offline").hidden = !is;
}

const request = (path, body) => ask(path, token, body, offline);

function show(name) {
  for (const page of document.querySelectorAll("main")) page.hidden = page.id !== name;
  window.scrollTo(0, 0);
  document.querySelector(`#${name} h1`).focus({ preventScroll: true });
}

function stop(error) {
  if (!(error instanceof Refused)) throw error;
  $("offline").textContent = say("refused", { error: error.message });
  $("offline").hidden = false;
}

function paragraphs(texts) {
  return texts.filter(Boolean).map((text) => Object.assign(document.createElement("p"), { textContent: text }));
}

async function fillConsent() {
  document.title = study.title || say("title");
  $("study-title").textContent = study.title || say("title");
  const minutes = Math.max(1, Math.round((study.trials * SECONDS_A_PAIR) / 60) + 1);
  const usual = [say("about"), say("length", { count: study.trials, minutes }), say("voluntary"), say("privacy")];
  const own = study.consent ? study.consent.split(/\n\s*\n/) : usual;
  $("consent-text").replaceChildren(...paragraphs([...own, study.contact && say("contact", { contact: study.contact })]));
}

async function consent() {
  await fillConsent();
  show("consent");
  $("agree").disabled = false;
}

$("agree").addEventListener("click", async () => {
  $("agree").disabled = true;
  remember("inst-study-token", token);
  remember("inst-study-ranking", "[]"); // that of another study at the same address is no answer to this one
  try {
    session = await request("api/begin", {});
    goOn();
  } catch (error) { stop(error); }
});

/** To the first pair without an answer, or the ranking, or the end. */
function goOn() {
  if (session.finished) return show("thanks");
  const next = session.trials.findIndex((one) => one.chosen === null);
  return next < 0 ? ranking() : pair(next);
}

const trial = new Trial({
  async answer(index, choice, seconds) {
    const one = session.trials[index];
    await request("api/vote", { key: randomHex(16), position: one.position, choice, seconds });
    one.chosen = choice;
    forward(index);
  },
  back: (index) => pair(index - 1),
  keep: (index) => forward(index),
  failed: stop,
});

function forward(index) {
  return index + 1 < session.trials.length ? pair(index + 1) : ranking();
}

function pair(index) {
  const changed = $("trial").hidden;
  $("question").textContent = study.question || say("question");
  if (changed) show("trial");
  trial.show(session.trials, index);
}

function ranking() {
  startRanking(session.factors, {
    draft: recall("inst-study-ranking"),
    changed: (order) => remember("inst-study-ranking", JSON.stringify(order)),
    back: () => pair(session.trials.length - 1),
    async send(order) {
      try {
        await request("api/ranking", { ranking: order });
        session.finished = true;
        show("thanks");
      } catch (error) { stop(error); }
    },
  });
  show("ranking");
}

async function begin() {
  await speak(recall("inst-study-language") ?? preferred());
  study = await request("api/study");
  document.title = study.title || say("title");
  for (const [code, name] of await languages()) $("language").append(new Option(name, code));
  $("language").value = document.documentElement.lang.slice(0, 2);
  $("language").addEventListener("change", async () => {
    remember("inst-study-language", $("language").value);
    await speak($("language").value);
    await fillConsent();
  });
  if (!known) return consent();
  try {
    session = await request("api/session");
  } catch (error) {
    if (error.status !== 401) return stop(error);
    return consent(); // to another study at the same address
  }
  return goOn();
}

begin();
