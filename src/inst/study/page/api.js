// Talking to the server. What a participant answered is sent again until the server has it: the key that goes with an
// answer lets the server see that it is the same one.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const LONGEST_PAUSE = 8000;
const sleep = (milliseconds) => new Promise((wake) => setTimeout(wake, milliseconds));

export function randomHex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (one) => one.toString(16).padStart(2, "0")).join("");
}

/** Asks until there is an answer; `offline(true)` is called while there is none. Throws Refused. */
export async function ask(path, token, body, offline = () => {}) {
  const headers = { Authorization: `Bearer ${token}` };
  const request = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  for (let pause = 500; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    let answer, found;
    try {
      answer = await fetch(path, request);
      found = await answer.json();
    } catch {
      answer = undefined; // no connection, or it ended in the middle
    }
    if (answer?.ok) {
      offline(false);
      return found;
    }
    if (answer && answer.status < 500) {
      offline(false);
      throw new Refused(answer.status, found.error ?? answer.statusText);
    }
    offline(true);
    await sleep(pause);
  }
}
