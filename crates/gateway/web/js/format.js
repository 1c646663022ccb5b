// Numbers and ids for people. What comes from peers may be anything: every function takes anything.

const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : 0);

/** A text of bounded length without control and direction-changing characters. */
export function clean(value, longest = 160) {
  const text = typeof value === "string" ? value : value === null || value === undefined ? "" : String(value);
  const plain = text.slice(0, longest + 1).replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "");
  return plain.length > longest ? `${plain.slice(0, longest)}…` : plain;
}

/** The last eight characters, as the node's own tables print it. */
export const shortId = (id) => clean(id, 80).slice(-8);

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let amount = Math.max(0, number(value));
  let unit = 0;
  while (amount >= 999.5 && unit < units.length - 1) {
    amount /= 1000;
    unit += 1;
  }
  return `${amount >= 10 || unit === 0 ? Math.round(amount) : amount.toFixed(1)} ${units[unit]}`;
}

export function duration(seconds) {
  const total = Math.max(0, Math.floor(number(seconds)));
  const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  if (minutes) return `${minutes} min ${total % 60} s`;
  return `${total} s`;
}

export function speed(tokensPerSecond) {
  const value = number(tokensPerSecond);
  if (value <= 0) return "–";
  if (value > 1e6) return "over 1,000,000 tok/s";
  return `${value >= 100 ? Math.round(value) : value.toFixed(1)} tok/s`;
}

export function count(value) {
  return Math.max(0, Math.round(number(value))).toLocaleString("en");
}

export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${number(value) === 1 ? one : many}`;
}

export function milliseconds(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

/** 0 to 1. */
export const share = (part, whole) => (number(whole) > 0 ? Math.min(1, Math.max(0, number(part) / number(whole))) : 0);

export const list = (value, longest = 500) => (Array.isArray(value) ? value.slice(0, longest) : []);

export const whole = (value, largest = Number.MAX_SAFE_INTEGER) => Math.min(largest, Math.max(0, Math.floor(number(value))));
