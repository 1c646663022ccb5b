// "My node": what this machine is and does.

import { byId, command, copyButton, h, keyed, setAttribute, setText } from "./dom.js";
import { bytes, clean, count, duration, list, plural, share, speed, whole } from "./format.js";
import * as key from "./key.js";

const NAT = {
  public: "public: other nodes can dial it",
  private: "private: behind a NAT, reached through relays or hole punching",
  unknown: "not known yet",
};
const ROLES = {
  edge: "edge: light models and audits",
  worker: "worker: serves models",
};

let view = null;

export function showNode({ status }) {
  view ??= build();
  setText(view.state, sentence(clean(status.state)) || "Running");
  setAttribute(view.hero, "data-tone", tone(status));
  const facts = [
    `version ${clean(status.version, 40) || "unknown"}`,
    `up for ${duration(status.uptime_seconds)}`,
    plural(status.peers, "peer"),
    plural(status.sessions_running, "answer running", "answers running"),
    plural(status.tokens_generated, "token computed", "tokens computed"),
  ];
  setText(view.facts, facts.join(" · "));
  showModels(list(status.models, 64));
  setText(view.peerId, clean(status.peer_id, 80));
  setText(view.role, ROLES[status.role] ?? clean(status.role, 40));
  setText(view.nat, NAT[status.nat] ?? clean(status.nat, 40));
  setText(view.api, clean(status.api, 120) || location.origin);
  const addresses = list(status.p2p_addresses, 16).map((address) => clean(address, 260));
  keyed(view.addresses, addresses, (address) => address, (address) => h("li", {}, h("code", {}, address)), () => {});
  setAttribute(view.noAddresses, "hidden", addresses.length > 0);
  const invite = clean(status.invite, 1100);
  setText(view.invite.firstChild, invite || "not known yet");
  setAttribute(view.invite.lastChild, "disabled", !invite);
}

/** The model, and which of its layers where not all are served. */
export const partName = (model) => clean(model.id, 128) + (model.layers ? ` layers ${clean(model.layers, 16)}` : "");

/** `good`, `busy` or `bad`, for the dot; the words say it, too. */
export function tone(status) {
  const state = clean(status.state).toLowerCase();
  if (/fail|error|cannot/.test(state)) return "bad";
  if (/load|drain|start|fetch|pull|restart|benchmark|test|wait|join|stop/.test(state)) return "wait";
  return "good";
}

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function build() {
  const made = {
    state: h("p", { class: "state" }),
    facts: h("p", { class: "muted" }),
    models: h("div", { class: "cards" }),
    idle: h("div", { class: "card soft" }),
    peerId: h("code", {}),
    role: h("dd", {}),
    nat: h("dd", {}),
    api: h("code", {}),
    addresses: h("ul", { class: "plain" }),
    noAddresses: h("span", { class: "muted" }, "none yet"),
    invite: command("", "Copy the invite"),
  };
  made.hero = h("div", { class: "card hero" }, h("span", { class: "dot big", "aria-hidden": "true" }), h("div", {}, made.state, made.facts));
  made.idle.append(
    h("p", {}, "This node serves no model itself: what you ask goes to others. To give the grid some of this machine, start it with"),
    command("opengrid up --serve smollm2-135m"),
  );
  const peerId = h("dd", { class: "with-copy" }, made.peerId, copyButton(() => made.peerId.textContent, "Copy the peer id"));
  const api = h("dd", {}, made.api);
  const identity = h(
    "dl",
    { class: "facts-list" },
    h("dt", {}, "Peer id"), peerId,
    h("dt", {}, "Role"), made.role,
    h("dt", {}, "Reachability"), made.nat,
    h("dt", {}, "API address"), api,
    h("dt", {}, "Peer-to-peer addresses"), h("dd", {}, made.noAddresses, made.addresses),
  );
  byId("node-body").replaceChildren(
    made.hero,
    h("h2", {}, "Models served here"),
    made.idle,
    made.models,
    h("div", { class: "columns" },
      h("div", {}, h("h2", {}, "Identity"), h("div", { class: "card" }, identity)),
      h("div", {},
        h("h2", {}, "Invite others"),
        h("div", { class: "card" },
          h("p", {}, "Who has this line can join this grid:"),
          made.invite,
          h("p", { class: "muted" }, "On their machine: ", h("code", {}, "opengrid up --join INVITE"))),
        h("h2", {}, "Use it from your programs"),
        h("div", { class: "card" },
          h("p", {}, `Any OpenAI client works with this base URL and ${key.current() === null ? "any key" : "an API key of this gateway"}:`),
          command(`${location.origin}/v1`, "Copy the base URL"))),
    ),
  );
  return made;
}

