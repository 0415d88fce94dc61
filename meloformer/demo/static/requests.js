// What goes to the server and comes back: events, one line of JSON each.

/** What the server, or the way to it, has refused. */
export class Refusal extends Error {
  constructor(record) {
    super(record.line ?? record.code);
    this.code = record.code;
    this.values = record.values ?? {};
  }
}

export async function facts() {
  try {
    return await (await fetch("api/facts")).json();
  } catch {
    throw new Refusal({ code: "connection" });
  }
}

/** Post, and yield each event as it comes; a refusal is thrown. */
export async function* events(path, body, signal) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body, signal, headers: { "Content-Type": "application/octet-stream" } });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refusal({ code: "connection" });
  }
  if (!answer.ok) throw new Refusal(await answer.json().catch(() => ({ code: "connection" })));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Refusal({ code: "connection" });
    }
    if (part.done) break;
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.event === "error") throw new Refusal(event);
      yield event;
    }
  }
}

export const asked = (value) => new Blob([JSON.stringify(value)]);
