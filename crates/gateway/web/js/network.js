// "Network": the picture, who serves what, and every peer.

import { byId, command, h, keyed, setAttribute, setText } from "./dom.js";
import { bytes, clean, count, list, milliseconds, plural, shortId, speed, whole } from "./format.js";
import { Graph } from "./graph.js";
import { classHelp, classWord, partName, showSlots, slotBar } from "./node.js";

/** Most rows of a table; a grid may have thousands of nodes. */
const ROWS_MAX = 200;
const PATHS = { direct: "direct", relayed: "relayed", none: "not connected" };

let view = null;

export function showNetwork(snapshot) {
  view ??= build();
  const { status, peers, models } = snapshot;
  const nodes = [{ ...status, me: true }, ...peers];
  const served = nodes.flatMap((node) => list(node.models, 32)).filter(Boolean);
  const sum = (name) => served.reduce((total, model) => total + whole(model[name], 65535), 0);
  const speeds = served.reduce((total, model) => total + Math.min(1e6, Math.max(0, Number(model.decode_tokens_per_s) || 0)), 0);
  setText(view.connected, count(peers.filter((peer) => peer.connected).length));
  setText(view.answerable, `${count(models.filter((model) => model.workers > 0).length)} of ${count(models.length)}`);
  setText(view.busy, `${count(sum("slots_busy"))} of ${count(sum("slots"))}`);
  setText(view.speed, speeds > 0 ? speed(speeds).replace(" tok/s", "") : "–");
  setAttribute(view.graph.element, "hidden", peers.length === 0);
  view.graph.show(snapshot);
  showModels(models);
  showCoverage(models.filter((model) => model.coverage));
  showPipelines(list(status.pipelines, 64).filter(Boolean));
  showPeers(peers);
}

function build() {
  const made = { graph: new Graph() };
  const tile = (name, label, unit) => {
    made[name] = h("strong", {}, "–");
    return h("div", { class: "tile" }, h("span", { class: "muted" }, label), h("p", {}, made[name], unit ? h("small", {}, ` ${unit}`) : null));
  };
  const tiles = h("div", { class: "tiles" },
    tile("connected", "Connected peers"),
    tile("answerable", "Models that can answer"),
    tile("busy", "Places busy"),
    tile("speed", "Combined speed", "tok/s"));
  setAttribute(made.speed.closest(".tile"), "title", "decode speeds that the workers measured, one answer on each");
  made.models = table("Models", ["Model", "Workers", "Size", "Context", "Licence", "Here"]);
  made.coverage = table("Models in parts", ["Model", "Chains", "Nobody holds", "Layers"]);
  made.pipelines = table("Answers over several nodes", ["Model", "Tokens", "Lap", "Mended", "Stages"]);
  made.peers = table("Peers", ["Peer", "Connection", "Round trip", "Serves", "Version"]);
  made.coverageTitle = h("h2", {}, "Models in parts");
  made.pipelinesTitle = h("h2", {}, "Answers over several nodes");
  made.morePeers = h("p", { class: "muted", hidden: true });
  made.noPeers = h("div", { class: "card soft" },
    h("p", {}, "No other node is known yet. Give somebody this node's invite (My node), or join theirs:"),
    command("opengrid join INVITE"));
  byId("network-body").replaceChildren(
    tiles,
    made.graph.element,
    h("h2", {}, "Models"),
    made.models.element,
    made.coverageTitle,
    made.coverage.element,
    made.pipelinesTitle,
    made.pipelines.element,
    h("h2", {}, "Peers"),
    made.noPeers,
    made.peers.element,
    made.morePeers,
  );
  return made;
}

/** On narrow screens each row becomes a card: `data-label` names its cells. */
function table(label, columns) {
  const body = h("tbody", { role: "rowgroup" });
  const head = h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((column) => h("th", { scope: "col", role: "columnheader" }, column))));
  // Roles are spelt out: browsers drop a table's own when CSS makes cards of it.
  const element = h("div", { class: "card table" }, h("table", { role: "table", "aria-label": label }, head, body));
  return { element, body, columns };
}

function newRow(columns) {
  return h("tr", { role: "row" }, columns.map((label, index) => h(index ? "td" : "th", { role: index ? "cell" : "rowheader", scope: index ? null : "row", "data-label": label })));
}

