// The admin page. The token is after the # of the address; browsers do not send this part to the server.

const $ = (id) => document.getElementById(id);
const REFRESH_MILLISECONDS = 10000;

const ask = (what) => fetch(`api/admin/${what}`, { headers: { Authorization: `Bearer ${location.hash.slice(1)}` } });

function row({ method, pairs, votes, for_ours }) {
  const line = document.createElement("tr");
  const percent = votes ? ((100 * for_ours) / votes).toFixed(1) : "–";
  [method, pairs, votes, for_ours, percent].forEach((text, index) => {
    const cell = document.createElement(index ? "td" : "th");
    cell.textContent = text;
    line.append(cell);
  });
  return line;
}

async function refresh() {
  let answer;
  try {
    answer = await ask("progress");
  } catch {
    $("error").textContent = "No connection to the server.";
    return;
  }
  $("ask").hidden = answer.ok;
  $("found").hidden = !answer.ok;
  $("error").textContent = answer.ok || !location.hash ? "" : "This is not the admin token.";
  if (!answer.ok) return;
  const progress = await answer.json();
  const { started, finished, ranked, votes } = progress;
  $("summary").textContent = `${started} started, ${finished} finished, ${ranked} ranked the factors; ${votes} votes.`;
  $("methods").replaceChildren(...progress.methods.map(row));
}

for (const button of document.querySelectorAll("[data-file]")) {
  button.addEventListener("click", async () => {
    const answer = await ask(button.dataset.file);
    if (!answer.ok) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = button.dataset.file;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = $("token").value.trim();
});
window.addEventListener("hashchange", refresh);
refresh();
setInterval(refresh, REFRESH_MILLISECONDS);
