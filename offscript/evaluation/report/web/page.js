// The interactive parts of report.html: cells of the grid, and the browser of texts. Whatever comes from rows is set as
// textContent, never as markup.
"use strict";

document.documentElement.classList.add("js");

// Index and chunks of a large evaluation are script files, which call these functions; a page may load no other files
// from a disk.
const offscript = {
  index: null,
  chunks: new Map(),
  waiting: new Map(),
  addIndex(name, index) {
    const expected = JSON.parse(document.getElementById("index").textContent);
    if (name === expected.name) offscript.index = index;
  },
  addChunk(name, number, chunk) {
    if (name === JSON.parse(document.getElementById("index").textContent).name) offscript.chunks.set(number, chunk);
  },
};

/** An element with attributes and children; strings become text nodes. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function setUpCells() {
  const links = [...document.querySelectorAll(".grid a")];
  const open = (link, moves) => {
    for (const other of links) {
      const shown = other === link && !(moves && other.hasAttribute("aria-current"));
      document.getElementById(other.hash.slice(1)).classList.toggle("open", shown);
      if (shown) other.setAttribute("aria-current", "true");
      else other.removeAttribute("aria-current");
    }
    if (moves && link.hasAttribute("aria-current")) {
      const cell = document.getElementById(link.hash.slice(1));
      cell.focus({ preventScroll: true });
      cell.scrollIntoView({ block: "nearest" });
    }
  };
  for (const link of links) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      open(link, true);
    });
  }
  const linked = links.find((link) => link.hash === location.hash);
  if (linked) open(linked, false);
  return { close: () => open(null, false) };
}

/** Moves the focus between the cells of a grid with the arrow keys. */
function moveInGrid(event) {
  const link = event.target.closest(".grid a");
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!link || !step) return;
  event.preventDefault();
  const rows = [...link.closest("tbody").rows];
  const row = rows.indexOf(link.closest("tr")) + step[0];
  const next = rows[row]?.cells[link.closest("td").cellIndex + step[1]]?.querySelector("a");
  if (next) next.focus();
}

const PAGE = 100;
const CHOICES = ["model", "stage", "persona", "format", "scenario", "predicted", "ended", "seed"];
const NONE = { persona: "none (base text)", predicted: "no text", ended: "unknown", seed: "none" };

const HEADS = ["model", "stage", "persona", "format", "predicted", "p", "ended", "scenario", "text"];
const ASIDE = ["model", "ended", "scenario", "p"];

class Browser {
  constructor(index) {
    this.index = index;
    this.columns = index.columns;
    this.count = index.columns.model.rows.length;
    this.labels = new Map(index.labels);
    this.found = [];
    this.page = 0;
    this.open = null;
    this.comparing = false;
    this.selects = new Map();
    this.form = document.getElementById("filter");
    this.words = document.getElementById("words");
    this.panes = document.getElementById("panes");
    this.reader = document.getElementById("reader");
    const inside = wholeTexts();
    this.search = index.beginnings.map((text, i) => `${this.name("scenario", i)} ${inside?.[i] ?? text}`.toLowerCase());
    if (!inside) this.words.placeholder = "in the scenario or at the beginning of the text";
    this.setUp();
    this.filter();
    document.getElementById("browser").hidden = false;
  }

  /** The name of episode `i` in a column; null if it has none. */
  name(column, i) {
    const { names, rows } = this.columns[column];
    return rows[i] < 0 ? null : names[rows[i]];
  }

