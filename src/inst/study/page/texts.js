// The texts of the page in the browser's language.

const LANGUAGES = ["en", "zh"];
let texts = {};

/** Returns the first of the browser's languages that is available, or English. */
export function preferredLanguage() {
  const wanted = navigator.languages.map((language) => language.slice(0, 2).toLowerCase());
  return wanted.find((language) => LANGUAGES.includes(language)) ?? "en";
}

/** Returns a text by its key, with {values} filled in. */
export function text(key, values = {}) {
  const template = key.split(".").reduce((part, name) => part[name], texts);
  return template.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Loads the texts of a language and writes the fixed ones into the page. */
export async function setLanguage(language) {
  texts = await (await fetch(`page/${language}.json`)).json();
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
}

/** Returns [code, name] of the available languages; the name is in the language itself. */
export async function languages() {
  const read = async (code) => [code, (await (await fetch(`page/${code}.json`)).json()).language];
  return Promise.all(LANGUAGES.map(read));
}
