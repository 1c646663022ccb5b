// The picture of the network: this node in the middle, peers around it, lines for connections.

import { h, keyed, s, setAttribute, setText } from "./dom.js";
import { clean, list, share, shortId, whole } from "./format.js";

/** Most peers that are drawn; the table has more. */
const PEERS_DRAWN_MAX = 60;
const LABELS_MAX = 16;
const COLOURS = 6;

export class Graph {
  constructor() {
    this.edges = s("g", { class: "edges" });
    this.nodes = s("g", { class: "nodes" });
    this.svg = s("svg", { class: "graph", role: "img" }, this.edges, this.nodes);
    this.legend = h("ul", { class: "legend", "aria-label": "Legend" });
    this.element = h("figure", { class: "card figure" }, this.svg, h("figcaption", {}, this.legend));
    this.snapshot = null;
    new ResizeObserver(() => this.snapshot && this.show(this.snapshot)).observe(this.element);
  }

  show(snapshot) {
    this.snapshot = snapshot;
    const width = this.element.clientWidth;
    if (width === 0) return;
    const height = Math.round(Math.min(440, Math.max(300, width * 0.5)));
    setAttribute(this.svg, "viewBox", `0 0 ${width} ${height}`);
    this.svg.style.height = `${height}px`;
    const peers = snapshot.peers.filter((peer) => peer.peer_id).sort(byId).slice(0, PEERS_DRAWN_MAX);
    const colours = colourOf([snapshot.status, ...peers]);
    const me = { id: clean(snapshot.status.peer_id, 80), x: width / 2, y: height / 2, models: list(snapshot.status.models, 32), me: true };
    const around = peers.map((peer, index) => ({
      id: clean(peer.peer_id, 80),
      models: list(peer.models, 32),
      path: peer.connected ? clean(peer.path, 20) : "none",
      ...place(index, peers.length, width, height),
    }));
    const labelled = around.length <= (width < 520 ? LABELS_MAX / 2 : LABELS_MAX);
    this.svg.classList.toggle("crowded", !labelled);
    keyed(this.edges, around.filter((node) => node.path !== "none"), (node) => node.id, newEdge, (line, node) => drawEdge(line, me, node));
    keyed(this.nodes, [...around, me], (node) => node.id, newNode, (group, node) => drawNode(group, node, colours));
    setAttribute(this.svg, "aria-label", summary(around));
    this.showLegend(colours, snapshot.peers.length - peers.length);
  }

  showLegend(colours, hidden) {
    const rows = [...colours].map(([model, colour]) => ({ key: `model ${model}`, mark: `swatch c${colour}`, text: model }));
    rows.push({ key: "direct", mark: "line", text: "direct" }, { key: "relayed", mark: "line relayed", text: "through a relay" }, { key: "known", mark: "ring", text: "known, not connected" });
    if (hidden > 0) rows.push({ key: "hidden", mark: "", text: `${hidden} more in the table` });
    keyed(this.legend, rows, (row) => row.key, () => h("li", {}, h("span", { "aria-hidden": "true" }), h("span", {})), (item, row) => {
      setAttribute(item.firstChild, "class", row.mark);
      setText(item.lastChild, row.text);
    });
  }
}

const byId = (a, b) => (clean(a.peer_id, 80) < clean(b.peer_id, 80) ? -1 : 1);

/** Model id to colour number, in the models' order of names, so that colours stay. */
function colourOf(nodes) {
  const models = new Set(nodes.flatMap((node) => list(node.models, 32).map((model) => clean(model?.id, 128))));
  return new Map([...models].filter(Boolean).sort().slice(0, COLOURS).map((model, index) => [model, index]));
}

/** Ellipses around the middle: 12 nodes on the inner one, the others outside. */
function place(index, total, width, height) {
  const inner = total <= 14 ? total : Math.ceil(total / 3);
  const ring = index < inner ? 0 : 1;
  const [position, size] = ring === 0 ? [index, inner] : [index - inner, total - inner];
  const reach = total <= 14 ? 0.76 : ring === 0 ? 0.5 : 0.86;
  const angle = (2 * Math.PI * (position + (ring ? 0.5 : 0))) / size - Math.PI / 2 + (size <= 2 ? Math.PI / 2 : 0);
  const [rx, ry] = [Math.min(width / 2 - 44, 420), height / 2 - 34];
  return { x: width / 2 + Math.cos(angle) * rx * reach, y: height / 2 + Math.sin(angle) * ry * reach, above: Math.sin(angle) < -0.3 };
}

function newEdge() {
  return s("line");
}

function drawEdge(line, me, node) {
  setAttribute(line, "class", `edge ${node.path === "relayed" ? "relayed" : "direct"}`);
  for (const [name, value] of [["x1", me.x], ["y1", me.y], ["x2", node.x], ["y2", node.y]]) setAttribute(line, name, value.toFixed(1));
}

const CIRCUMFERENCE = 100;

function newNode() {
  const circle = (kind, r, extra = {}) => s("circle", { class: kind, r, ...extra });
  return s("g", { class: "peer" },
    s("title"),
    circle("disc", 16),
    // Drawn in hundredths of its length, from the top.
    circle("load", 20, { pathLength: CIRCUMFERENCE, transform: "rotate(-90)" }),
    s("g", { class: "dots" }),
    s("text"));
}

function drawNode(group, node, colours) {
  const [title, , load, dots, label] = group.childNodes;
  group.style.transform = `translate(${node.x.toFixed(1)}px, ${node.y.toFixed(1)}px)`;
  group.classList.toggle("me", Boolean(node.me));
  group.classList.toggle("known", node.path === "none");
  const slots = node.models.reduce((sum, model) => sum + whole(model?.slots, 65535), 0);
  const busy = node.models.reduce((sum, model) => sum + whole(model?.slots_busy, 65535), 0);
  setAttribute(load, "stroke-dasharray", `${(share(busy, slots) * CIRCUMFERENCE).toFixed(1)} ${CIRCUMFERENCE}`);
  // Away from the line to the middle.
  setAttribute(label, "y", node.above ? -27 : 37);
  setText(label, node.me ? "this node" : shortId(node.id));
  setText(title, describe(node, busy, slots));
  const served = node.models.map((model) => clean(model?.id, 128)).filter((model) => colours.has(model)).slice(0, 4);
  keyed(dots, served, (model) => model, () => s("circle", { r: 4.5 }), (dot, model) => {
    setAttribute(dot, "class", `c${colours.get(model)}`);
    setAttribute(dot, "cx", (served.indexOf(model) - (served.length - 1) / 2) * (served.length > 2 ? 7 : 10));
  });
}

function describe(node, busy, slots) {
  const models = node.models.map((model) => clean(model?.id, 128)).join(", ");
  const way = node.me ? "this node" : { direct: "direct connection", relayed: "through a relay" }[node.path] ?? "known, not connected";
  return `${node.id}\n${way}\n${models ? `serves ${models}: ${busy} of ${slots} places busy` : "serves no model"}`;
}

function summary(nodes) {
  const of = (path) => nodes.filter((node) => node.path === path).length;
  return `This node with ${of("direct")} direct and ${of("relayed")} relayed connections, and ${of("none")} known nodes. The table below lists them.`;
}
