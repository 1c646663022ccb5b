// The chat: one conversation in memory, one answer at a time.

import { announce, byId, copyButton, h, setText } from "./dom.js";
import { clean, duration, milliseconds, plural, shortId, speed } from "./format.js";
import { MISSING_SCOPE, RequestError, events, json, request } from "./http.js";
import { render } from "./markdown.js";

const IDEAS = [
  "Explain in three sentences how a tide works.",
  "Write a short poem about computers that help each other.",
  "Give me five ideas for a rainy afternoon.",
];
const NEAR_END_PX = 80;

const view = {};
/** What is sent: {role, content}. */
const conversation = [];
let answering = null;
let served = [];
/** Why there are none, if it is the key. */
let refused = null;
let chosen = null;

export function start() {
  for (const id of ["log", "welcome", "ideas", "composer", "hint", "prompt", "model", "settings", "temperature", "tokens", "seed", "fresh", "send", "stop"]) {
    view[id] = byId(id);
  }
  view.ideas.append(...IDEAS.map((text) => h("li", {}, h("button", { type: "button", onclick: () => take(text) }, text))));
  view.composer.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  view.prompt.addEventListener("keydown", onPromptKey);
  view.prompt.addEventListener("input", onPromptInput);
  view.model.addEventListener("change", () => (chosen = view.model.value));
  view.temperature.addEventListener("input", () => setText(byId("temperature-value"), view.temperature.value));
  view.stop.addEventListener("click", stop);
  view.fresh.addEventListener("click", reset);
  document.addEventListener("keydown", onPageKey);
  document.addEventListener("click", (event) => {
    if (!view.settings.contains(event.target)) view.settings.open = false;
  });
}

/** Asks which models can be answered now. */
export async function refreshModels() {
  try {
    const answer = await json("/v1/models");
    const talkers = (Array.isArray(answer?.data) ? answer.data : []).filter((model) => model?.task !== "embedding");
    served = talkers.map((model) => clean(model?.id, 128)).filter(Boolean).slice(0, 500);
    refused = null;
  } catch (error) {
    served = [];
    refused = error.code === MISSING_SCOPE ? error.message : null;
  }
  showModels();
}

function showModels() {
  if (!served.includes(chosen)) chosen = answering ? chosen : (served[0] ?? null);
  const options = served.map((id) => h("option", { value: id }, id));
  if (chosen && !served.includes(chosen)) options.unshift(h("option", { value: chosen }, `${chosen} (leaving)`));
  if (!options.length) options.push(h("option", { value: "" }, "no model can answer now"));
  if (options.map((o) => o.textContent).join("\n") !== [...view.model.options].map((o) => o.textContent).join("\n")) {
    view.model.replaceChildren(...options);
  }
  view.model.value = chosen ?? "";
  view.model.disabled = !served.length;
  view.hint.hidden = served.length > 0;
  if (refused) view.hint.replaceChildren(refused);
  else if (!served.length) {
    view.hint.replaceChildren("Nobody on this grid serves a model right now. On any machine: ", h("code", {}, "opengrid up --serve smollm2-135m"));
  }
  showButtons();
}

function showButtons() {
  const running = answering !== null;
  // A focused button that disappears would drop the keyboard's place.
  const lost = running ? document.activeElement === view.send : document.activeElement === view.stop;
  view.send.hidden = running;
  view.stop.hidden = !running;
  if (lost) view.prompt.focus();
  view.send.disabled = running || !served.length || !view.prompt.value.trim();
  view.fresh.hidden = conversation.length === 0;
}

function onPromptInput() {
  view.prompt.style.height = "auto";
  view.prompt.style.height = `${Math.min(view.prompt.scrollHeight, 220)}px`;
  showButtons();
}

function onPromptKey(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
}

function onPageKey(event) {
  if (event.key === "Escape") {
    if (view.settings.open) {
      view.settings.open = false;
      view.settings.querySelector("summary").focus();
    } else stop();
  }
  const typing = event.target.closest?.("input, textarea, select, dialog");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && document.body.dataset.view === "chat") {
    event.preventDefault();
    view.prompt.focus();
  }
}

function take(text) {
  view.prompt.value = text;
  onPromptInput();
  view.prompt.focus();
}

function stop() {
  answering?.abort();
}

function reset() {
  stop();
  conversation.length = 0;
  view.log.replaceChildren(view.welcome);
  showButtons();
  view.prompt.focus();
}

function submit() {
  const text = view.prompt.value.trim();
  if (!text || answering || !chosen || !served.length) return;
  view.prompt.value = "";
  onPromptInput();
  view.welcome.remove();
  conversation.push({ role: "user", content: text });
  view.log.append(h("article", { class: "turn user", "aria-label": "You" }, h("div", { class: "text", dir: "auto" }, text)));
  answer();
}

/** Answers the conversation's last message. */
async function answer() {
  const ending = new AbortController();
  answering = ending;
  const turn = newTurn();
  view.log.append(turn.element);
  view.log.setAttribute("aria-busy", "true");
  follow(true);
  showButtons();
  try {
    await streamInto(turn, ending.signal);
    announce("the answer is complete");
  } catch (error) {
    if (ending.signal.aborted) turn.stopped = true;
    else fail(turn, error);
  }
  if (answering === ending) answering = null;
  finish(turn);
  view.log.setAttribute("aria-busy", "false");
  showButtons();
}

