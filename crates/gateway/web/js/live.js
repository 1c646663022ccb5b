// What the node says about itself and the grid, as it changes: {status, peers, models} about once a second from
// /grid/v1/events, else by asking every two seconds.

import { MISSING_SCOPE, events, json, request } from "./http.js";

const POLL_MS = 2000;
/** Most rows that the page looks at. */
const ROWS_MAX = 5000;
const SILENCE_MS_MAX = 30000;
const RETRY_MS = [500, 1000, 2000, 4000, 8000];
/** After a 403: a key's scopes never change, but another key may come. */
const REFUSED_RETRY_MS = 15000;

/**
 * `onSnapshot({status, peers, models})`; `onLost()` when the node does not answer, `onRefused(error)` when the key
 * lacks the scope. Runs for ever.
 */
export async function follow(onSnapshot, onLost, onRefused) {
  let failures = 0;
  for (;;) {
    await visible();
    try {
      await stream((snapshot) => {
        failures = 0;
        onSnapshot(snapshot);
      });
    } catch (error) {
      if (error.code === MISSING_SCOPE) {
        onRefused(error);
        await pause(REFUSED_RETRY_MS);
        continue;
      }
      // No such endpoint, or too many subscribers: the rest of the API may well answer.
      if (error.status >= 400 && (await poll(onSnapshot))) continue;
    }
    if (document.hidden) continue;
    if (failures > 0) onLost();
    await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
    failures += 1;
  }
}

async function stream(onSnapshot) {
  const ending = new AbortController();
  const onHide = () => document.hidden && ending.abort();
  document.addEventListener("visibilitychange", onHide);
  let watchdog = setTimeout(() => ending.abort(), SILENCE_MS_MAX);
  try {
    const response = await request("/grid/v1/events", { signal: ending.signal, headers: { accept: "text/event-stream" } });
    for await (const data of events(response)) {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => ending.abort(), SILENCE_MS_MAX);
      if (data !== null) deliver(JSON.parse(data), onSnapshot);
    }
  } finally {
    clearTimeout(watchdog);
    document.removeEventListener("visibilitychange", onHide);
  }
}

/** True when at least one round was answered; tries the stream again after a minute. */
async function poll(onSnapshot) {
  let answered = false;
  for (let round = 0; round < 30 && !document.hidden; round += 1) {
    try {
      const paths = ["status", "peers", "models"].map((name) => json(`/grid/v1/${name}`));
      const [status, peers, models] = await Promise.all(paths);
      deliver({ status, peers, models }, onSnapshot);
      answered = true;
    } catch {
      return answered;
    }
    await pause(POLL_MS);
  }
  return answered;
}

function deliver(snapshot, onSnapshot) {
  if (snapshot === null || typeof snapshot !== "object" || typeof snapshot.status !== "object" || snapshot.status === null) return;
  const rows = (value, name, key) => {
    const found = Array.isArray(value) ? value : Array.isArray(value?.[name]) ? value[name] : [];
    const named = (row) => row !== null && typeof row === "object" && typeof row[key] === "string" && row[key] !== "";
    return found.filter(named).slice(0, ROWS_MAX);
  };
  onSnapshot({
    status: snapshot.status,
    peers: rows(snapshot.peers, "peers", "peer_id"),
    models: rows(snapshot.models, "models", "id"),
  });
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    const onChange = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", onChange);
      resolve();
    };
    document.addEventListener("visibilitychange", onChange);
  });
}
