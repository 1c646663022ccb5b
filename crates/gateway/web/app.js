// The page's entry: views by the address's #, and live data for all of them.

import * as chat from "./js/chat.js";
import { byId, setAttribute, setText } from "./js/dom.js";
import { clean, plural } from "./js/format.js";
import { follow } from "./js/live.js";
import { showNetwork } from "./js/network.js";
import { showNode, tone } from "./js/node.js";

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
  setText(byId("pill-text"), "not reachable, trying again…");
  setAttribute(byId("pill"), "data-tone", "bad");
  answerable = null;
}

chat.start();
addEventListener("hashchange", showView);
showView();
chat.refreshModels();
follow(onSnapshot, onLost);
