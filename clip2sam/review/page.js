"use strict";
// What is drawn, and what keys and clicks do. Texts go in as text: a name may hold HTML.

const PER_PAGE = 48;
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const seen = { shown: [], page: 0, at: 0, opened: 0, selected: null, drawing: 0 };
const hidden = new Set(); // classes
let run, details;

function element(name, attributes = {}, ...inner) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inner);
  return made;
}

function svg(name, attributes, ...inner) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inner);
  return made;
}

const colour = (label) => `hsl(${Math.round(label * 137.508 + 210) % 360} 85% 55%)`;
const digits = (value) => (value === null || value === undefined ? "none" : value.toFixed(3));

function swatch(label) {
  const made = element("span", { class: "swatch" });
  made.style.background = colour(label);
  return made;
}

function wish() {
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  return {
    label: number("class"), presence: $("presence").value, state: number("state"), review: $("review").value,
    least: number("least") ?? 0, most: number("most") ?? 1,
    sort: $("sort").value, below: $("below").checked,
  };
}

// The run as a whole

function table(rows) {
  return element("table", {}, ...rows.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value))));
}

/** Nested settings as (place, value). */
function flat(value, place = "") {
  if (value === null || typeof value !== "object") return [[place, String(value ?? "none")]];
  if (Array.isArray(value) && value.every((one) => typeof one !== "object"))
    return [[place, value.join("; ") || "none"]];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, place ? `${place}.${key}` : key));
}

function labelTable() {
  const head = ["label", "text prompts", "threshold", "masks kept from"];
  const body = run.classes.map((one) => [
    one.name, one.prompts.join("; "),
    one.threshold === null ? "none" : String(one.threshold),
    one.floor === null ? "all" : one.floor.toPrecision(3),
  ]);
  return element("table", {},
    element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text))),
    ...body.map((row) => element("tr", {}, ...row.map((text) => element("td", {}, text)))));
}

function showRun() {
  document.title = `clip2sam: ${run.source}`;
  $("source").textContent = run.source;
  const decided = run.reviewed ? `; ${run.reviewed} reviewed, ${run.rejected} of them rejected` : "";
  const waits = run.waiting ? `, ${run.waiting} not labelled yet` : "";
  $("counts").textContent =
    `${run.images} images: ${run.done} done, ${run.empty} empty, ${run.failed} failed${decided}${waits}`;
  $("asked-tables").append(
    labelTable(), table(flat(run.asked)),
    element("details", {}, element("summary", {}, "all settings"), table(flat(run.settings))));
  if (run.unknown.length)
    $("asked-tables").prepend(`The preset doesn't know: ${run.unknown.join(", ")}`);
  const failed = run.rows.filter((image) => image.state === 2);
  $("failures").hidden = failed.length === 0;
  $("failures-title").textContent = `${failed.length} failed`;
  $("failures-list").append(...failed.slice(0, 100).map((image) =>
    element("li", {}, element("b", {}, image.name), " ", image.note)));
  if (failed.length > 100) $("failures-list").append(element("li", {}, "and more: state, failed"));
}

/** Presence scores of a class, with its threshold as a line. */
function histogram(one) {
  const bins = Object.entries(one.histogram).map(([edge, count]) => [Number(edge), count]);
  const edges = [...bins.map(([edge]) => edge), one.threshold ?? 0];
  const low = Math.min(0, ...edges);
  const wide = Math.max(...edges) + run.bin - low || 1;
  const most = Math.max(1, ...bins.map(([, count]) => count));
  const bars = bins.map(([edge, count]) => svg("rect", {
    x: (100 * (edge - low)) / wide, width: Math.max(0.8, (100 * run.bin) / wide - 0.4),
    y: 24 - (22 * count) / most, height: (22 * count) / most,
  }, svgTitle(`${edge.toFixed(2)} to ${(edge + run.bin).toFixed(2)}: ${count} images`)));
  const made = svg("svg", { class: "histogram", viewBox: "0 0 100 24", preserveAspectRatio: "none" }, ...bars);
  if (one.threshold !== null) {
    const x = (100 * (one.threshold - low)) / wide;
    made.append(svg("line", { x1: x, x2: x, y1: 0, y2: 24 }));
  }
  return made;
}

function svgTitle(text) {
  return svg("title", {}, text);
}

function showClasses() {
  $("class").append(element("option", { value: "" }, "all"),
    ...run.classes.map((one, label) => element("option", { value: label }, one.name)));
  $("classes").append(...run.classes.map((one, label) => {
    const key = label < 9 ? [element("kbd", {}, String(label + 1))] : [];
    const button = element("button", { type: "button", "aria-pressed": "true", "data-label": label },
      swatch(label), element("span", { class: "name" }, one.name), ...key);
    button.addEventListener("click", () => toggle(label));
    const limit = one.threshold === null ? "" : `, threshold ${one.threshold.toPrecision(3)}`;
    return element("li", {}, button, histogram(one), element("small", {},
      `${one.images} images, ${one.masks} masks, mean score ${one.mean_score.toFixed(2)}${limit}`));
  }));
}