function newTurn() {
  const body = h("div", { class: "text prose", dir: "auto" });
  const note = h("div", { class: "note" }, h("span", { class: "waiting" }, "finding a worker…"));
  const element = h("article", { class: "turn answer", "aria-label": "Answer" }, body, note);
  return { element, body, note, text: "", model: chosen, asked: performance.now(), first: null, last: null, pieces: 0, usage: null, worker: null, finish: null, stopped: false, error: null, frame: 0 };
}

function bodyOf(turn) {
  const temperature = Number.parseFloat(view.temperature.value);
  const tokens = Number.parseInt(view.tokens.value, 10);
  const seed = Number.parseInt(view.seed.value, 10);
  return {
    model: turn.model,
    messages: conversation,
    stream: true,
    stream_options: { include_usage: true },
    temperature: Number.isFinite(temperature) ? temperature : undefined,
    max_tokens: tokens >= 1 ? tokens : undefined,
    seed: Number.isFinite(seed) ? seed : undefined,
  };
}

async function streamInto(turn, signal) {
  const options = { method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(bodyOf(turn)) };
  const response = await request("/v1/chat/completions", options);
  turn.worker = clean(response.headers.get("x-opengrid-worker"), 80) || null;
  setText(turn.note.firstChild, turn.worker ? `${shortId(turn.worker)} is reading…` : "reading…");
  for await (const data of events(response)) {
    if (data === null) {
      if (turn.first === null) setText(turn.note.firstChild, "waiting for a free place…");
      continue;
    }
    if (data === "[DONE]") return;
    consume(turn, JSON.parse(data));
  }
  throw new RequestError("the answer broke off: the connection to this node ended", 0);
}

function consume(turn, chunk) {
  if (chunk.error) throw new RequestError(clean(chunk.error.message, 500) || "the answer failed", 200);
  if (chunk.usage) turn.usage = chunk.usage;
  const choice = Array.isArray(chunk.choices) ? chunk.choices[0] : null;
  if (!choice) return;
  if (typeof choice.finish_reason === "string") turn.finish = choice.finish_reason;
  const piece = choice.delta?.content;
  if (typeof piece !== "string" || piece === "") return;
  turn.last = performance.now();
  turn.first ??= turn.last;
  turn.pieces += 1;
  turn.text += piece;
  // Once a frame, however many tokens arrive.
  turn.frame ||= requestAnimationFrame(() => draw(turn));
}

function draw(turn) {
  turn.frame = 0;
  const atEnd = isNearEnd();
  render(turn.body, turn.text);
  if (answering && turn.first !== null) {
    const rate = rateOf(turn.pieces - 1, turn);
    setText(turn.note.firstChild, [turn.worker && shortId(turn.worker), rate > 0 && `about ${speed(rate)}`].filter(Boolean).join(" · ") || "answering…");
  }
  follow(atEnd);
}

const rateOf = (tokens, turn) => (turn.last > turn.first ? (tokens * 1000) / (turn.last - turn.first) : 0);

function isNearEnd() {
  return view.log.scrollHeight - view.log.scrollTop - view.log.clientHeight < NEAR_END_PX;
}

function follow(always) {
  if (always) view.log.scrollTop = view.log.scrollHeight;
}

function fail(turn, error) {
  turn.error = error instanceof RequestError ? error : new RequestError("the gateway's answer could not be read", 0);
  announce(turn.error.message);
}

/** The line below an answer, and what of the conversation is kept. */
function finish(turn) {
  cancelAnimationFrame(turn.frame);
  const atEnd = isNearEnd();
  render(turn.body, turn.text);
  // A reset while answering took the conversation away: nothing to add to.
  if (turn.element.isConnected && turn.text) conversation.push({ role: "assistant", content: turn.text });
  turn.note.replaceChildren(...noteOf(turn));
  turn.element.classList.toggle("failed", Boolean(turn.error));
  follow(atEnd);
}

function noteOf(turn) {
  const parts = [];
  if (turn.worker && turn.text) parts.push(h("span", { title: `worker ${turn.worker}`, class: "worker" }, "answered by ", h("code", {}, shortId(turn.worker))));
  const tokens = Number.isFinite(turn.usage?.completion_tokens) ? turn.usage.completion_tokens : turn.pieces;
  if (turn.text) {
    const rate = rateOf(Math.max(0, tokens - 1), turn);
    if (rate > 0) parts.push(h("span", { class: "rate" }, speed(rate)));
    parts.push(h("span", {}, plural(tokens, "token")));
    parts.push(h("span", {}, `first after ${milliseconds(turn.first - turn.asked)}`));
  }
  if (turn.finish === "length") parts.push(h("span", {}, "ended at the token limit"));
  if (turn.stopped) parts.push(h("span", {}, "stopped"));
  if (turn.text) parts.push(copyButton(() => turn.text, "Copy the answer"));
  return turn.error ? [problem(turn), h("div", { class: "facts" }, parts)] : [h("div", { class: "facts" }, parts)];
}

function problem(turn) {
  const { error } = turn;
  const again = error.retryAfter ? ` Try again in ${duration(error.retryAfter)}.` : "";
  const mend = error.code === "context_length_exceeded" ? " Start a new chat, or allow fewer tokens for the answer." : "";
  const retry = h("button", { type: "button", class: "quiet", onclick: () => repeat(turn) }, "Try again");
  return h("div", { class: "problem", role: "alert" }, h("span", {}, `${sentence(error.message)}${mend}${again}`), retry);
}

function sentence(text) {
  const start = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(start) ? start : `${start}.`;
}

function repeat(turn) {
  if (answering) return;
  if (conversation.at(-1)?.role === "assistant") conversation.pop();
  turn.element.remove();
  if (!served.includes(chosen)) chosen = served[0] ?? chosen;
  if (conversation.length) answer();
}

