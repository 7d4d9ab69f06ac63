// The page: a conversation, and the steps by which its last reply was made.

import { readModel, streamReply } from "./api.js";
import { addElement, Reply } from "./reply.js";
import { describe, drawTree } from "./tree.js";

const $ = (id) => document.getElementById(id);
const DRAFTS = { medusa: {}, heads: { lookup_ngram: 0 }, plain: { lookup_ngram: 0, tree: "plain" } };

let conversation = []; // the messages so far
let lastQuestion = null; // the messages that the last reply answered
let current = null; // the reply whose steps are shown
let shown = 0; // the step that is shown
let follows = true; // whether the last step is shown while the reply grows
let stopper = null; // ends the running request

function readSettings() {
  const temperature = Number($("temperature").value);
  return {
    temperature,
    max_tokens: Number($("limit").value),
    ...(temperature > 0 ? { seed: Math.floor(Math.random() * 2 ** 31) } : {}),
  };
}

function listMessages() {
  const system = $("system").value.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...conversation];
}

/** Runs `work(signal)` with the buttons of a running request; returns whether it went well. */
async function run(work) {
  stopper = new AbortController();
  setBusy(true);
  try {
    await work(stopper.signal);
    return true;
  } catch (error) {
    if (error.name === "AbortError") current?.note("stopped");
    else showError(error);
    return false;
  } finally {
    stopper = null;
    setBusy(false);
    scrollDown();
  }
}

function showError(error) {
  const box = addElement($("messages"), "div", "message error");
  box.setAttribute("role", "alert");
  box.textContent = error.message;
  askForKey(error);
}

function setBusy(isBusy) {
  $("send").disabled = $("clear").disabled = isBusy;
  $("stop").disabled = !isBusy;
  $("compare").disabled = isBusy || !lastQuestion;
}

async function send() {
  const text = $("prompt").value;
  if (!text.trim() || stopper) return;
  $("prompt").value = "";
  $("messages").querySelector(".hint")?.remove();
  addElement($("messages"), "div", "message user").textContent = text;
  conversation.push({ role: "user", content: text });
  lastQuestion = { messages: listMessages(), settings: readSettings() };
  $("comparison").hidden = true;
  const reply = (current = new Reply($("messages"), pick));
  follows = true;
  scrollDown();
  const isComplete = await run((signal) => fill(reply, lastQuestion, $("drafts").value, signal));
  if (isComplete || reply.text) conversation.push({ role: "assistant", content: reply.text });
  else conversation.pop();
  if (!isComplete && !reply.text) $("prompt").value = text;
  if (!reply.steps.length) reply.element.remove();
}

/** Streams an answer into a reply, and draws it as it grows. */
async function fill(reply, question, drafts, signal) {
  let finish = null;
  let isWaiting = false;
  const draw = () => {
    isWaiting = false;
    const isAtEnd = nearEnd();
    reply.draw();
    if (reply === current && follows) show(reply.steps.length - 1);
    if (isAtEnd) scrollDown();
  };
  const body = makeBody(question, drafts);
  try {
    for await (const chunk of streamReply({ ...body, steps: true }, $("key").value, signal)) {
      reply.add(chunk);
      finish = chunk.choices[0]?.finish_reason ?? finish;
      if (!isWaiting) requestAnimationFrame(draw);
      isWaiting = true;
    }
  } finally {
    draw();
  }
  if (finish === "length") reply.note(`cut after ${reply.numTokens} tokens, the longest reply`);
}

function makeBody(question, drafts) {
  return { messages: question.messages, ...question.settings, ...DRAFTS[drafts] };
}

/** Makes the last reply again, without drafts and then with them, and shows both rates. */
async function compare() {
  const question = lastQuestion;
  const hidden = document.createElement("div");
  const replies = {};
  await run(async (signal) => {
    for (const drafts of ["plain", "medusa", "plain", "medusa"]) {
      const runs = (replies[drafts] ??= []);
      showComparison(replies, `making the reply, ${drafts === "plain" ? "plain" : "with Medusa"}`);
      const reply = new Reply(hidden, () => {});
      // Nothing is asked for or drawn here that would slow the server down.
      const body = makeBody(question, drafts);
      for await (const chunk of streamReply(body, $("key").value, signal)) reply.add(chunk);
      runs.push(reply);
    }
    showComparison(replies, null);
  });
}

