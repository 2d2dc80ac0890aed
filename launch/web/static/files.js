// Searches the list that `index.js` brings, for pages that lie in files.
"use strict";
(() => {
  const form = document.getElementById("file-search");
  const results = document.getElementById("results");
  const index = globalThis.unlearnRequests;
  if (!form || !results || !index) return;
  const { make, day, named, state, table, count } = globalThis.unlearnParts;
  const most = 200;
  const columns = ["request", "state", "due", "model line", "asks for", "batch", "received"];
  const closed = new Set(["released", "withdrawn", "refused"]);
  const first = [...results.childNodes];
  const rows = index.rows.map((cells) => Object.fromEntries(index.columns.map((name, at) => [name, cells[at]])));
  for (const row of rows) row.lower = row.request_id.toLowerCase();
  function due(row) {
    if (row.due !== "overdue") return day(row.due_at);
    return make("span", [day(row.due_at), make("small", "overdue")], { class: "late" });
  }
  function line(row) {
    const batch = row.batch_id ? named(index.batches[row.batch_id] || "", row.batch_id) : "";
    return [make("bdi", row.request_id), state(row.state), due(row), make("bdi", row.line),
      `${row.values_count} × ${row.kind}`, batch, day(row.received_at)];
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
    const words = found.length ? `${count(found.length)} of ${count(rows.length)} requests` : "No request matches.";
    const more = found.length > most ? `, the first ${most} shown` : "";
    const shown = found.length ? [table(columns, found.slice(0, most).map(line))] : [];
    results.replaceChildren(make("p", words + more, { class: "note", role: "status" }), ...shown);
  }
  form.hidden = false;
  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
})();
