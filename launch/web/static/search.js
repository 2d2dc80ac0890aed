// Searches while one types: asks the server for the same page, and puts its list in place of the one shown.
"use strict";
(() => {
  const form = document.querySelector("form.search");
  const results = document.getElementById("results");
  if (!form || !results) return;
  let timer = 0, turn = 0;
  async function show(address) {
    const mine = ++turn;
    const answer = await fetch(address, { credentials: "same-origin" });
    const text = await answer.text();
    if (mine !== turn || !answer.ok) return;
    const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("results");
    if (!fresh) return;
    results.replaceChildren(...fresh.childNodes);
    history.replaceState(null, "", address);
  }
  function address() {
    const given = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      if (value && !(name === "state" && value === "open")) given.set(name, value);
    }
    const query = given.toString();
    return query ? `${location.pathname}?${query}` : location.pathname;
  }
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => show(address()).catch(() => {}), 120);
  });
})();
