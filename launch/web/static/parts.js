// Pieces that both searches of pages in files are made of. Text goes in as text, never as HTML.
"use strict";
globalThis.unlearnParts = (() => {
  const shape = {
    received: "waits", queued: "waits", batched: "waits", running: "works", evaluated: "works", released: "done",
    failed: "bad", held: "bad",
  };
  const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  function make(tag, inside, attributes) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    node.append(...(Array.isArray(inside) ? inside : [inside]).filter((part) => part !== ""));
    return node;
  }
  function day(text) {
    return text ? `${Number(text.slice(8, 10))} ${months[Number(text.slice(5, 7)) - 1]} ${text.slice(0, 4)}` : "";
  }
  function named(address, text) {
    const inside = make("bdi", text);
    return address ? make("a", inside, { href: address }) : inside;
  }
  function state(name) {
    const mark = make("i", "", { class: `mark ${shape[name] || ""}`, "aria-hidden": "true" });
    return make("span", [mark, name.replace("_", " ")], { class: "state" });
  }
  // Rows of cells, of which the first is the row's head; an empty cell has no label on a phone.
  function table(columns, rows) {
    const head = columns.map((name) => make("th", name, { scope: "col", role: "columnheader" }));
    const lines = rows.map((cells) => make("tr", cells.map((cell, at) => {
      if (at === 0) return make("th", cell, { scope: "row", role: "rowheader" });
      return make("td", cell, cell === "" ? { role: "cell" } : { role: "cell", "data-label": columns[at] });
    }), { role: "row" }));
    const top = make("thead", make("tr", head, { role: "row" }), { role: "rowgroup" });
    return make("table", [top, make("tbody", lines, { role: "rowgroup" })], { class: "stack", role: "table" });
  }
  const count = (number) => number.toLocaleString("en");
  return { make, day, named, state, table, count };
})();
