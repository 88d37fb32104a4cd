"use strict";
// The page of lmjax serve: text, conversations and masks, by the endpoints of the server that it came from. views.js
// draws beams and attention.

const $ = (id) => document.getElementById(id);
// Name in a body, text, least, most, step, default; a slider at its default is left out of the body.
const SLIDERS = [
  ["temperature", "Temperature", 0, 2, 0.05, 1],
  ["top_p", "Top p", 0.05, 1, 0.05, 1],
  ["top_k", "Top k (0: off)", 0, 200, 1, 0],
  ["min_p", "Min p (0: off)", 0, 0.5, 0.01, 0],
  ["typical_p", "Typical p (1: off)", 0.05, 1, 0.05, 1],
  ["repetition_penalty", "Repetition penalty", 0.5, 2, 0.05, 1],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, 0],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, 0],
  ["no_repeat_ngram", "No repeated n-gram (0: off)", 0, 10, 1, 0],
  ["min_tokens", "Least tokens", 0, 200, 1, 0],
  ["max_tokens", "Most tokens", 1, 512, 1, 64],
  ["seed", "Seed (-1: another each time)", -1, 100, 1, -1],
];
const ALWAYS = new Set(["temperature", "max_tokens"]);
const ALTERNATIVES = 8;
// What Ctrl and Enter do in each tab; views.js has the last ones.
const TABS = { text: () => write(), chat: () => send(), beams: () => search(), mask: () => fill(), attention: () => look() };
let models = [];
let running = null;
let talk = [];

function el(name, fields = {}, ...children) {
  const made = Object.assign(document.createElement(name), fields);
  made.append(...children);
  return made;
}

function headers() {
  const token = $("token").value;
  return { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
}

async function ask(path, body, signal) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const answer = await fetch(path, { ...options, headers: headers(), signal });
  if (answer.ok) return answer;
  let said = `status ${answer.status}`;
  try { said = (await answer.json()).error.message; } catch { /* the answer is no JSON */ }
  throw new Error(said);
}

// The parsed parts of a stream of server-sent events.
async function* parts(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const part = JSON.parse(line.slice(6));
      if (part.error) throw new Error(part.error.message);
      yield part;
    }
  }
}

function settings() {
  const found = { model: $("model").value };
  for (const [name, , , , , usual] of SLIDERS) {
    const value = Number($(name).value);
    if (ALWAYS.has(name) || value !== usual) found[name] = value;
  }
  const stops = $("stops").value.split("\n").filter((line) => line);
  if (stops.length) found.stop = stops;
  if ($("regex").value) found.regex = $("regex").value;
  if ($("schema").value.trim()) {
    try { found.json_schema = JSON.parse($("schema").value); } catch { throw new Error("the JSON schema is no JSON"); }
  }
  return found;
}

function colour(probability) {
  return `hsl(${Math.round(140 * probability)} ${Math.round(80 - 20 * probability)}% 79%)`;
}

function visible(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣") || "(nothing)";
}

function rows(list, chosen) {
  const table = el("table");
  for (const { token, probability } of list) {
    const bar = el("div", { className: "bar" });
    bar.style.width = `${Math.max(1, 100 * probability)}%`;
    table.append(el("tr", { className: token === chosen ? "chosen" : "" }, el("td", { textContent: visible(token) }),
      el("td", { textContent: probability.toFixed(3) }), el("td", {}, bar)));
  }
  return table;
}

function tip(span) {
  const { token, logprob, others } = span.data;
  const list = others.map((each) => ({ token: each.token, probability: Math.exp(each.logprob) }));
  if (!others.some((each) => each.token === token)) list.push({ token, probability: Math.exp(logprob) });
  $("tip").replaceChildren(rows(list, token));
  $("tip").hidden = false;
  const at = span.getBoundingClientRect(), size = $("tip").getBoundingClientRect();
  $("tip").style.left = `${Math.max(4, Math.min(at.left, innerWidth - size.width - 8))}px`;
  const below = at.bottom + 6;
  $("tip").style.top = `${below + size.height < innerHeight ? below : Math.max(4, at.top - size.height - 6)}px`;
}

