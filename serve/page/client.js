// The endpoint's /v1/analyze, answered as server-sent events.

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

/**
 * Ask about recordings. `onText` gets each piece of the answer.
 * Returns the whole result. Throws Refused for an answer that is an error, AbortError when `signal` ends it.
 */
export async function analyze({ recordings, fields, key, signal, onText }) {
  const form = new FormData();
  for (const { name, blob } of recordings) form.append("audio", blob, name);
  for (const [name, value] of Object.entries({ ...fields, stream: "true" })) form.append(name, value);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch("v1/analyze", { method: "POST", headers, body: form, signal });
  if (!response.ok) throw new Refused(response.status, await reason(response));
  let result = null;
  for await (const event of events(response)) {
    if (event.error) throw new Refused(response.status, event.error.message);
    if (event.object === "stetholm.analysis.delta") onText(event.text);
    else result = event;
  }
  if (!result) throw new Refused(response.status, "The answer broke off.");
  return result;
}

async function reason(response) {
  try { return (await response.json()).error.message; } catch { return `The server answered ${response.status}.`; }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) if (event !== "data: [DONE]") yield JSON.parse(event.slice("data: ".length));
  }
}