function showModels(models) {
  const sorted = [...models].sort((a, b) => (b.workers > 0) - (a.workers > 0) || (clean(a.id, 128) < clean(b.id, 128) ? -1 : 1)).slice(0, ROWS_MAX);
  setAttribute(view.models.element, "hidden", sorted.length === 0);
  keyed(view.models.body, sorted, (model) => clean(model.id, 128), () => newModel(view.models.columns), updateModel);
}

function newModel(columns) {
  const row = newRow(columns);
  row.firstChild.append(h("span", { class: "name" }), h("span", { class: "chip quiet" }));
  row.childNodes[1].append(h("span", {}), command("", "Copy the command"));
  for (const cell of [2, 3, 4, 5]) row.childNodes[cell].append(h("span", { class: "short" }));
  return row;
}

function updateModel(row, model) {
  const [name, workers, size, context, licence, here] = row.childNodes;
  const id = clean(model.id, 128);
  setText(name.firstChild, id);
  setText(name.lastChild, clean(model.class, 20));
  setAttribute(name.lastChild, "hidden", !model.class);
  const some = whole(model.workers) > 0;
  setText(workers.firstChild, some ? plural(model.workers, "worker") : "nobody serves this");
  setAttribute(workers.firstChild, "class", some ? "chip" : "muted");
  setAttribute(workers.firstChild, "data-tone", some ? "good" : null);
  setAttribute(workers.lastChild, "hidden", some);
  setText(workers.lastChild.firstChild, `opengrid up --serve ${id}`);
  setText(size.firstChild, bytes(model.size_bytes));
  setText(context.firstChild, whole(model.context_tokens) > 0 ? `${count(model.context_tokens)} tokens` : "–");
  setText(licence.firstChild, clean(model.licence, 40) || "–");
  setText(here.firstChild, model.local ? "on disk" : "no");
}

function showCoverage(models) {
  for (const element of [view.coverageTitle, view.coverage.element]) setAttribute(element, "hidden", models.length === 0);
  keyed(view.coverage.body, models, (model) => clean(model.id, 128), () => newCoverage(view.coverage.columns), updateCoverage);
}

function newCoverage(columns) {
  const row = newRow(columns);
  for (const cell of [0, 1, 2]) row.childNodes[cell].append(h("span", {}));
  row.childNodes[3].append(h("div", { class: "layers", role: "img" }));
  return row;
}

/** A bar as long as the model, a piece for each range, the darker the more nodes hold it. */
function updateCoverage(row, model) {
  const [name, chains, gaps, layers] = row.childNodes;
  const coverage = model.coverage;
  const all = Math.max(1, whole(coverage.layer_count, 65535));
  const missing = list(coverage.gaps, 64).map((gap) => clean(gap, 16));
  setText(name.firstChild, clean(model.id, 128));
  setText(chains.firstChild, count(coverage.chains));
  setText(gaps.firstChild, missing.length ? missing.join(", ") : "–");
  setAttribute(gaps.firstChild, "class", missing.length ? "chip" : null);
  setAttribute(gaps.firstChild, "data-tone", missing.length ? "bad" : null);
  const held = list(coverage.stages, 256).filter(Boolean);
  const words = held.map((stage) => `${clean(stage.layers, 16)}: ${plural(list(stage.holders, 4096).length, "node")}`);
  setAttribute(layers.firstChild, "aria-label", words.join(", "));
  keyed(layers.firstChild, held, (stage) => clean(stage.layers, 16), () => h("span", { class: "range" }), (piece, stage) => {
    const [from, to] = clean(stage.layers, 16).split("..").map((number) => Math.min(all, Math.max(0, Number(number) || 0)));
    piece.style.left = `${(100 * from) / all}%`;
    piece.style.width = `${(100 * Math.max(0, to - from)) / all}%`;
    piece.style.opacity = String(Math.min(1, 0.4 + 0.15 * list(stage.holders, 4096).length));
    setAttribute(piece, "title", `${clean(stage.layers, 16)}: ${plural(list(stage.holders, 4096).length, "node")}`);
  });
}