  setUp() {
    const place = document.getElementById("choices");
    document.getElementById("heads").append(...HEADS.map((head) => make("th", { scope: "col", class: this.kind(head) }, head)));
    for (const column of CHOICES) {
      const { names, rows } = this.columns[column];
      const counts = new Map();
      for (const value of rows) counts.set(value, (counts.get(value) ?? 0) + 1);
      if (counts.size < 2) continue;
      const select = make("select", { id: `choice-${column}` }, make("option", { value: "" }, "all"));
      const order = [...counts.keys()].sort((a, b) => (column === "scenario" ? (names[a] < names[b] ? -1 : 1) : a - b));
      for (const value of order) {
        const label = value < 0 ? NONE[column] ?? "none" : names[value];
        select.append(make("option", { value: String(value) }, `${label} (${counts.get(value)})`));
      }
      this.selects.set(column, select);
      place.append(make("label", {}, column === "predicted" ? "predicted label" : column, select));
    }
    const right = make(
      "select",
      { id: "choice-right" },
      ...[["", "all"], ["1", "right"], ["0", "wrong"]].map(([value, text]) => make("option", { value }, text)),
    );
    this.selects.set("right", right);
    place.append(make("label", {}, "prediction", right));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.words.addEventListener("input", () => this.filter());
    for (const select of this.selects.values()) select.addEventListener("change", () => this.filter());
    this.form.addEventListener("reset", () => setTimeout(() => this.filter()));
    document.getElementById("before").addEventListener("click", () => this.turn(-1));
    document.getElementById("after").addEventListener("click", () => this.turn(1));
    for (const button of document.querySelectorAll(".show-texts")) {
      button.hidden = false;
      button.addEventListener("click", () => this.showCell(button.dataset));
    }
  }

  /** Whether the predicted label of episode `i` is its persona; null for a base text or a missing one. */
  isRight(i) {
    const persona = this.name("persona", i);
    const predicted = this.name("predicted", i);
    return persona === null || predicted === null ? null : persona === predicted;
  }

  filter() {
    const wanted = [...this.selects].filter(([column, select]) => column !== "right" && select.value !== "");
    const tests = wanted.map(([column, select]) => [this.columns[column].rows, Number(select.value)]);
    const words = this.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const right = this.selects.get("right").value;
    this.found = [];
    for (let i = 0; i < this.count; i++) {
      if (!tests.every(([rows, value]) => rows[i] === value)) continue;
      if (right !== "" && this.isRight(i) !== (right === "1")) continue;
      if (words.every((word) => this.search[i].includes(word))) this.found.push(i);
    }
    this.page = 0;
    this.list();
  }

  turn(step) {
    const last = Math.max(0, Math.ceil(this.found.length / PAGE) - 1);
    this.page = Math.min(last, Math.max(0, this.page + step));
    this.list();
  }

  list() {
    const first = this.page * PAGE;
    const shown = this.found.slice(first, first + PAGE);
    const total = this.found.length.toLocaleString("en");
    document.getElementById("found").textContent = shown.length
      ? `${(first + 1).toLocaleString("en")} to ${(first + shown.length).toLocaleString("en")} of ${total} episodes`
      : "No episode has all of these.";
    document.getElementById("before").disabled = first === 0;
    document.getElementById("after").disabled = first + PAGE >= this.found.length;
    document.getElementById("rows").replaceChildren(...shown.map((i) => this.row(i)));
    this.mark();
  }

  row(i) {
    const predicted = this.name("predicted", i);
    const wrong = this.isRight(i) === false;
    const values = {
      predicted: predicted === null ? "" : `${wrong ? "\u2260 " : ""}${predicted}`,
      p: predicted === null ? "" : (this.index.probability[i] / 1000).toFixed(2),
      text: predicted === null && !this.index.beginnings[i] ? "no text" : this.index.beginnings[i],
    };
    const cells = HEADS.map((head) => make("td", { class: this.kind(head, wrong) }, values[head] ?? this.name(head, i) ?? ""));
    return make("tr", { "data-row": i, tabindex: 0, click: () => this.show(i) }, ...cells);
  }