// An image with its masks

/** Rough size of a path, to draw large masks first: those in front of them can be clicked. */
function extent(path) {
  const values = path.match(/\d+/g)?.map(Number) ?? [0, 0];
  const of = (axis) => values.filter((_, i) => i % 2 === axis);
  const span = (list) => list.reduce((a, b) => Math.max(a, b)) - list.reduce((a, b) => Math.min(a, b));
  return span(of(0)) * span(of(1));
}

function outlines(image, found, onMask) {
  const unit = run.units / Math.max(image.width, image.height, 1);
  const box = `0 0 ${Math.round(image.width * unit)} ${Math.round(image.height * unit)}`;
  const masks = masksOf(image, wish()).filter((mask) => !hidden.has(mask.label));
  const drawn = masks.map((mask) => ({ mask, path: found[mask.place].path }));
  drawn.sort((a, b) => extent(b.path) - extent(a.path));
  return svg("svg", { class: "masks", viewBox: box }, ...drawn.map(({ mask, path }) => {
    const made = svg("path", { d: path, class: mask.kept ? "kept" : "below", "data-place": mask.place },
      svgTitle(`${run.classes[mask.label].name} ${mask.score.toFixed(2)}`));
    made.style.fill = made.style.stroke = colour(mask.label);
    made.addEventListener("click", (event) => {
      event.stopPropagation();
      onMask(mask.place);
    });
    return made;
  }));
}

function picture(image) {
  if (image.note)
    return element("p", { class: "placeholder" },
      element("b", {}, image.state === 2 ? "failed" : "no picture"), " ", image.note);
  const file = `report/pictures/${Math.floor(image.number / run.pictures)}/${image.number}.jpg`;
  return element("img", { src: file, alt: image.name, decoding: "async" });
}

function card(image, place) {
  const frame = element("div", { class: "frame" }, picture(image));
  const labels = new Map();
  for (const mask of masksOf(image, wish()).filter((one) => !hidden.has(one.label)))
    labels.set(mask.label, [...(labels.get(mask.label) ?? []), mask.score.toFixed(2)]);
  const made = element("figure", { tabindex: "0", "data-at": place }, frame,
    element("figcaption", {}, element("span", { class: "name", title: image.name }, image.name),
      ...(image.review ? [element("span", { class: "tag review" }, image.review)] : []),
      element("span", { class: "tags" }, ...[...labels].map(([label, scores]) =>
        element("span", { class: "tag" }, swatch(label),
          `${run.classes[label].name} ${scores.join(" ")}`)))));
  made.addEventListener("click", () => open(place, null));
  made.addEventListener("focus", () => (seen.at = place));
  if (image.masks.length) draw(image, frame, (mask) => open(place, mask));
  return made;
}

/** Outlines come when their file is there; by then the image may have gone. */
async function draw(image, frame, onMask) {
  const found = await details.of(image);
  frame.querySelector(".masks")?.remove();
  frame.append(outlines(image, found, onMask));
}

// Pages

const pages = () => Math.max(1, Math.ceil(seen.shown.length / PER_PAGE));

function choose() {
  seen.shown = chosen(run, wish());
  [seen.page, seen.at] = [0, 0];
  showPage();
}

function showPage() {
  const from = seen.page * PER_PAGE;
  const part = seen.shown.slice(from, from + PER_PAGE);
  $("where").textContent = seen.shown.length
    ? `${from + 1} to ${from + part.length} of ${seen.shown.length}, page ${seen.page + 1} of ${pages()}`
    : "no image is so; change the filters";
  $("earlier").disabled = seen.page === 0;
  $("later").disabled = seen.page >= pages() - 1;
  $("grid").replaceChildren(...part.map((image, i) => card(image, from + i)));
}

function turn(by) {
  const page = Math.min(Math.max(seen.page + by, 0), pages() - 1);
  if (page === seen.page) return;
  [seen.page, seen.at] = [page, page * PER_PAGE];
  showPage();
  scrollTo({ top: 0 });
}

/** Go to another image, on its page. */
function go(by) {
  const at = seen.at + by;
  if (at < 0 || at >= seen.shown.length) return;
  seen.at = at;
  if (Math.floor(at / PER_PAGE) !== seen.page) {
    seen.page = Math.floor(at / PER_PAGE);
    showPage();
  }
  if ($("viewer").open) open(at, null);
  else focusCard();
}

function focusCard() {
  document.querySelector(`[data-at="${seen.at}"]`)?.focus();
}

// The large view

async function open(at, selected) {
  [seen.at, seen.opened, seen.selected] = [at, at, selected];
  if (!$("viewer").open) $("viewer").showModal();
  await showImage();
}