function untip() {
  $("tip").hidden = true;
  document.querySelectorAll(".tok.at").forEach((each) => each.classList.remove("at"));
}

// A token of which the model knows the probability; `text` is what it adds to the text.
function token(text, { token: name, logprob, top_logprobs: others }) {
  const span = el("span", { className: "tok", textContent: text || (name.startsWith("<") ? name : "") });
  span.data = { token: name, logprob, others };
  span.style.background = colour(Math.exp(logprob));
  span.addEventListener("pointerenter", () => tip(span));
  span.addEventListener("pointerleave", untip);
  span.addEventListener("click", () => tip(span));
  return span;
}

// The log-probabilities of /v1/completions in the form of those of /v1/chat/completions.
function listed(choice) {
  const given = choice.logprobs;
  if (!given) return [];
  if (given.content) return given.content;
  return given.tokens.map((name, i) => ({
    token: name, logprob: given.token_logprobs[i],
    top_logprobs: Object.entries(given.top_logprobs[i]).map(([other, logprob]) => ({ token: other, logprob })),
  }));
}

async function stream(path, body, place, state, button) {
  if (running) running.abort();
  const mine = running = new AbortController();
  button.disabled = false;
  state.className = "";
  const begin = performance.now();
  let count = 0, text = "";
  try {
    const answer = await ask(path, { ...body, stream: true }, mine.signal);
    for await (const part of parts(answer)) {
      const choice = part.choices[0];
      if (!choice) continue;
      const new_ = choice.delta ? choice.delta.content || "" : choice.text;
      const of = listed(choice);
      text += new_;
      if (of.length) place.append(token(new_, of[0]));
      else if (new_) place.append(new_);
      count += of.length;
      const seconds = (performance.now() - begin) / 1000;
      state.textContent = `${count} tokens, ${(count / seconds).toFixed(1)} a second`
        + (choice.finish_reason ? `; ended by ${choice.finish_reason}` : "");
    }
  } catch (error) {
    if (error.name === "AbortError") state.textContent += "; stopped";
    else { state.textContent = error.message; state.className = "bad"; }
  } finally {
    if (running === mine) { running = null; button.disabled = true; }
  }
  return text;
}

async function write() {
  const place = $("written"), prompt = $("prompt").value;
  let body;
  try { body = { ...settings(), prompt, logprobs: ALTERNATIVES }; } catch (error) { return fail($("state"), error); }
  const model = models.find((each) => each.id === body.model);
  place.replaceChildren();
  if (model.lmjax.family === "decoder") place.append(el("span", { className: "given", textContent: prompt }));
  await stream("v1/completions", body, place, $("state"), $("stop"));
}

function fail(state, error) {
  state.textContent = error.message;
  state.className = "bad";
}

function show(role, text) {
  const made = el("div", { className: `said ${role}`, textContent: text });
  $("talk").append(made);
  return made;
}

async function answer() {
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...talk];
  let body;
  try { body = { ...settings(), messages, logprobs: true, top_logprobs: ALTERNATIVES }; } catch (error) { return fail($("chat-state"), error); }
  const place = show("assistant", "");
  const text = await stream("v1/chat/completions", body, place, $("chat-state"), $("halt"));
  if (text || place.childNodes.length) talk.push({ role: "assistant", content: text });
  else place.remove();
}

async function send() {
  const content = $("message").value.trim();
  if (!content || running) return;
  talk.push({ role: "user", content });
  show("user", content);
  $("message").value = "";
  await answer();
}

async function again() {
  if (running || !talk.length) return;
  if (talk[talk.length - 1].role === "assistant") { talk.pop(); $("talk").lastChild.remove(); }
  await answer();
}

async function fill() {
  $("fillings").replaceChildren();
  $("mask-state").textContent = "";
  $("mask-state").className = "";
  try {
    const found = await (await ask("fill-mask", { model: $("model").value, texts: [$("masked").value], top_k: 10 })).json();
    found.fillings[0].forEach((mask, i) => {
      const list = mask.map(({ text, probability }) => ({ token: text, probability }));
      $("fillings").append(el("div", { className: "one" }, el("h2", { textContent: `Mask ${i + 1}` }), rows(list)));
    });
  } catch (error) { fail($("mask-state"), error); }
}

