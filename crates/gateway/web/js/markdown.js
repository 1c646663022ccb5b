// A little Markdown for answers: paragraphs, headings, lists, quotes, fenced code, and inline code, bold, italic, links.
// Builds elements with text nodes; nothing of the source is ever parsed as HTML. Every pass is linear in its input.

import { copyButton, h } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]{0,30})/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const BULLET = /^\s{0,6}[-*+]\s+(.*)$/;
const NUMBER = /^\s{0,6}(\d{1,9})[.)]\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;

/**
 * Renders `source` into `target`. Blocks that did not change since the last call are left alone, so a growing answer
 * costs its last block only, and selections above it survive.
 */
export function render(target, source) {
  const blocks = split(source);
  const old = target.renderedBlocks ?? [];
  let same = 0;
  while (same < blocks.length && same < old.length && equal(blocks[same], old[same])) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  target.append(...blocks.slice(same).map(element));
  target.renderedBlocks = blocks;
}

const equal = (a, b) => a.kind === b.kind && a.language === b.language && a.lines.length === b.lines.length && a.lines.join("\n") === b.lines.join("\n");

/** Blocks: {kind, lines, language?}. */
function split(source) {
  const blocks = [];
  let fence = null;
  const open = (kind, line, extra = {}) => blocks.push({ kind, lines: [line], ...extra });
  const last = (kind) => (blocks.at(-1)?.kind === kind ? blocks.at(-1) : null);
  for (const line of source.split(/\r?\n/)) {
    if (fence) {
      if (line.trim().startsWith(fence)) fence = null;
      else blocks.at(-1).lines.push(line);
      continue;
    }
    const opening = FENCE.exec(line);
    if (opening) {
      fence = opening[1];
      blocks.push({ kind: "code", lines: [], language: opening[2] });
    } else if (line.trim() === "") {
      blocks.push({ kind: "gap", lines: [] });
    } else if (HEADING.test(line)) {
      open("heading", line);
    } else if (BULLET.test(line)) {
      append(last("bullets"), line) || open("bullets", line);
    } else if (NUMBER.test(line)) {
      append(last("numbers"), line) || open("numbers", line);
    } else if (QUOTE.test(line)) {
      append(last("quote"), line) || open("quote", line);
    } else {
      append(last("text") ?? last("bullets") ?? last("numbers"), line) || open("text", line);
    }
  }
  return joinLists(blocks).filter((block) => block.kind !== "gap");
}

function append(block, line) {
  if (block) block.lines.push(line);
  return Boolean(block);
}

/** A blank line between two items does not end a list. */
function joinLists(blocks) {
  const joined = [];
  for (const block of blocks) {
    const [gap, before] = [joined.at(-1), joined.at(-2)];
    const isList = block.kind === "bullets" || block.kind === "numbers";
    if (isList && gap?.kind === "gap" && before?.kind === block.kind) {
      joined.pop();
      before.lines.push(...block.lines);
    } else {
      joined.push(block);
    }
  }
  return joined;
}

function element(block) {
  const { kind, lines } = block;
  if (kind === "code") return code(lines.join("\n"), block.language);
  if (kind === "heading") {
    const [, marks, text] = HEADING.exec(lines[0]);
    // The page has its own h1.
    return h(`h${Math.min(6, marks.length + 2)}`, {}, inline(text));
  }
  if (kind === "quote") return h("blockquote", {}, withBreaks(lines.map((line) => QUOTE.exec(line)?.[1] ?? line)));
  if (kind === "bullets") return h("ul", {}, items(lines, BULLET, 1));
  if (kind === "numbers") {
    const first = Number(NUMBER.exec(lines[0])[1]);
    return h("ol", { start: first === 1 ? null : first }, items(lines, NUMBER, 2));
  }
  return h("p", {}, withBreaks(lines));
}

function code(text, language) {
  const bar = h("div", { class: "code-bar" }, h("span", {}, language || "code"), copyButton(() => text, "Copy the code"));
  return h("div", { class: "code" }, bar, h("pre", { tabindex: "0" }, h("code", {}, text)));
}

function items(lines, pattern, group) {
  const texts = [];
  for (const line of lines) {
    const match = pattern.exec(line);
    if (match) texts.push([match[group]]);
    else texts.at(-1).push(line.trim());
  }
  return texts.map((text) => h("li", {}, withBreaks(text)));
}

function withBreaks(lines) {
  return lines.flatMap((line, index) => (index ? [h("br"), ...inline(line)] : inline(line)));
}

const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["*", "em"],
  ["_", "em"],
];

/** Text nodes and elements for one line. */
function inline(text) {
  const nodes = [];
  let plain = "";
  let at = 0;
  // A mark that was not closed once in this line is not searched for again: keeps the pass linear.
  const unclosed = new Set();
  const push = (node) => {
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(node);
  };
  while (at < text.length) {
    const found = span(text, at, unclosed);
    if (found) {
      push(found.node);
      at = found.end;
    } else {
      plain += text[at];
      at += 1;
    }
  }
  if (plain) nodes.push(plain);
  return nodes;
}

function span(text, at, unclosed) {
  const character = text[at];
  if (character === "`") return codeSpan(text, at, unclosed);
  if (character === "[") return link(text, at);
  if (character !== "*" && character !== "_") return null;
  const [mark, tag] = MARKS.find(([candidate]) => text.startsWith(candidate, at));
  const inWord = character === "_" && /\w/.test(text[at - 1] ?? "");
  if (unclosed.has(mark) || inWord || /\s/.test(text[at + mark.length] ?? " ")) return null;
  const close = text.indexOf(mark, at + mark.length + 1);
  if (close < 0) {
    unclosed.add(mark);
    return null;
  }
  if (/\s/.test(text[close - 1])) return null;
  const inner = text.slice(at + mark.length, close);
  return { node: h(tag, {}, mark.length === 2 ? emphasis(inner) : inner), end: close + mark.length };
}

/** One level inside bold: code only. */
function emphasis(text) {
  const parts = text.split("`");
  return parts.length % 2 ? parts.map((part, index) => (index % 2 ? h("code", {}, part) : part)) : text;
}

function codeSpan(text, at, unclosed) {
  const mark = text.startsWith("``", at) ? "``" : "`";
  if (unclosed.has(mark)) return null;
  const close = text.indexOf(mark, at + mark.length);
  if (close < 0) {
    unclosed.add(mark);
    return null;
  }
  return { node: h("code", {}, text.slice(at + mark.length, close)), end: close + mark.length };
}

function link(text, at) {
  const match = /^\[([^\]\[]{1,200})\]\((https?:\/\/[^\s()<>"]{1,1000})\)/.exec(text.slice(at, at + 1300));
  if (!match) return null;
  const [all, label, address] = match;
  const attributes = { href: address, rel: "noopener noreferrer nofollow", target: "_blank", title: address };
  return { node: h("a", attributes, label), end: at + all.length };
}
