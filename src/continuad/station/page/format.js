// Numbers, times and verdicts in the words of the shop floor.

export const WORDS = { normal: "GOOD", anomalous: "DEFECT", unknown: "UNKNOWN" };
export const SYMBOLS = { normal: "good", anomalous: "defect", unknown: "unknown" };

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const DATE = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

/** "14:03:22" today, "3 Nov, 14:03:22" before, with the year when it is another one. */
export function when(time) {
  const date = new Date(time);
  const now = new Date();
  if (date.toDateString() === now.toDateString()) return CLOCK.format(date);
  return `${(date.getFullYear() === now.getFullYear() ? DAY : DATE).format(date)}, ${CLOCK.format(date)}`;
}

export const day = (time) => DATE.format(new Date(time));

/** Three significant digits, never in powers of ten where it can be helped. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e7)) return value.toExponential(2);
  return Number(value.toPrecision(3)).toString();
}

export const count = (value) => new Intl.NumberFormat().format(value);
export const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  while (value >= 1024 && step < units.length - 1) {
    value /= 1024;
    step += 1;
  }
  return `${step && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[step]}`;
}

/** A false-alarm rate as "1 in 100"; rates that are no such fraction as a percentage. */
export function oneIn(rate) {
  const n = 1 / rate;
  return n < 4 || Math.abs(n - Math.round(n)) > 0.05 * n
    ? `${number(100 * rate)} in 100`
    : `1 in ${count(Math.round(n))}`;
}

/** The false-alarm rates that people choose from. */
export const RATES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2];

/** How many times the threshold the score is: "0.62 ×". */
export function ratio(inspection) {
  return inspection.score === null || !(inspection.threshold > 0) ? null : inspection.score / inspection.threshold;
}

export const times = (value) =>
  `${value >= 9.95 ? Math.round(value) : value >= 0.995 ? value.toFixed(1) : value.toFixed(2)}×`;

/** The verdict in a sentence, for screen readers and titles. */
export function sentence(inspection) {
  const { label, product, nearest } = inspection;
  if (label === "unknown") return `Unknown product${nearest ? `, closest to ${nearest}` : ""}`;
  const value = ratio(inspection);
  return `${label === "normal" ? "Good" : "Defect"}: ${product}${value === null ? "" : `, ${times(value)} the threshold`}`;
}
