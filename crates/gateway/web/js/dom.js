// Small helpers to build and update elements. Text only ever enters through text nodes and attributes that cannot run.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children (elements or texts). `on…` attributes are listeners, given as functions. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Sets a text only where it differs, so that selections survive. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, String(value));
  }
}

/**
 * Makes the children of `parent` those of `items`, in that order: known keys are updated in place, so that focus,
 * selection and transitions survive. `create(item)` returns an element, `update(element, item)` brings it up to date.
 */
export function keyed(parent, items, key, create, update) {
  const known = parent.keyedChildren ?? new Map();
  const next = new Map();
  for (const item of items) {
    const name = String(key(item));
    if (next.has(name)) continue;
    const element = known.get(name) ?? create(item);
    update(element, item);
    next.set(name, element);
  }
  for (const [name, element] of known) if (next.get(name) !== element) element.remove();
  let place = parent.firstChild;
  for (const element of next.values()) {
    if (element === place) place = place.nextSibling;
    else parent.insertBefore(element, place);
  }
  parent.keyedChildren = next;
}

/** A button that copies what `text()` gives. */
export function copyButton(text, label) {
  const button = h("button", { type: "button", class: "copy", "aria-label": label, title: label }, "Copy");
  button.addEventListener("click", async () => {
    const done = await copy(text());
    setText(button, done ? "Copied" : "Select it");
    announce(done ? "copied" : "copying is not allowed here, select the text instead");
    setTimeout(() => setText(button, "Copy"), 1600);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages that are not on a secure origin have no clipboard: the old way.
    const area = h("textarea", { class: "sr", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** Says something to screen readers. */
export function announce(text) {
  setText(byId("announce"), text);
}

/** A line of code with a button that copies it. */
export function command(text, label = "Copy the command") {
  const code = h("code", { tabindex: "0" }, text);
  return h("div", { class: "command" }, code, copyButton(() => code.textContent, label));
}