async function showImage() {
  const image = seen.shown[seen.at];
  const turnOf = ++seen.drawing;
  const found = await details.of(image);
  if (turnOf !== seen.drawing) return; // another one was asked for meanwhile
  $("viewer-name").textContent = image.name;
  $("previous").disabled = seen.at === 0;
  $("next").disabled = seen.at === seen.shown.length - 1;
  const drawn = outlines(image, found, select);
  $("viewer-frame").replaceChildren(picture(image), drawn);
  $("viewer-facts").replaceChildren(maskFacts(image, found), maskList(image), presenceTable(image));
  if (seen.selected === null) return;
  const path = drawn.querySelector(`[data-place="${seen.selected}"]`);
  path?.classList.add("selected");
  drawn.append(...found[seen.selected].points.map(([x, y, kind]) =>
    svg("circle", { cx: x, cy: y, r: 9, class: kind ? "point" : "point negative" })));
}

function select(place) {
  seen.selected = seen.selected === place ? null : place;
  showImage();
}

function maskFacts(image, found) {
  const mask = image.masks[seen.selected];
  if (!mask) return element("p", { class: "hint" }, "Click a mask for its figures.");
  const [one, more] = [run.classes[mask.label], found[mask.place]];
  const points = more.points.map(([, , kind]) => kind);
  const made = table([
    ["label", one.name], ["score", digits(mask.score)], ["share", digits(more.share)],
    ["presence", digits(image.presence[mask.label])], ["threshold", digits(one.threshold)],
    ["text prompts", one.prompts.join("; ")],
    ["points", `${points.filter((k) => k === 1).length} positive, ${points.filter((k) => k === 0).length} negative`],
    ["kept", mask.kept ? "yes" : image.review ? "no: the image is rejected" : "no: below a threshold, or weak beside the label's best one"],
  ]);
  made.id = "mask-facts";
  return made;
}

function maskList(image) {
  return element("p", { class: "tags" }, ...masksOf(image, wish()).map((mask) => {
    const pressed = String(mask.place === seen.selected);
    const made = element("button", { type: "button", class: "tag", "aria-pressed": pressed },
      swatch(mask.label), `${run.classes[mask.label].name} ${mask.score.toFixed(2)}`);
    made.addEventListener("click", () => select(mask.place));
    return made;
  }));
}

function verdict(image, label) {
  if (image.beaten.includes(label)) return "absent: a distractor is stronger";
  const far = margin(image, label, run.classes);
  if (far === null) return "";
  if (far >= 0) return far < NEAR ? "present, nearly absent" : "present";
  return far >= -NEAR ? "absent, nearly present" : "absent";
}

function presenceTable(image) {
  const head = ["label", "presence", "threshold", ""];
  return element("table", {},
    element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text))),
    ...image.presence.map((score, label) => element("tr", {},
      element("td", {}, swatch(label), run.classes[label].name), element("td", {}, digits(score)),
      element("td", {}, digits(run.classes[label].threshold)),
      element("td", {}, verdict(image, label)))));
}

// Keys and clicks

function toggle(label) {
  if (!hidden.delete(label)) hidden.add(label);
  showHidden();
}

function toggleAll() {
  const all = hidden.size === 0;
  hidden.clear();
  if (all) run.classes.forEach((_, label) => hidden.add(label));
  showHidden();
}

function showHidden() {
  for (const button of document.querySelectorAll("#classes button"))
    button.setAttribute("aria-pressed", String(!hidden.has(Number(button.dataset.label))));
  showPage();
  if ($("viewer").open) showImage();
}

function showBelow() {
  $("below").checked = !$("below").checked;
  const at = seen.shown[seen.at];
  choose();
  const place = seen.shown.indexOf(at);
  if (place >= 0) go(place - seen.at);
}

const KEYS = {
  ArrowLeft: () => go(-1), ArrowRight: () => go(1), ",": () => turn(-1), ".": () => turn(1),
  0: toggleAll, b: showBelow, "?": () => $("help").showModal(),
};

function onKey(event) {
  const typing = event.target.matches("input[type=number], select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const label = Number(event.key) - 1;
  if (event.key === "Enter" && event.target.matches("figure")) open(seen.at, null);
  else if (label >= 0 && label < run.classes.length) toggle(label);
  else if (event.key in KEYS && !($("viewer").open && ",.".includes(event.key))) KEYS[event.key]();
  else return;
  event.preventDefault();
}

function listen() {
  $("filters").addEventListener("input", (event) => {
    if (event.target.id === "class" && event.target.value && $("presence").value === "any")
      $("presence").value = "found";
    choose();
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", onKey);
  const clicks = {
    "all-classes": toggleAll, earlier: () => turn(-1), later: () => turn(1), previous: () => go(-1),
    next: () => go(1), close: () => $("viewer").close(), "help-button": () => $("help").showModal(),
  };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  $("viewer").addEventListener("close", () => {
    seen.at = seen.opened; // the browser has put the focus back on the image that was opened first
    focusCard();
  });
}

async function start() {
  run = await loadRun();
  details = new Details(run.details);
  showRun();
  showClasses();
  listen();
  choose();
}

start().catch((error) => {
  $("counts").textContent = `This report can't be shown: ${error.message}. Write it again.`;
});
