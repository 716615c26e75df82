// Filter the transcripts; build those beyond the first ten an axis only when they are asked for.
// All text reaches the page through textContent, never as mark-up.
"use strict";
(() => {
  const STEP = 50;
  const byId = (id) => document.getElementById(id);
  const filter = document.querySelector(".filter");
  if (!filter) return;
  const others = JSON.parse(byId("other-transcripts").textContent);
  const shown = [...document.querySelectorAll(".group:not(#others) .transcript")];
  const list = byId("others-list");
  let all = false;
  let limit = STEP;

  function card(transcript) {
    const article = byId("card").content.cloneNode(true).querySelector("article");
    article.dataset.axis = transcript.axis;
    for (const field of article.querySelectorAll("[data-field]")) field.textContent = transcript[field.dataset.field];
    article.querySelector(".mark").dataset.change = transcript.change;
    return article;
  }

  function update() {
    const text = byId("filter-text").value.trim().toLowerCase();
    const axis = byId("filter-axis").value;
    const fits = (itsAxis, itsText) => (!axis || itsAxis === axis) && (!text || itsText().toLowerCase().includes(text));
    for (const article of shown) article.hidden = !fits(article.dataset.axis, () => article.textContent);
    for (const group of document.querySelectorAll(".group:not(#others)")) {
      group.hidden = !group.querySelector("article:not([hidden])");
    }
    const found = all || text
      ? others.filter((transcript) => fits(transcript.axis, () => Object.values(transcript).join("\n")))
      : [];
    list.replaceChildren(...found.slice(0, limit).map(card));
    byId("others").hidden = found.length === 0;
    byId("show-more").hidden = found.length <= limit;
    const visible = shown.filter((article) => !article.hidden).length + Math.min(found.length, limit);
    byId("filter-status").textContent = `${visible} of ${shown.length + others.length} shown`
      + (found.length > limit ? `, ${found.length - limit} more at the end` : "");
  }

  function restart() {
    limit = STEP;
    update();
  }

  byId("filter-text").addEventListener("input", restart);
  byId("filter-axis").addEventListener("change", restart);
  byId("show-all").addEventListener("click", () => {
    all = !all;
    byId("show-all").setAttribute("aria-pressed", String(all));
    restart();
  });
  byId("show-more").addEventListener("click", () => {
    const first = list.children.length;
    limit += STEP;
    update();
    list.children[first].tabIndex = -1;
    list.children[first].focus();
  });
  filter.hidden = false;
  update();
})();
