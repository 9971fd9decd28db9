// Requests to the server. A request is sent again until the server answers. The key of a participant's answer lets the
// server recognise a repeated one.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const LONGEST_PAUSE = 8000;
const TOO_SLOW = 408; // a part of the request was lost on the way: it is no answer
const sleep = (milliseconds) => new Promise((wake) => setTimeout(wake, milliseconds));

export function randomHex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Sends a request until there is an answer; calls `offline(true)` while there is none. Throws Refused. */
export async function ask(path, token, body, offline = () => {}) {
  const headers = { Authorization: `Bearer ${token}` };
  const request = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  for (let pause = 500; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    let answer, content;
    try {
      answer = await fetch(path, request);
      content = await answer.json();
    } catch {
      answer = undefined; // no connection, or it was lost
    }
    if (answer?.ok) {
      offline(false);
      return content;
    }
    if (answer && answer.status < 500 && answer.status !== TOO_SLOW) {
      offline(false);
      throw new Refused(answer.status, content.error ?? answer.statusText);
    }
    offline(true);
    await sleep(pause);
  }
}