function showComparison(replies, doing) {
  const box = $("comparison");
  box.hidden = false;
  box.replaceChildren();
  const rates = Object.fromEntries(
    ["plain", "medusa"].map((name) => [name, Math.max(0, ...(replies[name] ?? []).map((r) => r.rate ?? 0))]),
  );
  const most = Math.max(1, ...Object.values(rates));
  for (const name of ["plain", "medusa"]) {
    const row = addElement(box, "div", `rate ${name}`);
    addElement(row, "span", "").textContent = name === "plain" ? "plain" : "Medusa";
    addElement(row, "i", "").style.width = `${(100 * rates[name]) / most}%`;
    addElement(row, "b", "").textContent = rates[name] ? `${rates[name].toFixed(0)} tok/s` : "…";
  }
  const text = addElement(box, "p", "note");
  if (doing) {
    text.textContent = doing;
    return;
  }
  const texts = new Set(Object.values(replies).flat().map((reply) => reply.text));
  const speedup = rates.medusa && rates.plain ? `${(rates.medusa / rates.plain).toFixed(2)} times as fast` : "";
  const same = texts.size === 1 ? "the same text" : "the texts differ";
  text.textContent = [speedup, same, "the better of two runs each"].filter(Boolean).join(", ");
}

function pick(reply, index) {
  current?.show(-1);
  current = reply;
  follows = false;
  show(index);
}

/** Shows a step of the current reply. */
function show(index) {
  const { steps } = current;
  shown = Math.max(0, Math.min(index, steps.length - 1));
  const step = steps[shown];
  if (!step) return;
  $("which").max = steps.length - 1;
  $("which").value = shown;
  $("which").disabled = false;
  $("previous").disabled = shown === 0;
  $("next").disabled = shown === steps.length - 1;
  $("place").textContent = `step ${shown + 1} of ${steps.length}`;
  const words = document.createElement("p");
  words.className = "hint";
  words.textContent = shown === 0 ? "the prompt was read, the first token chosen" : describe(step);
  $("tree").replaceChildren(words, drawTree(step));
  current.show(shown);
  showFigures();
  showChart();
}

function showFigures() {
  const decoding = current.steps.slice(1);
  const added = decoding.reduce((sum, step) => sum + step.added.length, 0);
  const nodes = decoding.reduce((sum, step) => sum + step.nodes.length, 0);
  const per = (value) => (decoding.length ? (value / decoding.length).toFixed(2) : "–");
  const figures = [
    [current.rate ? current.rate.toFixed(0) : "–", "tokens per second"],
    [per(added), "tokens per step"],
    [per(nodes), "nodes per step"],
    [current.numTokens || added + 1, "tokens"],
  ];
  $("figures").replaceChildren();
  for (const [value, name] of figures) {
    const figure = addElement($("figures"), "div", "figure");
    addElement(figure, "b", "").textContent = value;
    addElement(figure, "span", "").textContent = name;
  }
}

function showChart() {
  const { steps } = current;
  const most = Math.max(2, ...steps.map((step) => step.added.length));
  $("chart").replaceChildren();
  steps.forEach((step, index) => {
    const bar = addElement($("chart"), "i", step.added.length > 1 ? "drafted" : "");
    bar.style.height = `${(100 * step.added.length) / most}%`;
    bar.classList.toggle("shown", index === shown);
    bar.dataset.step = index;
  });
}

function nearEnd() {
  const box = $("messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 60;
}

function scrollDown() {
  $("messages").scrollTop = $("messages").scrollHeight;
}

async function connect() {
  try {
    $("model").textContent = await readModel($("key").value);
    $("state").textContent = "";
  } catch (error) {
    $("state").textContent = error.message;
    askForKey(error);
  }
}

/** Opens the settings at the field for the key, if that is what the server misses. */
function askForKey(error) {
  if (error.status !== 401) return;
  $("settings").open = true;
  $("key").focus();
}

function move(index) {
  if (!current) return;
  follows = false;
  show(index);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("options").addEventListener("submit", (event) => event.preventDefault());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopper?.abort();
});
$("stop").addEventListener("click", () => stopper?.abort());
$("compare").addEventListener("click", compare);
$("clear").addEventListener("click", () => {
  conversation = [];
  lastQuestion = current = null;
  for (const id of ["messages", "figures", "chart", "tree"]) $(id).replaceChildren();
  $("comparison").hidden = true;
  $("place").textContent = "";
  $("which").disabled = $("previous").disabled = $("next").disabled = true;
  setBusy(false);
  $("prompt").focus();
});
$("which").addEventListener("input", () => move(Number($("which").value)));
$("previous").addEventListener("click", () => move(shown - 1));
$("next").addEventListener("click", () => move(shown + 1));
$("chart").addEventListener("click", (event) => {
  if (event.target.dataset.step) move(Number(event.target.dataset.step));
});
$("key").addEventListener("change", connect);
connect();
