// The pages for a participant: consent, pairs, ranking, thanks. The server stores the participant's progress. The
// browser stores a random token, the language and the draft of the ranking, so the page can be closed and opened again.

import { ask, randomHex, Refused } from "./api.js";
import { startRanking } from "./ranking.js";
import { languages, preferredLanguage, setLanguage, text } from "./texts.js";
import { Trial } from "./trial.js";

const SECONDS_PER_PAIR = 12;
const $ = (id) => document.getElementById(id);

// If the browser forbids storage, the study works as long as the page is open.
function readStored(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}
function store(name, value) {
  try { localStorage.setItem(name, value); } catch { /* see above */ }
}

let study, session;
const storedToken = readStored("inst-study-token");
const token = storedToken ?? randomHex(32);

function offline(isOffline) {
  $("offline").textContent = isOffline ? text("offline") : "";
  $("offline").hidden = !isOffline;
}

const request = (path, body) => ask(path, token, body, offline);

function show(name) {
  for (const page of document.querySelectorAll("main")) page.hidden = page.id !== name;
  window.scrollTo(0, 0);
  document.querySelector(`#${name} h1`).focus({ preventScroll: true });
}

function stop(error) {
  if (!(error instanceof Refused)) throw error;
  $("offline").textContent = error.status === 429 ? text("busy") : text("refused", { error: error.message });
  $("offline").hidden = false;
}

function paragraphs(texts) {
  return texts.filter(Boolean).map((content) => Object.assign(document.createElement("p"), { textContent: content }));
}

async function fillConsent() {
  document.title = study.title || text("title");
  $("study-title").textContent = study.title || text("title");
  const minutes = Math.max(1, Math.round((study.trials * SECONDS_PER_PAIR) / 60) + 1);
  const standard = [text("about"), text("length", { count: study.trials, minutes }), text("voluntary"), text("privacy")];
  const parts = study.consent ? study.consent.split(/\n\s*\n/) : standard;
  const contact = study.contact && text("contact", { contact: study.contact });
  $("consent-text").replaceChildren(...paragraphs([...parts, contact]));
}

async function consent() {
  await fillConsent();
  show("consent");
  $("agree").disabled = false;
}

$("agree").addEventListener("click", async () => {
  $("agree").disabled = true;
  store("inst-study-token", token);
  store("inst-study-ranking", "[]"); // remove the draft of another study at the same address
  try {
    session = await request("api/begin", {});
    continueSession();
  } catch (error) { stop(error); }
});

/** Shows the first pair without an answer, or the ranking, or the end. */
function continueSession() {
  if (session.finished) return show("thanks");
  const next = session.trials.findIndex((assigned) => assigned.chosen === null);
  return next < 0 ? ranking() : pair(next);
}

const trial = new Trial({
  async answer(index, choice, seconds) {
    const assigned = session.trials[index];
    await request("api/vote", { key: randomHex(16), position: assigned.position, choice, seconds });
    assigned.chosen = choice;
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
  $("question").textContent = study.question || text("question");
  if (changed) show("trial");
  trial.show(session.trials, index);
}

function ranking() {
  startRanking(session.factors, {
    draft: readStored("inst-study-ranking"),
    changed: (order) => store("inst-study-ranking", JSON.stringify(order)),
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
  await setLanguage(readStored("inst-study-language") ?? preferredLanguage());
  study = await request("api/study");
  document.title = study.title || text("title");
  for (const [code, name] of await languages()) $("language").append(new Option(name, code));
  $("language").value = document.documentElement.lang.slice(0, 2);
  $("language").addEventListener("change", async () => {
    store("inst-study-language", $("language").value);
    await setLanguage($("language").value);
    await fillConsent();
  });
  if (!storedToken) return consent();
  try {
    session = await request("api/session");
  } catch (error) {
    if (error.status !== 401) return stop(error);
    return consent(); // the token belongs to another study at the same address
  }
  return continueSession();
}

begin();
