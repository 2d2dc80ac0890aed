// Searches the list that `index.js` brings, for pages that lie in files.
"use strict";
(() => {
  const form = document.getElementById("file-search");
  const results = document.getElementById("results");
  const index = globalThis.unlearnRequests;
  if (!form || !results || !index) return;
  const most = 200;
  const shape = {
    received: "waits", queued: "waits", batched: "waits", running: "works", evaluated: "works", released: "done",
    failed: "bad", held: "bad",
  };
  const closed = new Set(["released", "withdrawn", "refused"]);
  const first = [...results.childNodes];
  const rows = index.rows.map((cells) => ({ ...Object.fromEntries(index.columns.map((name, at) => [name, cells[at]])) }));
  for (const row of rows) row.lower = row.request_id.toLowerCase();
  const make = (tag, text, more) => {
    const node = document.createElement(tag);
    if (text) node.textContent = text;
    for (const [name, value] of Object.entries(more || {})) node.setAttribute(name, value);
    return node;
  };
  const cell = (label, ...nodes) => {
    const node = make("td", "", { "data-label": label, role: "cell" });
    node.append(...nodes);
    return node;
  };
  const named = (address, text) => {
    const inside = make("bdi", text);
    if (!address) return inside;
    const link = make("a", "", { href: address });
    link.append(inside);
    return link;
  };
  function line(row) {
    const tr = make("tr", "", { role: "row" });
    const head = make("th", "", { scope: "row", role: "rowheader" });
    head.append(make("bdi", row.request_id));
    const state = make("span", "", { class: "state" });
    state.append(make("i", "", { class: `mark ${shape[row.state] || ""}`, "aria-hidden": "true" }), row.state);
    const due = cell("due", make("span", row.due_at.slice(0, 10)));
    if (row.due === "overdue") { due.className = "late"; due.append(make("small", "overdue")); }
    tr.append(head, cell("state", state), due, cell("model line", make("bdi", row.line)),
      cell("asks for", `${row.values_count} × ${row.kind}`),
      cell("batch", row.batch_id ? named(index.batches[row.batch_id] || "", row.batch_id) : ""),
      cell("received", row.received_at.slice(0, 10)));
    return tr;
  }
  function fits(row, asked) {
    if (asked.q && !row.lower.includes(asked.q)) return false;
    if (asked.batch && row.batch_id !== asked.batch) return false;
    if (asked.line && row.line !== asked.line) return false;
    if (asked.kind && row.kind !== asked.kind) return false;
    if (asked.due && row.due !== asked.due) return false;
    if (asked.state === "open") return !closed.has(row.state);
    return asked.state === "all" || row.state === asked.state;
  }
  function search() {
    const asked = Object.fromEntries(new FormData(form));
    asked.q = asked.q.trim().toLowerCase();
    asked.batch = asked.batch.trim();
    if (!asked.q && !asked.batch && !asked.line && !asked.kind && !asked.due && asked.state === "all") {
      results.replaceChildren(...first);
      return;
    }
    const found = rows.filter((row) => fits(row, asked));
    const count = found.length.toLocaleString("en");
    const words = found.length ? `${count} of ${rows.length.toLocaleString("en")} requests` : "No request matches.";
    const more = found.length > most ? `, the first ${most} shown` : "";
    const table = make("table", "", { class: "stack", role: "table" });
    const head = make("tr", "", { role: "row" });
    for (const name of ["request", "state", "due", "model line", "asks for", "batch", "received"]) {
      head.append(make("th", name, { scope: "col", role: "columnheader" }));
    }
    const top = make("thead", "", { role: "rowgroup" });
    top.append(head);
    const body = make("tbody", "", { role: "rowgroup" });
    body.append(...found.slice(0, most).map(line));
    table.append(top, body);
    results.replaceChildren(make("p", words + more, { class: "note", role: "status" }), ...(found.length ? [table] : []));
  }
  form.hidden = false;
  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
})();