  /** Classes of a column of the list: those with one value are not shown, and some not where there is little room. */
  kind(head, wrong = false) {
    const single = this.columns[head] && head !== "predicted" && new Set(this.columns[head].names).size < 2;
    const classes = [single ? "single" : "", ASIDE.includes(head) ? "aside" : "", head === "predicted" && wrong ? "wrong" : ""];
    return classes.filter(Boolean).join(" ") || null;
  }

  /** Marks the row of the open transcript. */
  mark() {
    for (const row of document.getElementById("rows").children) {
      row.setAttribute("aria-current", String(Number(row.dataset.row) === this.open));
    }
  }

  showCell(data) {
    this.form.reset();
    for (const column of ["model", "stage", "format", "seed"]) {
      const position = this.columns[column].names.indexOf(data[column]);
      if (position >= 0 && this.selects.has(column)) this.selects.get(column).value = String(position);
    }
    setTimeout(() => {
      this.filter();
      document.getElementById("texts").scrollIntoView();
    });
  }

  // ------------------------------------------------------------ transcripts

  /** The transcript of episode `i`. Rejects if the script file that holds it cannot be loaded. */
  async transcript(i) {
    const starts = this.index.starts;
    let low = 0;
    for (let high = starts.length - 1; low < high; ) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= i) low = middle;
      else high = middle - 1;
    }
    const chunk = await loadChunk(low);
    const episode = chunk.episodes[i - starts[low]];
    for (const turn of episode.turns ?? []) if ("shared" in turn) turn.content = chunk.shared[turn.shared];
    return episode;
  }

  /**
   * An episode of the same scenario, persona and model in every stage, in the order of the stages; of several, one of the
   * same sample and seed if there is one. Base texts belong to every persona.
   */
  others(i) {
    const rows = (column) => this.columns[column].rows;
    const same = ["model", "format", "scenario"].map(rows);
    const [persona, stage, sample, seed] = ["persona", "stage", "sample", "seed"].map(rows);
    const fit = (j) => 2 * (sample[j] === sample[i]) + (seed[j] === seed[i]);
    const byStage = new Map([[stage[i], i]]);
    for (let j = 0; j < this.count; j++) {
      if (stage[j] === stage[i] || !same.every((values) => values[j] === values[i])) continue;
      if (persona[j] !== persona[i] && persona[j] >= 0 && persona[i] >= 0) continue;
      const known = byStage.get(stage[j]);
      if (known === undefined || fit(j) > fit(known)) byStage.set(stage[j], j);
    }
    return [...byStage].sort((a, b) => a[0] - b[0]).map(([, j]) => j);
  }

  async show(i, focuses = true) {
    this.open = i;
    this.mark();
    this.panes.classList.add("reading");
    this.panes.classList.toggle("comparing", this.comparing);
    this.reader.hidden = false;
    const rows = this.comparing ? this.others(i) : [i];
    const parts = await Promise.all(rows.map((j) => this.transcript(j).then((t) => this.view(j, t), (error) => this.failed(j, error))));
    if (this.open !== i) return;
    const body = this.comparing ? make("div", { id: "stages" }, ...parts) : parts[0];
    this.reader.replaceChildren(this.buttons(i), body);
    this.reader.scrollTop = 0;
    if (focuses) this.reader.focus({ preventScroll: true });
    const row = document.querySelector(`#rows tr[data-row="${i}"]`);
    if (row) row.scrollIntoView({ block: "nearest" });
    history.replaceState(null, "", `#text-${i}`);
  }

  buttons(i) {
    const at = this.found.indexOf(i);
    const others = this.others(i).length;
    return make(
      "div",
      { class: "bar-line" },
      make("button", { type: "button", click: () => this.close() }, "Close"),
      make("button", { type: "button", disabled: at <= 0, click: () => this.step(-1) }, "Previous"),
      make("button", { type: "button", disabled: at < 0 || at + 1 >= this.found.length, click: () => this.step(1) }, "Next"),
      make(
        "button",
        { type: "button", id: "compare", "aria-pressed": String(this.comparing), disabled: others < 2 && !this.comparing, click: () => this.compare() },
        this.comparing ? "One stage" : others < 2 ? "Compare stages" : `Compare ${others} stages`,
      ),
    );
  }

  compare() {
    this.comparing = !this.comparing;
    this.show(this.open);
  }

  step(by) {
    const next = this.found[this.found.indexOf(this.open) + by];
    if (next === undefined) return;
    const page = Math.floor(this.found.indexOf(next) / PAGE);
    if (page !== this.page) {
      this.page = page;
      this.list();
    }
    this.show(next);
  }

  close() {
    const row = document.querySelector(`#rows tr[data-row="${this.open}"]`);
    this.open = null;
    this.comparing = false;
    this.panes.classList.remove("reading", "comparing");
    this.reader.hidden = true;
    this.reader.replaceChildren();
    this.mark();
    history.replaceState(null, "", location.pathname + location.search);
    if (row) row.focus();
  }

  failed(i, error) {
    return make("section", {}, this.title(i), make("p", { role: "alert" }, error.message));
  }

  title(i) {
    const part = (column) => this.name(column, i);
    const names = [part("model"), part("stage"), part("persona"), part("format")].filter((name) => name !== null);
    const seed = part("seed") === null ? "" : `, seed ${part("seed")}`;
    const ended = part("ended") === null ? "" : `, ended: ${part("ended")}`;
    return make(
      "div",
      {},
      make("h3", {}, names.join(", ")),
      make("p", { class: "quiet" }, `${part("scenario")}, sample ${part("sample")}${seed}${ended}`),
    );
  }

  view(i, transcript) {
    const parts = [this.title(i)];
    if (!transcript.read) parts.push(make("p", {}, "The text is not in the files that this page was made from."));
    else if (transcript.text === null && this.name("predicted", i) === null) parts.push(make("p", {}, "No text was emitted."));
    else if (transcript.text === null) parts.push(make("p", {}, "The row does not hold its text."));
    else parts.push(make("h4", {}, "Scored text"), make("div", { class: "text", dir: "auto" }, transcript.text));
    if (transcript.probs) parts.push(this.probabilities(i, transcript.probs));
    if (transcript.turns?.length) parts.push(make("h4", {}, "Transcript"), ...transcript.turns.map(viewTurn));
    return make("section", {}, ...parts);
  }

  probabilities(i, probs) {
    const labels = this.labels.get(this.name("model", i)) ?? [];
    const body = labels
      .map((label, k) => [label, probs[k]])
      .sort((a, b) => b[1] - a[1])
      .map(([label, p]) => {
        const fill = make("i");
        fill.style.width = `${100 * p}%`;
        const marks = [label === this.name("predicted", i) ? "predicted" : null, label === this.name("persona", i) ? "persona" : null];
        return make(
          "tr",
          {},
          make("th", { scope: "row" }, label),
          make("td", { class: "number" }, p.toFixed(3)),
          make("td", {}, make("span", { class: "bar", "aria-hidden": "true" }, fill)),
          make("td", { class: "quiet" }, marks.filter(Boolean).join(", ")),
        );
      });
    const summary = make("summary", {}, "Probabilities");
    return make("details", { open: !this.comparing }, summary, make("table", { class: "probs" }, make("tbody", {}, ...body)));
  }

  onKey(event) {
    if (event.key === "Enter" && event.target.dataset?.row) return this.show(Number(event.target.dataset.row)), true;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") return this.arrow(event.key === "ArrowDown" ? 1 : -1, event.target);
    if (this.open !== null && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
      return this.step(event.key === "ArrowRight" ? 1 : -1), true;
    }
    if (event.key === "c" && this.open !== null) return this.compare(), true;
    return false;
  }

  /** Arrow keys move in the list where the focus is in it; where a transcript has the focus they scroll it. */
  arrow(by, target) {
    const row = target.closest?.("#rows tr");
    if (!row) return false;
    const next = by > 0 ? row.nextElementSibling : row.previousElementSibling;
    if (next) {
      next.focus();
      if (this.open !== null && !this.comparing) this.show(Number(next.dataset.row), false);
    }
    return true;
  }
}

