// Elements of a text in Markdown: code, lists, headings, emphasis. Nothing here reads HTML, and
// links stay as they were written.

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,4})[.)])\s+(.*)$/;
const INLINE = /(`+)(.+?)\1|\*\*([^*]+)\*\*|\*([^\s*](?:[^*]*[^\s*])?)\*/;

/**
 * Makes the elements of a text; an unfinished code block ends with the text.
 * `addText(parent, start, end)` adds a part of the text to an element.
 */
export function renderMarkdown(text, addText) {
  const target = document.createDocumentFragment();
  const lines = [];
  let start = 0;
  for (const line of text.split("\n")) {
    lines.push({ text: line, start, end: start + line.length });
    start += line.length + 1;
  }
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const heading = HEADING.exec(line.text);
    if (!line.text.trim()) {
      at += 1;
    } else if (FENCE.test(line.text)) {
      at = addCode(lines, at, target, addText);
    } else if (heading) {
      const name = `h${Math.min(heading[1].length + 2, 6)}`;
      addInline(heading[2], line.end - heading[2].length, add(target, name), addText);
      at += 1;
    } else if (ITEM.test(line.text)) {
      at = addList(lines, at, target, addText);
    } else {
      at = addParagraph(lines, at, target, addText);
    }
  }
  return target;
}

function add(parent, name) {
  return parent.appendChild(document.createElement(name));
}

function addCode(lines, at, target, addText) {
  const [, fence, language] = FENCE.exec(lines[at].text);
  const first = at + 1;
  at = first;
  while (at < lines.length && !lines[at].text.trim().startsWith(fence)) at += 1;
  const figure = add(target, "figure");
  if (language) add(figure, "figcaption").textContent = language;
  const block = add(figure, "pre");
  block.tabIndex = 0;
  if (at > first) addText(add(block, "code"), lines[first].start, lines[at - 1].end);
  return at + 1;
}

/** Adds a list; items that begin further right belong to a list inside the item before. */
function addList(lines, at, target, addText) {
  const open = [];
  for (; at < lines.length; at += 1) {
    const { text, start, end } = lines[at];
    const match = ITEM.exec(text);
    if (!match) {
      if (!text.trim() && ITEM.test(lines[at + 1]?.text ?? "")) continue;
      if (!/^\s{2,}\S/.test(text) || FENCE.test(text)) break;
      const item = open.at(-1).list.lastChild;
      item.append(" ");
      addInline(text.trimStart(), start + text.length - text.trimStart().length, item, addText);
      continue;
    }
    const [, { length: indent }, number, content] = match;
    while (open.length > 1 && indent < open.at(-1).indent) open.pop();
    if (!open.length || indent > open.at(-1).indent + 1) {
      const list = add(open.length ? open.at(-1).list.lastChild : target, number ? "ol" : "ul");
      if (number) list.start = Number(number);
      open.push({ list, indent });
    }
    addInline(content, end - content.length, add(open.at(-1).list, "li"), addText);
  }
  return at;
}

function addParagraph(lines, at, target, addText) {
  const paragraph = add(target, "p");
  for (; at < lines.length && lines[at].text.trim(); at += 1) {
    const { text, start } = lines[at];
    if (FENCE.test(text) || HEADING.test(text) || ITEM.test(text)) break;
    if (paragraph.hasChildNodes()) add(paragraph, "br");
    addInline(text, start, paragraph, addText);
  }
  return at;
}

function addInline(text, start, parent, addText) {
  let match;
  while ((match = INLINE.exec(text))) {
    const [whole, ticks, code, bold, slanted] = match;
    if (match.index) addText(parent, start, start + match.index);
    const marks = ticks?.length ?? (bold ? 2 : 1);
    const inside = start + match.index + marks;
    if (ticks) addText(add(parent, "code"), inside, inside + code.length);
    else addInline(bold ?? slanted, inside, add(parent, bold ? "strong" : "em"), addText);
    start += match.index + whole.length;
    text = text.slice(match.index + whole.length);
  }
  if (text) addText(parent, start, start + text.length);
}
