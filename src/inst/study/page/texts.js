// The texts of the page in the browser's language.

const LANGUAGES = ["en", "zh"];
let texts = {};

/** The first of the browser's languages that there is, or English. */
export function preferred() {
  const wanted = navigator.languages.map((one) => one.slice(0, 2).toLowerCase());
  return wanted.find((one) => LANGUAGES.includes(one)) ?? "en";
}

/** A text by its key, with {values} filled in. */
export function say(key, values = {}) {
  const text = key.split(".").reduce((found, part) => found[part], texts);
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Reads a language's texts and writes those that never change into the page. */
export async function speak(language) {
  texts = await (await fetch(`page/${language}.json`)).json();
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
}

/** The languages there are, by code, in their own names. */
export async function languages() {
  const read = async (code) => [code, (await (await fetch(`page/${code}.json`)).json()).language];
  return Promise.all(LANGUAGES.map(read));
}
