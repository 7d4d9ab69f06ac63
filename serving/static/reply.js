// A reply on the page: its pieces, one for each step.

import { renderMarkdown } from "./markdown.js";

/** The text of a reply that grows, and the steps that made it. */
export class Reply {
  /** Appends an empty message to `parent`; `onPick(reply, index)` is called for a clicked piece. */
  constructor(parent, onPick) {
    this.steps = [];
    this.pieces = [];
    this.text = "";
    this.numTokens = 0;
    this.firstTime = this.lastTime = null;
    this.shown = -1;
    this.element = addElement(parent, "div", "message assistant");
    this.body = addElement(this.element, "div", "body");
    this.body.addEventListener("click", (event) => {
      const piece = event.target.closest(".piece");
      if (piece) onPick(this, Number(piece.dataset.step));
    });
  }

  /** Adds a part of the stream. */
  add(chunk) {
    if (chunk.usage) this.numTokens = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) return;
    this.lastTime = performance.now();
    this.firstTime ??= this.lastTime;
    const text = choice.delta.content ?? "";
    if (choice.step || text) {
      this.steps.push(readStep(choice.step, text));
      this.pieces.push(text);
      this.text += text;
    }
  }

  /** Tokens per second after the first; the server counts them at the end. */
  get rate() {
    const drawn = this.steps.slice(1).reduce((sum, step) => sum + step.added.length, 0);
    const later = this.numTokens ? this.numTokens - 1 : drawn;
    return later ? later / ((this.lastTime - this.firstTime) / 1e3) : null;
  }

  /** Marks the piece of a step; -1 for none. */
  show(index) {
    this.shown = index;
    for (const piece of this.body.querySelectorAll(".piece")) {
      piece.classList.toggle("shown", Number(piece.dataset.step) === index);
    }
  }

  /** Says below the reply how it ended. */
  note(text) {
    addElement(this.element, "p", "note").textContent = text;
  }

  /** Draws the text; each part of it belongs to the step that added it. */
  draw() {
    const ends = [];
    for (const text of this.pieces) ends.push((ends.at(-1) ?? 0) + text.length);
    const addText = (parent, start, end) => {
      let index = ends.findIndex((pieceEnd) => pieceEnd > start);
      while (start < end) {
        const next = Math.min(end, ends[index]);
        if (next > start) this.addPiece(parent, this.text.slice(start, next), index);
        start = next;
        index += 1;
      }
    };
    this.body.replaceChildren(renderMarkdown(this.text, addText));
  }

  addPiece(parent, text, index) {
    const piece = addElement(parent, "span", "piece");
    const isSingle = this.steps[index].added.length < 2;
    piece.classList.add(isSingle ? "single" : index % 2 ? "odd" : "even");
    piece.classList.toggle("shown", index === this.shown);
    piece.dataset.step = index;
    piece.textContent = text;
  }
}

/**
 * Reads a step of the stream as {nodes: [{parent, token, accepted, copied}], added: [tokens]}. The
 * first part of a stream has none: there the prompt was read and `text` chosen.
 */
function readStep(step, text) {
  if (!step) return { nodes: [{ parent: -1, token: "", accepted: true }], added: [text] };
  const nodes = step.nodes.map(({ token, parent = -1, accepted = true, source }) => ({
    token,
    parent,
    accepted,
    copied: source === "lookup",
  }));
  const drafts = nodes.slice(1).filter((node) => node.accepted).map((node) => node.token);
  return { nodes, added: [...drafts, step.bonus_token] };
}

/** Adds a new element; its text is only ever set as text. */
export function addElement(parent, name, className) {
  const element = document.createElement(name);
  element.className = className;
  parent.append(element);
  return element;
}
