"use strict";
(() => {
  const sheet = JSON.parse(document.getElementById("sheet").textContent);
  const questions = sheet.questions;
  const kept = `offscript ${sheet.name}`;
  const values = ["present", "absent"];
  const element = (id) => document.getElementById(id);
  // No prototype: an id is a key, whatever it is called.
  const labels = Object.create(null);
  let at = 0;

  function restore() {
    try {
      const known = JSON.parse(localStorage.getItem(kept) || "{}");
      for (const [id] of questions) if (Object.hasOwn(known, id) && values.includes(known[id])) labels[id] = known[id];
      keep();
    } catch { element("warning").hidden = false; }
    const first = questions.findIndex(([id]) => !labels[id]);
    at = Math.max(first, 0);
  }

  function keep() {
    try { localStorage.setItem(kept, JSON.stringify(labels)); } catch { element("warning").hidden = false; }
  }

  function show() {
    const [id, persona, description, text] = questions[at];
    element("persona").textContent = persona;
    element("description").textContent = description;
    element("text").textContent = text;
    element("place").textContent = `Text ${at + 1} of ${questions.length}`;
    const done = questions.filter(([one]) => labels[one]).length;
    element("bar").value = done;
    element("count").textContent = done < questions.length ? `${done} of ${questions.length} labelled` : `All ${done} are labelled: save them`;
    for (const value of values) element(value).setAttribute("aria-pressed", labels[id] === value);
    element("previous").disabled = at === 0;
    element("next").disabled = at === questions.length - 1;
  }

  function move(steps) {
    const to = Math.min(Math.max(at + steps, 0), questions.length - 1);
    if (to !== at) window.scrollTo(0, 0);
    at = to;
    show();
  }

  function label(value) {
    labels[questions[at][0]] = value;
    keep();
    move(1);
  }

  function clear() {
    delete labels[questions[at][0]];
    keep();
    show();
  }

  function save() {
    const lines = questions.map(([id]) => `${id},${labels[id] || ""}`);
    const file = new Blob([["id,label", ...lines, ""].join("\n")], { type: "text/csv" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `${sheet.name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const keys = {
    1: () => label("present"),
    0: () => label("absent"),
    ArrowLeft: () => move(-1),
    ArrowRight: () => move(1),
    Backspace: clear,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    // A key that is held down would label the texts that follow unread.
    if (!event.repeat || event.key.startsWith("Arrow")) keys[event.key]();
  });
  for (const value of values) element(value).addEventListener("click", () => label(value));
  element("previous").addEventListener("click", () => move(-1));
  element("next").addEventListener("click", () => move(1));
  element("save").addEventListener("click", save);
  restore();
  show();
})();
