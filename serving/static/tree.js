// Draws the tree of one step as SVG.

const SPACE = "http://www.w3.org/2000/svg";
const [ROW, HEIGHT, GAP, CHARACTER, LONGEST] = [28, 22, 34, 7.3, 14];
const SCALE = 1.2;

/** Makes the text of a token visible: spaces at its ends, line breaks, length. */
export function showToken(token) {
  const visible = token
    .replaceAll("\n", "⏎")
    .replaceAll("\t", "⇥")
    .replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length));
  return visible.length > LONGEST ? `${visible.slice(0, LONGEST - 1)}…` : visible || "∅";
}

/**
 * Draws a step: {nodes: [{parent, token, accepted, copied}], added: [texts]}. The root stands on
 * the left; behind the last accepted draft stands the token that the model chose itself.
 */
export function drawTree(step) {
  const nodes = step.nodes.map((node, index) => ({
    ...node,
    kind: index === 0 ? "root" : node.accepted ? "accepted" : "rejected",
    children: [],
  }));
  const parent = nodes.findLastIndex((node) => node.accepted);
  nodes.push({ parent, token: step.added.at(-1), kind: "bonus", children: [] });
  nodes.forEach((node) => node.parent >= 0 && nodes[node.parent].children.push(node));
  nodes[0].depth = 0;
  for (const node of nodes) {
    if (node.parent >= 0) node.depth = nodes[node.parent].depth + 1;
    node.text = showToken(node.token);
    node.width = Math.max(22, node.text.length * CHARACTER + 12);
  }
  const numRows = placeRows(nodes[0], 0);
  const columns = placeColumns(nodes);

  const [width, height] = [columns.end + 2, numRows * ROW + 4];
  const size = { width: SCALE * width, height: SCALE * height };
  const svg = make("svg", { role: "img", viewBox: `0 0 ${width} ${height}`, ...size });
  make("title", {}, svg).textContent = describe(step);
  for (const node of nodes) {
    node.x = columns.starts[node.depth] + 1;
    node.y = node.row * ROW + ROW / 2 + 2;
  }
  for (const node of nodes.slice(1)) {
    const from = nodes[node.parent];
    const [x1, x2] = [from.x + from.width, node.x];
    const middle = (x1 + x2) / 2;
    const line = `M${x1},${from.y} C${middle},${from.y} ${middle},${node.y} ${x2},${node.y}`;
    make("path", { d: line, class: node.kind === "rejected" ? "" : "accepted" }, svg);
  }
  for (const node of nodes) {
    const group = make("g", { class: `${node.kind} ${node.copied ? "copied" : ""}` }, svg);
    const y = node.y - HEIGHT / 2;
    make("rect", { x: node.x, y, width: node.width, height: HEIGHT, rx: 5 }, group);
    make("text", { x: node.x + 6, y: node.y + 4 }, group).textContent = node.text;
    make("title", {}, group).textContent = JSON.stringify(node.token);
  }
  return svg;
}

/** Says in words what a step did. */
export function describe(step) {
  const drafts = step.nodes.slice(1);
  const accepted = drafts.filter((node) => node.accepted);
  const copied = accepted.filter((node) => node.copied).length;
  const from = copied ? `, ${copied} of them copied` : "";
  const tokens = count(step.added.length, "token");
  if (!drafts.length) return `no drafts, ${tokens}`;
  return `${count(drafts.length, "draft")} verified, ${accepted.length} accepted${from}: ${tokens}`;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Gives each leaf a row, and each other node that of its accepted or first child. */
function placeRows(node, first) {
  if (!node.children.length) {
    node.row = first;
    return first + 1;
  }
  const isMain = (child) => child.kind !== "rejected";
  node.children.sort((a, b) => isMain(b) - isMain(a));
  let row = first;
  for (const child of node.children) row = placeRows(child, row);
  node.row = node.children[0].row;
  return row;
}

function placeColumns(nodes) {
  const widths = [];
  for (const node of nodes) widths[node.depth] = Math.max(widths[node.depth] ?? 0, node.width);
  let end = 0;
  const starts = widths.map((width) => {
    const start = end;
    end += width + GAP;
    return start;
  });
  return { starts, end: end - GAP };
}

function make(name, attributes, parent) {
  const element = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}