function viewTurn(turn) {
  const parts = [make("h5", {}, turn.role)];
  if (turn.calls) {
    for (const [tool, values] of turn.calls) {
      const list = make("dl", {}, ...values.flatMap(([name, text]) => [make("dt", {}, name), make("dd", { class: "value", dir: "auto" }, text)]));
      parts.push(make("div", { class: "call" }, make("strong", {}, tool), list));
    }
    if (turn.content) parts.push(make("details", {}, make("summary", {}, "As written"), make("div", { class: "content", dir: "auto" }, turn.content)));
  } else if (turn.role === "system") {
    parts.push(make("details", {}, make("summary", {}, turn.content.slice(0, 80)), make("div", { class: "content", dir: "auto" }, turn.content)));
  } else {
    parts.push(make("div", { class: "content", dir: "auto" }, turn.content));
  }
  const known = ["system", "user", "assistant", "tool"].includes(turn.role) ? turn.role : "";
  return make("div", { class: `turn ${known}` }, ...parts);
}

/** The scored texts of all episodes; null if they are not in the page. */
function wholeTexts() {
  const inside = [...document.querySelectorAll("script.chunk")];
  if (!inside.length) return null;
  inside.forEach((element, number) => offscript.chunks.set(number, JSON.parse(element.textContent)));
  return inside.flatMap((_, number) => offscript.chunks.get(number).episodes.map((episode) => episode.text));
}

