// From a model to the requests that shaped it, and from a request to the models after it, for pages that lie in files.
"use strict";
(() => {
  const form = document.getElementById("file-trace");
  const results = document.getElementById("results");
  const index = globalThis.unlearnRequests;
  const family = globalThis.unlearnLineage;
  if (!form || !results || !index || !family) return;
  const { make, day, named, table, count } = globalThis.unlearnParts;
  const most = 200;
  const models = new Map(family.models.map((model) => [model.model_id, model]));
  const batchesOf = new Map();
  for (const [batch, request, outcome] of family.members) {
    if (!batchesOf.has(request)) batchesOf.set(request, []);
    batchesOf.get(request).push([batch, outcome]);
  }
  const batchLink = (batch) => (batch ? named(index.batches[batch] || "", batch) : "–");
  function ancestry(model) {
    const found = [];
    for (let at = model; at && !found.includes(at); at = models.get(at.parent)) found.push(at);
    return found;
  }
  function section(title, ...inside) {
    return make("section", [make("h2", title), ...inside]);
  }
  function modelTable(rows) {
    const lines = rows.map((model) => {
      const sha = [make("code", `${model.model_id.slice(0, 12)}…`), ...(model.kind ? [make("small", model.kind)] : [])];
      return [sha, make("bdi", model.aliases.join(", ") || "–"), make("bdi", model.line), model.verdict || "not computed",
        batchLink(model.batch_id), day(model.made_at)];
    });
    return table(["model, sha256", "in force as", "model line", "verdict", "batch", "made"], lines);
  }
  function ofRequest(name) {
    const batches = batchesOf.get(name);
    const own = new Set(batches.map(([batch]) => batch));
    const after = family.models.filter((model) => ancestry(model).some((one) => own.has(one.batch_id)));
    const lines = batches.map(([batch, outcome]) => [batchLink(batch), outcome.replace("_", " ")]);
    const shown = after.length ? modelTable(after) : make("p", "None is in the ledger.", { class: "empty" });
    return [section("Batches that it was in", table(["batch", "outcome of the request"], lines)),
      section("Models made for these batches, and those that came of them", shown)];
  }
  function ofModel(model) {
    const line = ancestry(model);
    const batches = new Set(line.map((one) => one.batch_id).filter(Boolean));
    const requests = family.members.filter(([batch]) => batches.has(batch));
    const lines = requests.slice(0, most).map(([batch, request, outcome]) =>
      [make("bdi", request), batchLink(batch), outcome.replace("_", " ")]);
    const words = `${count(requests.length)} requests${requests.length > most ? `, the first ${most} shown` : ""}`;
    return [section("The model, and what it came from, nearest first", modelTable(line)),
      section("Requests that shaped it", make("p", words, { class: "note", role: "status" }),
        table(["request", "batch", "outcome there"], lines))];
  }
  function search() {
    const asked = new FormData(form).get("q").trim();
    const lower = asked.toLowerCase();
    const meant = lower.length < 8 ? [] : family.models.filter((model) => model.model_id.startsWith(lower));
    let shown = [];
    if (batchesOf.has(asked)) shown = ofRequest(asked);
    else if (meant.length === 1) shown = ofModel(meant[0]);
    else if (meant.length > 1) shown = [section("Which one?", modelTable(meant))];
    else if (asked) shown = [make("p", "No request that was in a batch has this name, and no model’s sha256 begins so.", { class: "empty" })];
    results.replaceChildren(...shown);
  }
  form.hidden = false;
  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
})();
