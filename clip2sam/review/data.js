"use strict";
// What the run's files say, and the questions that filters and orders ask of it. Nothing is drawn
// here. A page from disk may not fetch files, so data come as scripts that call `take`.

const NEAR = 0.1; // of the threshold: what is nearer to it than that is nearly present or absent
const STATES = ["done", "empty", "failed"];
const waiting = new Map();

function take(kind, number, value) {
  waiting.get(`${kind}/${number}`)(value);
}

/** One of the data files; it is read once, and may be forgotten by its caller. */
function load(kind, number, address = `report/${kind}/${number}.js`) {
  return new Promise((resolve, reject) => {
    waiting.set(`${kind}/${number}`, resolve);
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => script.remove();
    script.onerror = () => reject(new Error(`${address} is missing or damaged`));
    document.head.append(script);
  });
}

/** A row of `clip2sam/review/rows.py`, with names. */
function imageOf(row, number) {
  const [name, state, height, width, note, presence, beaten, masks, review] = row;
  return {
    number, name, state, height, width, note, presence, beaten, review,
    masks: masks.map(([label, score, kept], place) => ({ label, score, kept: kept === 1, place })),
  };
}

async function loadRun() {
  const run = await load("run", 0, "report/run.js");
  const chunks = Math.ceil(run.recorded / run.overview);
  const parts = await Promise.all(Array.from({ length: chunks }, (_, i) => load("overview", i)));
  return { ...run, rows: parts.flat().map(imageOf) };
}

/** Details of images, by the number of their file; the files used last stay in memory. */
class Details {
  constructor(size, most = 200) {
    [this.size, this.most, this.files] = [size, most, new Map()];
  }

  async of(image) {
    const number = Math.floor(image.number / this.size);
    const file = this.files.get(number) ?? load("details", number);
    this.files.delete(number);
    this.files.set(number, file); // now the last one
    if (this.files.size > this.most) this.files.delete(this.files.keys().next().value);
    return (await file)[image.number % this.size]
      .map(([share, path, points]) => ({ share, path, points }));
  }
}

/** How far a class's presence is above its threshold, as a share of it; null if nothing is decided
 * by that: no threshold, no score, or a distractor has won. */
function margin(image, label, classes) {
  const [score, threshold] = [image.presence[label] ?? null, classes[label].threshold];
  if (score === null || threshold === null || image.beaten.includes(label)) return null;
  return (score - threshold) / Math.max(Math.abs(threshold), 1e-9);
}

function asked(wish, classes) {
  return wish.label === null ? classes.map((_, i) => i) : [wish.label];
}

/** The masks of an image that the filters let through. */
function masksOf(image, wish) {
  return image.masks.filter((mask) =>
    (mask.kept || wish.below) && (wish.label === null || mask.label === wish.label) &&
    mask.score >= wish.least && mask.score <= wish.most);
}

function hasPresence(image, wish, classes) {
  const found = image.masks.some((m) => m.kept && (wish.label === null || m.label === wish.label));
  if (wish.presence === "any") return true;
  if (wish.presence === "found") return found;
  if (wish.presence === "not-found") return !found && image.state !== 2;
  const margins = asked(wish, classes).map((label) => margin(image, label, classes))
    .filter((value) => value !== null);
  return wish.presence === "nearly-absent"
    ? margins.some((value) => value >= 0 && value < NEAR)
    : margins.some((value) => value < 0 && value >= -NEAR);
}

function passes(image, wish, classes) {
  const allScores = wish.least <= 0 && wish.most >= 1;
  const reviewed = { any: true, none: !image.review }[wish.review] ?? image.review === wish.review;
  return reviewed && (wish.state === null || image.state === wish.state) &&
    hasPresence(image, wish, classes) && (allScores || masksOf(image, wish).length > 0);
}

/** How near the nearest decision was: 0 is at the threshold. Without thresholds, the lowest score
 * of a mask. What has neither comes last. */
function certainty(image, wish, classes) {
  const distances = asked(wish, classes).map((label) => margin(image, label, classes))
    .filter((value) => value !== null).map(Math.abs);
  if (distances.length) return Math.min(...distances);
  return Math.min(Infinity, ...masksOf(image, wish).map((mask) => mask.score));
}

const ORDERS = {
  doubt: certainty,
  low: (image, wish) => Math.min(Infinity, ...masksOf(image, wish).map((mask) => mask.score)),
  high: (image, wish) => -Math.max(-Infinity, ...masksOf(image, wish).map((mask) => mask.score)),
};

/** The images that a wish asks for, in its order. */
function chosen(run, wish) {
  const found = run.rows.filter((image) => passes(image, wish, run.classes));
  const order = ORDERS[wish.sort];
  if (!order) return found;
  const keys = new Map(found.map((image) => [image, order(image, wish, run.classes)]));
  const compare = (one, two) => (one < two ? -1 : one > two ? 1 : 0); // infinities too
  return found.sort((a, b) => compare(keys.get(a), keys.get(b)) || a.number - b.number);
}
