/* Sounds and their scores: a table, and of the chosen one waveform, player and score over time.
   All text comes into the page as text, never as markup. */
"use strict";

const VERDICTS = { bonafide: "bona fide", spoof: "spoof" };
const GUTTER = 46, RIGHT = 8; // pixels beside the drawings; the style of #waveform has them, too

const byId = (id) => document.getElementById(id);

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function clock(seconds) {
  const tenths = Math.round(seconds * 10), minutes = Math.floor(tenths / 600), hours = Math.floor(minutes / 60);
  const rest = ((tenths % 600) / 10).toFixed(1);
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest.padStart(4, "0")}` : `${minutes}:${rest.padStart(4, "0")}`;
}

function chance(value) {
  if (value === null || value === undefined) return "–";
  return value >= 0.0005 && value < 0.9995 ? value.toFixed(3) : value < 0.5 ? "<0.001" : ">0.999";
}

const number = (value) => (typeof value === "number" ? value.toFixed(3) : "–");
const verdictOf = (result) => VERDICTS[result.verdict] ?? String(result.verdict ?? "no verdict");
const sideOf = (result) => (result.verdict in VERDICTS ? result.verdict : "other");
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

class Sounds {
  /* config: the model (see descriptions.described_model), the columns of CSV, and the nonce of the page's policy. */
  constructor(config) {
    this.config = config;
    this.entries = [];
    this.chosen = null;
    this.detail = new Detail(config);
    byId("save-json").addEventListener("click", () => this.save("scores.json", "application/json", this.json()));
    byId("save-csv").addEventListener("click", () => this.save("scores.csv", "text/csv", this.csv()));
    for (const button of document.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => this.sort(button.dataset.sort, button.closest("th")));
    }
  }

  /* A sound that has no result yet; sound is where it can be played from, or null. */
  add(name, sound) {
    const open = element("button", { type: "button", textContent: name });
    const entry = { name, sound, result: null, cells: [], row: element("tr", {}) };
    entry.row.append(element("th", { scope: "row", className: "word" }, open));
    for (const kind of ["word", "", "wide", "wide", "notes-cell wide"]) {
      entry.cells.push(entry.row.appendChild(element("td", { className: kind })));
    }
    entry.cells[0].append(element("span", { className: "waiting", textContent: "waiting …" }));
    open.addEventListener("click", () => this.choose(entry, true));
    this.entries.push(entry);
    byId("rows").append(entry.row);
    byId("list").hidden = false;
    this.tell();
    return entry;
  }

  /* The result of a sound, see descriptions.described; of a failure, its error. */
  finish(entry, result) {
    entry.result = result;
    const [verdict, score, probability, length, notes] = entry.cells;
    if (result.error === undefined) {
      verdict.replaceChildren(element("span", { className: `mark ${sideOf(result)}`, textContent: verdictOf(result) }));
      score.textContent = number(result.score);
      probability.textContent = chance(result.probability);
      length.textContent = clock(result.seconds);
      notes.textContent = (result.notes ?? []).map((note) => `${note.kind}: ${note.detail}`).join("; ");
    } else {
      verdict.replaceChildren(element("span", { className: "failed", textContent: "no score" }));
      notes.textContent = result.error;
    }
    this.tell();
    if (this.chosen === null || this.chosen === entry) this.choose(entry, false);
  }

  choose(entry, byPerson) {
    for (const other of this.entries) {
      other.row.classList.toggle("chosen", other === entry);
      other.row.querySelector("button").setAttribute("aria-current", String(other === entry));
    }
    this.chosen = entry;
    if (entry.result === null) return;
    this.detail.show(entry);
    if (byPerson) byId("detail-name").focus();
  }

  sort(key, heading) {
    const down = heading.ariaSort === "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.ariaSort = down ? "descending" : "ascending";
    const value = (entry) => (key === "name" ? entry.name : entry.result?.[key]);
    const missing = (entry) => value(entry) === undefined || value(entry) === null;
    this.entries.sort((a, b) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b); // at the end either way
      const order = typeof value(a) === "number" ? value(a) - value(b) : String(value(a)).localeCompare(value(b), "en", { numeric: true });
      return down ? -order : order;
    });
    byId("rows").append(...this.entries.map((entry) => entry.row));
  }

  tell() {
    const finished = this.entries.filter((entry) => entry.result !== null);
    const failed = finished.filter((entry) => entry.result.error !== undefined).length;
    const left = this.entries.length - finished.length;
    const parts = [`${plural(finished.length - failed, "sound")} scored`];
    if (failed) parts.push(`${failed.toLocaleString("en")} could not be`);
    if (left) parts.push(`${left.toLocaleString("en")} to come`);
    byId("status").textContent = `${parts.join(", ")}.`;
    byId("save-json").disabled = byId("save-csv").disabled = finished.length === 0;
  }

  results() {
    return this.entries.filter((entry) => entry.result !== null).map((entry) => {
      const { waveform, sound, ...told } = entry.result;
      return told;
    });
  }

  json() {
    const date = this.config.date ?? new Date().toISOString();
    return JSON.stringify({ model: this.config.model, date, results: this.results() }, null, 1);
  }

  /* The rows of `moelora-ad score --format csv`. */
  csv() {
    const model = this.config.model;
    const cell = (result, column) => {
      if (column === "path") return result.name;
      if (result.error !== undefined) return column === "error" ? result.error : "";
      if (column === "scale") return model.scale;
      if (column === "prior") return model.is_calibrated ? model.prior : "";
      if (column === "windows") return result.windows.length;
      if (column === "notes") return result.notes.map((note) => `${note.kind}: ${note.detail}`).join("; ");
      return result[column] ?? "";
    };
    const quoted = (value) => (/[",\r\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
    const line = (values) => `${values.map(quoted).join(",")}\n`;
    const rows = this.results().map((result) => line(this.config.columns.map((column) => cell(result, column))));
    return line(this.config.columns) + rows.join("");
  }

  save(name, type, content) {
    const url = URL.createObjectURL(new Blob([content], { type }));
    element("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
}

class Detail {
  constructor(config) {
    this.config = config;
    this.wave = null;
    this.chart = new Chart(byId("chart"), (seconds) => this.wave?.setTime(seconds));
    this.result = null;
    byId("play").addEventListener("click", () => this.wave?.playPause());
    byId("position").addEventListener("input", (event) => this.wave?.setTime(Number(event.target.value)));
    byId("windows").addEventListener("toggle", () => this.listWindows());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.wave?.setOptions(this.colours()));
  }

  show({ name, sound, result }) {
    this.wave?.destroy();
    this.wave = null;
    this.result = result;
    const failed = result.error !== undefined;
    byId("detail").hidden = false;
    byId("detail-name").textContent = name;
    byId("failure").hidden = !failed;
    byId("failure").textContent = result.error ?? "";
    for (const part of [document.querySelector("#detail .cards"), byId("sound"), byId("windows")]) part.hidden = failed;
    byId("detail-notes").hidden = failed || !result.notes?.length;
    if (failed) return;
    const { model } = this.config;
    byId("detail-verdict").className = `mark ${sideOf(result)}`;
    byId("detail-verdict").textContent = verdictOf(result);
    byId("detail-meaning").textContent = result.meaning ?? "";
    byId("detail-score").textContent = number(result.score);
    byId("detail-scale").textContent = result.is_calibrated ? "log-likelihood ratio" : "raw log-odds";
    byId("detail-chance").textContent = chance(result.probability);
    byId("detail-prior").textContent = result.is_calibrated ? `at a prior of ${model.prior}` : "not calibrated";
    byId("detail-length").textContent = clock(result.seconds);
    byId("detail-count").textContent = plural(result.windows.length, "window");
    byId("detail-notes").lastElementChild.replaceChildren(
      ...(result.notes ?? []).map((note) => element("li", { textContent: `${note.kind}: ${note.detail}` })),
    );
    byId("windows").open = false;
    byId("windows").firstElementChild.textContent = plural(result.windows.length, "window");
    this.chart.show(result);
    this.play(sound, result);
  }

  colours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { waveColor: of("--muted"), progressColor: of("--accent"), cursorColor: of("--ink") };
  }

  play(sound, result) {
    const none = (why) => {
      byId("player").hidden = true;
      byId("no-player").hidden = false;
      byId("no-player").textContent = why;
    };
    byId("player").hidden = false;
    byId("no-player").hidden = true;
    byId("position").max = result.seconds;
    const media = new Audio();
    media.preload = "metadata";
    if (sound) {
      media.addEventListener("error", () => none("This sound cannot be played here: its format is unknown to the browser, or the file has been moved. The scores are not affected."));
      media.src = sound;
    } else {
      none("This sound is not part of the page and cannot be played.");
    }
    const { waveform } = result;
    this.wave = WaveSurfer.create({
      container: byId("waveform"), media, height: 96, normalize: true, cspNonce: this.config.nonce,
      peaks: waveform ? [waveform.high, waveform.low] : [[0, 0]], duration: Math.max(result.seconds, 0.001), ...this.colours(),
    });
    const tell = (seconds) => {
      byId("position").value = seconds;
      byId("time").textContent = `${clock(Math.min(seconds, result.seconds))} / ${clock(result.seconds)}`;
      this.chart.point(seconds);
    };
    this.wave.on("timeupdate", tell);
    this.wave.on("error", () => {}); // `media` reports it
    for (const [event, words] of [["play", "Pause"], ["pause", "Play"], ["finish", "Play"]]) {
      this.wave.on(event, () => { byId("play").textContent = words; });
    }
    byId("play").textContent = "Play";
    tell(0);
  }

  listWindows() {
    const rows = byId("windows").open && this.result ? this.result.windows : [];
    byId("windows").querySelector("tbody").replaceChildren(...rows.map((one) => element("tr", {},
      ...[clock(one.start), clock(one.end), number(one.score)].map((text) => element("td", { textContent: text })))));
  }
}

class Chart {
  /* A score holds from midway to the centre of the window before it to midway to that after it, as in timeline.py. */
  constructor(svg, seek) {
    this.svg = svg;
    this.result = null;
    new ResizeObserver(() => this.draw()).observe(svg);
    svg.addEventListener("click", (event) => {
      const place = (event.clientX - svg.getBoundingClientRect().left - GUTTER) / this.width;
      if (this.result && place >= 0 && place <= 1) seek(place * this.result.seconds);
    });
  }

  show(result) {
    this.result = result;
    this.seconds = 0;
    this.draw();
  }

  point(seconds) {
    this.seconds = seconds;
    const x = GUTTER + this.width * Math.min(1, seconds / (this.result?.seconds || 1));
    for (const name of ["x1", "x2"]) this.svg.querySelector(".cursor")?.setAttribute(name, x);
  }

  draw() {
    const { svg, result } = this, box = svg.getBoundingClientRect();
    if (!result || box.width === 0) return;
    const top = 10, bottom = box.height - 24, { threshold, seconds } = result;
    this.width = box.width - GUTTER - RIGHT;
    const windows = result.windows.filter((one) => one.score !== null);
    const scores = windows.map((one) => one.score), centres = windows.map((one) => (one.start + one.end) / 2);
    const edges = [0, ...centres.slice(1).map((centre, n) => (centre + centres[n]) / 2), seconds];
    const least = Math.min(...scores, threshold), most = Math.max(...scores, threshold), margin = 0.1 * (most - least) || 1;
    const x = (time) => GUTTER + (this.width * time) / Math.max(seconds, 1e-9);
    const y = (score) => bottom - ((bottom - top) * (score - least + margin)) / (most - least + 2 * margin);
    const made = [];
    const add = (name, attributes, text) => {
      const one = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
      if (text !== undefined) one.textContent = text;
      made.push(one);
    };
    for (const score of ticks(least - margin, most + margin, 5)) {
      add("line", { class: "grid", x1: GUTTER, x2: GUTTER + this.width, y1: y(score), y2: y(score) });
      add("text", { x: GUTTER - 6, y: y(score) + 4, "text-anchor": "end" }, Number(score.toPrecision(6)));
    }
    for (const time of ticks(0, seconds, Math.max(2, this.width / 90), [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600])) {
      add("text", { x: x(time), y: box.height - 6, "text-anchor": time === 0 ? "start" : x(time) > box.width - 30 ? "end" : "middle" }, clock(time));
    }
    for (const side of ["bonafide", "spoof"]) {
      const part = scores.map((score, n) => [score, x(edges[n]), x(edges[n + 1])]).filter(([score]) => (score >= threshold) === (side === "bonafide"));
      add("path", { class: `area ${side}`, d: part.map(([score, from, to]) => `M${from} ${y(threshold)}V${y(score)}H${to}V${y(threshold)}Z`).join("") });
      add("path", { class: `step ${side}`, d: part.map(([score, from, to]) => `M${from} ${y(score)}H${to}`).join("") });
    }
    add("path", { class: "rise", d: scores.slice(1).map((score, n) => `M${x(edges[n + 1])} ${y(scores[n])}V${y(score)}`).join("") });
    add("line", { class: "edge", x1: GUTTER, x2: GUTTER + this.width, y1: y(threshold), y2: y(threshold) });
    add("line", { class: "cursor", x1: GUTTER, x2: GUTTER, y1: top, y2: bottom });
    svg.setAttribute("aria-label", `Score over time: ${plural(scores.length, "window")}, from ${number(Math.min(...scores))} to ${number(Math.max(...scores))}; threshold ${number(threshold)}. All windows are listed below.`);
    svg.replaceChildren(...made);
    this.point(this.seconds);
  }
}

/* Round numbers within a range, at most so many; steps are powers of ten times 1, 2 and 5, or the first of some that does. */
function ticks(low, high, most, steps = []) {
  const least = (high - low) / most, power = 10 ** Math.floor(Math.log10(least));
  const step = (least >= 1 ? steps : []).find((one) => one >= least) ?? [1, 2, 5, 10].map((digit) => digit * power).find((one) => one >= least);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high; n += 1) found.push(n * step);
  return found;
}