function showPipelines(pipelines) {
  for (const element of [view.pipelinesTitle, view.pipelines.element]) setAttribute(element, "hidden", pipelines.length === 0);
  const rows = pipelines.map((pipeline, index) => ({ ...pipeline, index }));
  keyed(view.pipelines.body, rows, (row) => row.index, () => newPipeline(view.pipelines.columns), updatePipeline);
}

function newPipeline(columns) {
  const row = newRow(columns);
  for (const cell of [0, 1, 2, 3]) row.childNodes[cell].append(h("span", {}));
  row.childNodes[4].append(h("div", { class: "serves" }));
  return row;
}

function updatePipeline(row, pipeline) {
  const [model, tokens, lap, mended, stages] = row.childNodes;
  setText(model.firstChild, clean(pipeline.model, 128));
  setText(tokens.firstChild, count(pipeline.tokens));
  setText(lap.firstChild, milliseconds(pipeline.lap_ms));
  setText(mended.firstChild, plural(Math.max(0, whole(pipeline.put_together) - 1), "time"));
  const parts = list(pipeline.stages, 64).filter(Boolean);
  keyed(stages.firstChild, parts, (stage) => clean(stage.layers, 16), () => h("span", {}), (element, stage) => {
    setText(element, `${clean(stage.layers, 16)} ${shortId(stage.peer_id)}: ${milliseconds(stage.compute_ms)}, then ${milliseconds(stage.way_ms)} on the way`);
  });
}

function showPeers(peers) {
  const rank = (peer) => (peer.connected ? 0 : 2) + (list(peer.models, 1).length ? 0 : 1);
  const sorted = [...peers].sort((a, b) => rank(a) - rank(b) || (clean(a.peer_id, 80) < clean(b.peer_id, 80) ? -1 : 1));
  const shown = sorted.slice(0, ROWS_MAX);
  setAttribute(view.peers.element, "hidden", shown.length === 0);
  setAttribute(view.noPeers, "hidden", shown.length > 0);
  setAttribute(view.morePeers, "hidden", sorted.length <= ROWS_MAX);
  setText(view.morePeers, `and ${count(sorted.length - ROWS_MAX)} more: see opengrid peers --json`);
  keyed(view.peers.body, shown, (peer) => clean(peer.peer_id, 80), () => newPeer(view.peers.columns), updatePeer);
}

function newPeer(columns) {
  const row = newRow(columns);
  row.firstChild.append(h("code", {}));
  row.childNodes[1].append(h("span", { class: "chip" }));
  for (const cell of [2, 4]) row.childNodes[cell].append(h("span", {}));
  row.childNodes[3].append(h("div", { class: "serves" }), h("span", { class: "muted" }, "nothing"));
  return row;
}

function updatePeer(row, peer) {
  const [id, connection, trip, serves, version] = row.childNodes;
  setText(id.firstChild, shortId(peer.peer_id));
  setAttribute(id.firstChild, "title", clean(peer.peer_id, 80));
  const path = peer.connected ? clean(peer.path, 20) : "none";
  setText(connection.firstChild, PATHS[path] ?? "unknown");
  setAttribute(connection.firstChild, "data-tone", { direct: "good", relayed: "wait" }[path] ?? null);
  const addresses = list(peer.addresses, 8).map((address) => clean(address, 260)).join("\n");
  setAttribute(connection.firstChild, "title", addresses || null);
  setText(trip.firstChild, milliseconds(peer.rtt_ms));
  const models = list(peer.models, 32).filter(Boolean);
  keyed(serves.firstChild, models, partName, newServed, updateServed);
  setAttribute(serves.lastChild, "hidden", models.length > 0);
  setText(version.firstChild, clean(peer.version, 40) || "–");
}

function newServed() {
  return h("div", { class: "served" }, h("span", { class: "name" }), slotBar(), h("span", { class: "muted" }));
}

function updateServed(element, model) {
  const [name, bar, text] = element.childNodes;
  setText(name, partName(model));
  setAttribute(name, "title", `${classWord(model.class)}: ${classHelp(model.class)}`);
  showSlots(bar, model);
  const queued = whole(model.queued, 65535);
  const facts = [speed(model.decode_tokens_per_s), queued && `${count(queued)} waiting`, model.draining && "leaving"];
  setText(text, facts.filter(Boolean).join(" · "));
}
