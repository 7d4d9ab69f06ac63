// Requests to the server that this page comes from.

/** Reads the name of the model. Throws an Error with the server's message. */
export async function readModel(key) {
  const response = await call("v1/models", { headers: makeHeaders(key) });
  return (await response.json()).data[0].id;
}

/**
 * Streams a reply; yields the objects of the stream. Throws an Error with the server's message, or
 * the AbortError of the signal.
 */
export async function* streamReply(body, key, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: makeHeaders(key),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isComplete = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice("data: ".length);
      if (data === "[DONE]") {
        isComplete = true;
        continue;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
  if (!isComplete) throw new Error("the connection ended before the reply did");
}

/** Returns a good response; an Error of another one has its `status`. */
async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer: look whether it runs");
  }
  if (!response.ok) {
    throw Object.assign(new Error(await readError(response)), { status: response.status });
  }
  return response;
}

function makeHeaders(key) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  return headers;
}

async function readError(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}