function choose(tab) {
  $("writing").hidden = tab !== "text" && tab !== "chat";
  for (const name of Object.keys(TABS)) {
    $(name).hidden = name !== tab;
    $(`tab-${name}`).setAttribute("aria-selected", String(name === tab));
    $(`tab-${name}`).tabIndex = name === tab ? 0 : -1;
  }
}

// Hides what the model cannot do.
function fit() {
  const model = models.find((each) => each.id === $("model").value);
  if (!model) return;
  const { writes, chats, fills, beams, family } = model.lmjax;
  const can = { text: writes, chat: chats, beams: beams > 0, mask: fills, attention: true };
  for (const [name, able] of Object.entries(can)) $(`tab-${name}`).hidden = !able;
  const now = Object.keys(can).find((name) => !$(name).hidden);
  if (!can[now]) choose(Object.keys(can).find((name) => can[name]));
  $("beam-count").max = beams;
  if (Number($("beam-count").value) > beams) $("beam-count").value = beams;
  $("targets").hidden = family !== "encoder_decoder";
  $("max_tokens").max = Math.max(2, model.lmjax.max_length - 1);
  $("max_tokens").dispatchEvent(new Event("input"));
}

async function load() {
  try {
    models = (await (await ask("v1/models")).json()).data;
    $("model").replaceChildren(...models.map((each) => el("option", { value: each.id, textContent: each.id })));
    $("state").textContent = "";
    fit();
  } catch (error) { fail($("state"), error); }
}

function sliders() {
  for (const [name, text, min, max, step, value] of SLIDERS) {
    const input = el("input", { type: "range", id: name, min, max, step, value });
    const shown = el("output", { textContent: value });
    input.addEventListener("input", () => { shown.textContent = input.value; });
    $("sliders").append(el("div", { className: "slider" }, el("label", { htmlFor: name, textContent: text }), shown, input));
  }
}

function defaults() {
  for (const [name, , , , , value] of SLIDERS) {
    $(name).value = value;
    $(name).dispatchEvent(new Event("input"));
  }
  for (const name of ["stops", "regex", "schema"]) $(name).value = "";
}

function stop() { if (running) running.abort(); }

// The arrow keys go through the tokens of the text.
function walk(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const all = [...$("written").querySelectorAll(".tok")];
  const at = all.findIndex((each) => each.classList.contains("at"));
  const next = all[Math.max(0, Math.min(all.length - 1, at + step))];
  untip();
  if (next) { next.classList.add("at"); tip(next); }
  event.preventDefault();
}

sliders();
$("write").addEventListener("click", write);
$("send").addEventListener("click", send);
$("again").addEventListener("click", again);
$("fill").addEventListener("click", fill);
for (const name of ["stop", "halt"]) $(name).addEventListener("click", stop);
$("new").addEventListener("click", () => { stop(); talk = []; $("talk").replaceChildren(); });
$("defaults").addEventListener("click", defaults);
$("model").addEventListener("change", fit);
$("written").addEventListener("keydown", walk);
$("written").addEventListener("blur", untip);
$("token").value = sessionStorage.getItem("token") || "";
$("token").addEventListener("change", () => { sessionStorage.setItem("token", $("token").value); load(); });
for (const name of Object.keys(TABS)) {
  $(`tab-${name}`).addEventListener("click", () => choose(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const able = Object.keys(TABS).filter((each) => !$(`tab-${each}`).hidden);
    const next = able[(able.indexOf(name) + step + able.length) % able.length];
    choose(next);
    $(`tab-${next}`).focus();
  });
}
for (const name of ["resize", "scroll"]) addEventListener(name, untip);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { stop(); untip(); }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    Object.entries(TABS).find(([name]) => !$(name).hidden)[1]();
  }
});
// A link may name the tab and the prompt: /#tab=text&prompt=...
load().then(() => {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.has("tab") && given.get("tab") in TABS) choose(given.get("tab"));
  if (given.has("prompt")) for (const name of ["prompt", "beam-prompt", "looked"]) $(name).value = given.get("prompt");
});