function showModels(models) {
  setAttribute(view.idle, "hidden", models.length > 0);
  const fastest = Math.max(1, ...models.map((model) => Number(model.decode_tokens_per_s) || 0));
  keyed(view.models, models, partName, newCard, (card, model) => update(card, model, fastest));
}

function newCard() {
  const parts = {
    name: h("h3", {}),
    state: h("span", { class: "chip" }),
    exact: h("span", { class: "chip quiet" }),
    slots: slotBar(),
    slotText: h("span", {}),
    decode: meter(),
    decodeText: h("span", {}),
    facts: h("p", { class: "muted" }),
  };
  const row = (label, bar, text) => h("div", { class: "gauge" }, h("span", { class: "label" }, label), bar, text);
  const card = h("article", { class: "card model" },
    h("div", { class: "head" }, parts.name, parts.state, parts.exact),
    row("Places", parts.slots, parts.slotText),
    row("Speed", parts.decode, parts.decodeText),
    parts.facts);
  card.parts = parts;
  return card;
}

function update({ parts }, model, fastest) {
  const state = clean(model.state, 120);
  setText(parts.name, partName(model));
  setText(parts.state, state);
  setAttribute(parts.state, "data-tone", state === "ready" ? "good" : state.startsWith("failed") ? "bad" : "wait");
  setText(parts.exact, classWord(model.class));
  setAttribute(parts.exact, "title", classHelp(model.class));
  showSlots(parts.slots, model);
  const queued = whole(model.queued, 65535);
  setText(parts.slotText, `${count(whole(model.slots_busy, 65535))} of ${count(whole(model.slots, 65535))} busy${queued ? `, ${count(queued)} waiting` : ""}`);
  setMeter(parts.decode, share(model.decode_tokens_per_s, fastest));
  setText(parts.decodeText, `${speed(model.decode_tokens_per_s)}, reads ${speed(model.prefill_tokens_per_s)}`);
  setText(parts.facts, `holds ${count(model.context_tokens)} tokens per answer · takes ${bytes(model.memory_bytes)} of memory`);
}

export const classWord = (value) => (clean(value).startsWith("exact") ? "exact" : "approximate");

export function classHelp(value) {
  const text = clean(value, 80);
  return text.startsWith("exact")
    ? `${text}: workers with the same value continue each other's answers to the letter`
    : "answers go on elsewhere when this worker leaves, later words may differ";
}

const SLOTS_DRAWN_MAX = 32;

/** One box per place; beyond 32, a plain bar. */
export function slotBar() {
  return h("span", { class: "slots", role: "img" });
}

export function showSlots(bar, model) {
  const slots = whole(model.slots, 65535);
  const busy = Math.min(slots, whole(model.slots_busy, 65535));
  setAttribute(bar, "aria-label", `${busy} of ${slots} places busy`);
  const boxes = slots > SLOTS_DRAWN_MAX ? SLOTS_DRAWN_MAX : slots;
  const filled = slots > SLOTS_DRAWN_MAX ? Math.ceil(share(busy, slots) * SLOTS_DRAWN_MAX) : busy;
  while (bar.childNodes.length < boxes) bar.append(h("i"));
  while (bar.childNodes.length > boxes) bar.lastChild.remove();
  bar.childNodes.forEach((box, index) => box.classList.toggle("on", index < filled));
}

function meter() {
  return h("span", { class: "meter", "aria-hidden": "true" }, h("i"));
}

function setMeter(bar, value) {
  bar.firstChild.style.width = `${Math.round(value * 100)}%`;
}

