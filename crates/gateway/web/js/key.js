// The API key that this page sends: asked for when the gateway wants one, kept in this tab or, by choice, in this browser.

import { byId, setText } from "./dom.js";

const NAME = "opengrid-api-key";
const STORES = ["sessionStorage", "localStorage"];
/** What a header can carry. */
const SENDABLE = /^[\x21-\x7e]{1,512}$/;

let key = null;
let refusal = "";
/** While a key is wanted: the promise of one, and what fulfils it. */
let wanted = null;

export const current = () => key;

export const isWanted = () => wanted !== null;

export function start() {
  use(stored());
  byId("key-form").addEventListener("submit", onSubmit);
  byId("key-button").addEventListener("click", onButton);
  byId("key-plain").hidden = isSecureContext;
}

/** Waits for a key. Rejects when `signal` aborts. */
export function ask(signal) {
  if (!wanted) {
    wanted = {};
    wanted.promise = new Promise((resolve) => (wanted.fulfil = resolve));
    showButton();
    open();
  }
  if (!signal) return wanted.promise;
  signal.throwIfAborted();
  const aborted = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));
  return Promise.race([wanted.promise, aborted]);
}

/** The gateway did not take `used`, for the reason `why`. It may have been replaced meanwhile. */
export function refuse(used, why) {
  if (used !== key) return;
  forget();
  // What does not look like a key is answered as if there were none.
  refusal = used.startsWith("og-") ? why : "this gateway does not know it";
}

function open() {
  const problem = byId("key-problem");
  problem.hidden = refusal === "";
  setText(problem, refusal && `That key was not accepted: ${refusal}`);
  byId("key").value = "";
  byId("key-dialog").showModal();
}

function onSubmit() {
  use(byId("key").value.trim());
  refusal = "";
  keep(byId("key-keep").checked ? "localStorage" : "sessionStorage");
  const { fulfil } = wanted;
  wanted = null;
  fulfil();
}

function onButton() {
  if (wanted) return open();
  forget();
  // Nothing that was asked with the key stays in sight or open.
  location.reload();
}

function use(value) {
  key = value;
  showButton();
}

function showButton() {
  const button = byId("key-button");
  button.hidden = key === null && wanted === null;
  setText(button, key === null ? "Enter key" : "Forget key");
}

function stored() {
  for (const store of STORES) {
    try {
      const text = window[store].getItem(NAME);
      if (SENDABLE.test(text ?? "")) return text;
    } catch {
      // Storage is switched off: the key lives as long as the page.
    }
  }
  return null;
}

function keep(store) {
  try {
    window[store].setItem(NAME, key);
  } catch {
    // As above.
  }
}

function forget() {
  use(null);
  for (const store of STORES) {
    try {
      window[store].removeItem(NAME);
    } catch {
      // As above.
    }
  }
}