/** Chunk `number` of the transcripts, from the page or from its script file. */
function loadChunk(number) {
  if (offscript.chunks.has(number)) return Promise.resolve(offscript.chunks.get(number));
  if (!offscript.waiting.has(number)) {
    const { folder } = JSON.parse(document.getElementById("index").textContent);
    const path = `${folder}/${String(number).padStart(4, "0")}.js`;
    offscript.waiting.set(number, loadScript(path, () => offscript.chunks.get(number)).finally(() => offscript.waiting.delete(number)));
  }
  return offscript.waiting.get(number);
}

function loadScript(path, result) {
  return new Promise((resolve, reject) => {
    const failed = (reason) => reject(new Error(`${path} ${reason}. The folder belongs beside this page.`));
    const script = make("script", {
      src: path,
      load: () => (result() === undefined ? failed("is that of another evaluation") : resolve(result())),
      error: () => failed("cannot be loaded"),
    });
    document.head.append(script);
  });
}

function setUpTexts(cells) {
  const element = document.getElementById("index");
  if (!element) return;
  const inside = JSON.parse(element.textContent);
  const index = inside.folder ? offscript.index : inside;
  if (!index) {
    const place = document.getElementById("browser");
    const text = `The transcripts are in the folder ${inside.folder}, which is not beside this page or is that of another evaluation.`;
    place.before(make("p", { id: "no-texts", role: "alert" }, text));
    return;
  }
  const browser = new Browser(index);
  const linked = /^#text-(\d+)$/.exec(location.hash);
  if (linked && Number(linked[1]) < browser.count) browser.show(Number(linked[1]));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const types = event.target.closest("input, select, textarea") !== null;
    if (event.key === "Escape" && types) event.target.blur();
    else if (event.key === "Escape" && browser.open !== null) browser.close();
    else if (event.key === "Escape") cells.close();
    else if (types || event.target.closest(".grid")) return;
    else if (event.key === "/") browser.words.focus();
    else if (!browser.onKey(event)) return;
    event.preventDefault();
  });
}

window.offscript = offscript;
document.addEventListener("keydown", moveInGrid);
// Script files of a large evaluation come after this script.
document.addEventListener("DOMContentLoaded", () => setUpTexts(setUpCells()));
