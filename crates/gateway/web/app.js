// The page's entry: views by the address's #, and live data for all of them.

import * as chat from "./js/chat.js";
import { byId, setAttribute, setText } from "./js/dom.js";
import { clean, plural } from "./js/format.js";
import * as key from "./js/key.js";
import { follow } from "./js/live.js";
import { showNetwork } from "./js/network.js";
import { sentence, showNode, tone } from "./js/node.js";

const VIEWS = { chat: "Chat", node: "My node", network: "Network" };

let latest = null;
let answerable = null;

function currentView() {
  const name = location.hash.slice(1);
  return name in VIEWS ? name : "chat";
}

function showView() {
  const current = currentView();
  for (const name of Object.keys(VIEWS)) byId(name).hidden = name !== current;
  for (const link of document.querySelectorAll("nav a")) {
    setAttribute(link, "aria-current", link.dataset.view === current ? "page" : null);
  }
  document.body.dataset.view = current;
  document.title = current === "chat" ? "OpenGrid" : `${VIEWS[current]} · OpenGrid`;
  if (latest) draw(latest);
  if (current === "chat" && matchMedia("(hover: hover)").matches) byId("prompt").focus({ preventScroll: true });
}

function draw(snapshot) {
  const current = currentView();
  if (current === "node") showNode(snapshot);
  if (current === "network") showNetwork(snapshot);
}

function onSnapshot(snapshot) {
  latest = snapshot;
  showRefusal(null);
  const { status, models } = snapshot;
  const state = clean(status.state, 80) || "running";
  setText(byId("pill-text"), `${state} · ${plural(status.peers, "peer")}`);
  setAttribute(byId("pill"), "data-tone", tone(status));
  setAttribute(byId("pill"), "title", state);
  const now = models.filter((model) => model.workers > 0).map((model) => clean(model.id, 128)).sort().join("\n");
  if (now !== answerable) {
    answerable = now;
    chat.refreshModels();
  }
  draw(snapshot);
}

function onLost() {
  const text = key.isWanted() ? "needs an API key" : "not reachable, trying again…";
  setText(byId("pill-text"), text);
  setAttribute(byId("pill"), "data-tone", "bad");
  answerable = null;
}

/** The key opens `/v1` at most: the chat works, the rest says why it does not. */
function onRefused(error) {
  setText(byId("pill-text"), "this key opens the chat only");
  setAttribute(byId("pill"), "data-tone", "wait");
  showRefusal(error.message);
  chat.refreshModels();
}

/** In place of what the key does not open; `null` shows it again. */
function showRefusal(message) {
  for (const id of ["node-body", "network-body"]) byId(id).hidden = message !== null;
  for (const element of document.querySelectorAll(".refusal")) {
    element.hidden = message === null;
    setText(element, message === null ? "" : `${sentence(message)}.`);
  }
}

key.start();
chat.start();
addEventListener("hashchange", showView);
showView();
chat.refreshModels();
follow(onSnapshot, onLost, onRefused);
