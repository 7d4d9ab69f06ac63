// A reply on the page: its pieces, one for each step, with code blocks set apart.

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
    this.draw();
  }

  /** Tokens per second after the first part; null as long as there is none. */
  get rate() {
    const later = this.steps.slice(1).reduce((sum, step) => sum + step.added.length, 0);
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

  /** Draws the pieces; what stands between two lines that begin with ``` is code. */
  draw() {
    const lines = [[]];
    this.pieces.forEach((text, index) => {
      text.split("\n").forEach((part, place) => {
        if (place > 0) lines.push([]);
        if (part) lines.at(-1).push([part, index]);
      });
    });
    const fragment = document.createDocumentFragment();
    let isCode = false;
    let block = null;
    for (const line of lines) {
      const isFence = line.map(([part]) => part).join("").trimStart().startsWith("```");
      if (isFence) {
        isCode = !isCode;
        this.addLine(addElement(fragment, "div", "fence"), line);
        block = null;
        continue;
      }
      if (block) block.append("\n");
      else block = addElement(fragment, isCode ? "pre" : "div", isCode ? "code" : "text");
      this.addLine(block, line);
    }
    this.body.replaceChildren(fragment);
  }

  addLine(block, line) {
    for (const [part, index] of line) {
      const piece = addElement(block, "span", "piece");
      const isSingle = this.steps[index].added.length < 2;
      piece.classList.add(isSingle ? "single" : index % 2 ? "odd" : "even");
      piece.classList.toggle("shown", index === this.shown);
      piece.dataset.step = index;
      piece.textContent = part;
    }
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
