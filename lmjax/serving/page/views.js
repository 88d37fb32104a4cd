"use strict";
// The tree of a beam search, and attention: drawings of what /beams and /attention answer.

const NODE = { width: 84, height: 24, across: 108, down: 32 };
const CELL = 16;
let tree = null;
let maps = [];
let query = 0;

function svg(name, fields = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(fields)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function short(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

// A request of which only the newest is shown.
async function asked(path, body, state) {
  if (running) running.abort();
  const mine = running = new AbortController();
  state.className = "";
  state.textContent = "working";
  try {
    const found = await (await ask(path, body, mine.signal)).json();
    state.textContent = "";
    return found;
  } catch (error) {
    if (error.name === "AbortError") state.textContent = "stopped";
    else fail(state, error);
    return null;
  } finally {
    if (running === mine) running = null;
  }
}

async function search() {
  const body = {
    model: $("model").value, prompt: $("beam-prompt").value, beams: Number($("beam-count").value),
    max_tokens: Number($("beam-tokens").value), length_penalty: Number($("beam-penalty").value),
  };
  const found = await asked("beams", body, $("beam-state"));
  if (!found) return;
  tree = placed(found);
  $("beam-state").textContent = `${found.nodes.length} continuations compared in ${tree.columns.length} steps`;
  $("found").replaceChildren(...found.texts.map((each) => {
    const button = el("button", { title: "Show its path" }, each.text.trim() || "(nothing)",
      el("small", { textContent: `score ${each.score.toFixed(3)}, ended by ${each.finish_reason}` }));
    button.addEventListener("click", () => pick(each.node));
    return el("li", {}, button);
  }));
  drawTree();
  pick(found.texts[0].node);
  $("tree").scrollLeft = 0;
}

// The nodes in columns, one for each step: those of one parent together, the likeliest first.
function placed({ nodes, texts }) {
  const columns = [];
  nodes.forEach((node, i) => {
    node.depth = node.parent === null ? 0 : nodes[node.parent].depth + 1;
    (columns[node.depth] ||= []).push(i);
  });
  for (const column of columns) {
    const place = (i) => (nodes[i].parent === null ? 0 : nodes[nodes[i].parent].place);
    column.sort((a, b) => place(a) - place(b) || nodes[b].sum - nodes[a].sum);
    column.forEach((i, at) => { nodes[i].place = at; });
  }
  return { nodes, texts, columns, at: null };
}

function drawTree() {
  const { nodes, columns } = tree;
  const x = (node) => 4 + node.depth * NODE.across, y = (node) => 4 + node.place * NODE.down;
  const lines = [], boxes = [];
  nodes.forEach((node, i) => {
    if (node.parent !== null) {
      const parent = nodes[node.parent], middle = x(node) - (NODE.across - NODE.width) / 2;
      const [from, to] = [y(parent) + NODE.height / 2, y(node) + NODE.height / 2];
      node.line = svg("path", { d: `M${x(parent) + NODE.width},${from} C${middle},${from} ${middle},${to} ${x(node)},${to}` });
      lines.push(node.line);
    }
    const size = { x: x(node), y: y(node), width: NODE.width, height: NODE.height, rx: 5 };
    node.box = svg("g", { class: `node ${node.fate}` }, svg("rect", size));
    if (node.fate !== "dropped") node.box.firstChild.style.fill = colour(Math.exp(node.log_prob));
    if (node.fate === "ended") {
      node.box.append(svg("rect", { class: "inner", x: size.x + 3, y: size.y + 3, width: size.width - 6, height: size.height - 6, rx: 3 }));
    }
    const label = svg("text", { x: size.x + 8, y: size.y + 16 });
    label.textContent = short(visible(node.text), 9);
    node.box.append(label);
    node.box.addEventListener("click", () => pick(i));
    node.box.addEventListener("pointerenter", () => tell(i));
    boxes.push(node.box);
  });
  const width = columns.length * NODE.across, height = Math.max(...columns.map((each) => each.length)) * NODE.down + 4;
  $("tree").replaceChildren(svg("svg", { width, height, "aria-hidden": "true" }, ...lines, ...boxes));
  $("tree").hidden = false;
}

function path(i) {
  const found = [];
  for (let at = i; at !== null; at = tree.nodes[at].parent) found.unshift(at);
  return found;
}

const FATES = { kept: "a beam went on from it", ended: "it ended a text", dropped: "it was dropped" };

function tell(i) {
  const node = tree.nodes[i], text = path(i).map((at) => tree.nodes[at].text).join("");
  $("node").textContent = `Step ${node.depth + 1}: ${visible(node.text)}, probability ${Math.exp(node.log_prob).toFixed(3)},`
    + ` sum ${node.sum.toFixed(3)}; ${FATES[node.fate]}. So far: ${text.replace(/\n/g, "⏎")}`;
}

// Shows a node and the path to it.
function pick(i) {
  if (i === null) return;
  const on = new Set(path(i));
  tree.at = i;
  tree.nodes.forEach((node, at) => {
    node.box.classList.toggle("on", on.has(at));
    node.box.classList.toggle("at", at === i);
    node.line?.classList.toggle("on", on.has(at));
  });
  [...$("found").querySelectorAll("button")].forEach((button, at) => {
    button.setAttribute("aria-pressed", String(tree.texts[at].node === i));
  });
  const node = tree.nodes[i], place = $("tree");
  place.scrollLeft = Math.max(0, node.depth * NODE.across - place.clientWidth / 2);
  place.scrollTop = Math.max(0, node.place * NODE.down - place.clientHeight / 2);
  tell(i);
}

function climb(event) {
  if (!tree || tree.at === null || !event.key.startsWith("Arrow")) return;
  const { nodes, columns } = tree, node = nodes[tree.at], column = columns[node.depth];
  const children = (columns[node.depth + 1] || []).filter((i) => nodes[i].parent === tree.at);
  const next = {
    ArrowLeft: node.parent, ArrowRight: children.find((i) => nodes[i].fate !== "dropped") ?? children[0],
    ArrowUp: column[node.place - 1], ArrowDown: column[node.place + 1],
  }[event.key];
  if (next !== undefined && next !== null) pick(next);
  event.preventDefault();
}

async function look() {
  const body = { model: $("model").value, text: $("looked").value };
  if (!$("targets").hidden && $("target").value) body.target = $("target").value;
  const found = await asked("attention", body, $("attention-state"));
  if (!found) return;
  maps = found.maps;
  $("kind").replaceChildren(...maps.map((each, i) => el("option", { value: i, textContent: each.name })));
  $("kind").value = maps.length - 1;
  $("looked-at").hidden = false;
  heads();
}

function options(select, count, names) {
  const before = select.value;
  const listed = [...names, ...Array.from({ length: count }, (_, i) => [i, i])];
  select.replaceChildren(...listed.map(([value, textContent]) => el("option", { value, textContent })));
  if (before && [...select.options].some((each) => each.value === before)) select.value = before;
  else if (!names.length) select.value = count - 1;
}

// Fits the choices to the kind of attention.
function heads() {
  const { weights } = maps[$("kind").value];
  options($("layer"), weights.length, []);
  options($("head"), weights[0].length, [["mean", "mean of all"]]);
  query = maps[$("kind").value].queries.length - 1;
  drawMap();
}

function shown() {
  const layer = maps[$("kind").value].weights[$("layer").value];
  if ($("head").value !== "mean") return layer[$("head").value];
  return layer[0].map((row, i) => row.map((_, j) => layer.reduce((sum, head) => sum + head[i][j], 0) / layer.length));
}

function drawMap() {
  const { queries, keys } = maps[$("kind").value], weights = shown();
  const most = Math.max(...weights.map((row) => Math.max(...row))) || 1;
  const room = (names, longest) => 14 + 7.4 * Math.min(longest, Math.max(...names.map((name) => name.length)));
  const left = room(queries, 12), top = room(keys, 10), cells = [];
  weights.forEach((row, i) => row.forEach((weight, j) => {
    const cell = svg("rect", { x: left + j * CELL, y: top + i * CELL, width: CELL - 1, height: CELL - 1, "fill-opacity": (weight / most).toFixed(3) });
    cell.addEventListener("pointerenter", () => read(i, j));
    cells.push(cell);
  }));
  const rows = queries.map((text, i) => {
    const label = svg("text", { class: "row", x: left - 6, y: top + i * CELL + 12, "text-anchor": "end" });
    label.textContent = short(text, 12);
    return label;
  });
  const columns = keys.map((text, j) => {
    const x = left + j * CELL + 12;
    const label = svg("text", { x, y: top - 6, transform: `rotate(-90 ${x} ${top - 6})` });
    label.textContent = short(text, 10);
    return label;
  });
  const size = { width: left + keys.length * CELL + 4, height: top + queries.length * CELL + 4 };
  $("map").replaceChildren(svg("svg", { ...size, class: "map", "aria-hidden": "true" }, ...cells, ...rows, ...columns));
  const spans = (list, chosen) => list.map((text, i) => {
    const span = el("span", { className: "tok", textContent: text });
    span.addEventListener("pointerenter", () => chosen(i));
    span.addEventListener("click", () => chosen(i));
    return span;
  });
  $("queries").replaceChildren(...spans(queries, (i) => read(i)));
  $("keys").replaceChildren(...spans(keys, (j) => read(query, j)));
  read(query);
}

// Shows what a token reads; `key`: the one whose number is told, else the one that it reads most.
function read(i, key) {
  const { queries, keys } = maps[$("kind").value], row = shown()[i];
  query = i;
  [...$("queries").children].forEach((span, at) => span.classList.toggle("at", at === i));
  [...$("map").querySelectorAll(".row")].forEach((label, at) => label.classList.toggle("at", at === i));
  const most = Math.max(...row) || 1;
  [...$("keys").children].forEach((span, at) => { span.style.background = `color-mix(in srgb, var(--mark) ${Math.round(45 * row[at] / most)}%, transparent)`; });
  const j = key ?? row.indexOf(Math.max(...row));
  $("cell").textContent = `${queries[i]} reads ${keys[j]} with ${row[j].toFixed(3)}`;
}

function step(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by || !maps.length) return;
  read(Math.max(0, Math.min($("queries").children.length - 1, query + by)));
  event.preventDefault();
}

$("search").addEventListener("click", search);
$("tree").addEventListener("keydown", climb);
$("look").addEventListener("click", look);
$("kind").addEventListener("change", heads);
for (const name of ["layer", "head"]) $(name).addEventListener("change", drawMap);
$("queries").addEventListener("keydown", step);
