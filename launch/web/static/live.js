// Renews the words, bars and curves of a run that goes on; a stage or curve that is new reloads the page's part.
"use strict";
(() => {
  const live = document.getElementById("live");
  const address = live && live.dataset.progress;
  if (!address) return;
  const fill = (attribute, named, put) => {
    for (const node of document.querySelectorAll(`[data-${attribute}]`)) {
      const value = named[node.dataset[attribute]];
      if (value !== undefined) put(node, value);
    }
  };
  const knows = (attribute, named) => Object.keys(named).every(
    (name) => document.querySelector(`[data-${attribute}="${CSS.escape(name)}"]`) !== null);
  async function reload() {
    const answer = await fetch(location.href, { credentials: "same-origin" });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
    if (fresh) live.replaceChildren(...fresh.childNodes);
  }
  async function renew() {
    let wait = 5000;
    try {
      if (!document.hidden) {
        const answer = await fetch(address, { credentials: "same-origin" });
        if (!answer.ok) throw new Error("no answer");
        const told = await answer.json();
        if (!knows("value", told.values) || !knows("points", told.points)) await reload();
        fill("text", told.texts, (node, text) => { if (node.textContent !== text) node.textContent = text; });
        fill("mark", told.texts, (node, text) => { node.className = `mark ${text}`; });
        fill("value", told.values, (node, value) => { node.value = value; });
        fill("points", told.points, (node, points) => { node.setAttribute("points", points); });
        if (told.done) { location.reload(); return; }
      }
    } catch {
      wait = 20000;
    }
    setTimeout(renew, wait);
  }
  setTimeout(renew, 2000);
})();
