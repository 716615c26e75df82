// Filter, search and page through the transcripts. One page of cards is in the document at any time.
// All text reaches the page through textContent and text nodes, never as mark-up.
"use strict";
(() => {
  const PAGE = 20;
  const MOST_CELLS = 4e6; // of a table of word pairs; longer answers are not compared word by word
  const LEAST_SHARED = 0.2; // below this share of equal words, marks would only be noise
  const byId = (id) => document.getElementById(id);
  const filter = document.querySelector(".filter");
  if (!filter) return;
  const data = JSON.parse(byId("transcript-data").textContent);
  const list = byId("transcript-list");
  const pages = document.querySelector(".pages");
  const texts = new Map(); // item -> what a search looks in
  let found = data.items;
  let page = 0;

  const answer = (item, model) => {
    const text = item.sides[model][0];
    return typeof text === "number" ? item.sides[text][0] : text;
  };
  const isWord = (token) => /[\p{L}\p{N}]/u.test(token);
  const chosenModel = () => Number(byId("filter-model").value);

  function searched(item) {
    if (!texts.has(item)) {
      const answers = item.sides.flatMap((side) => (side && typeof side[0] === "string" ? [side[0]] : []));
      texts.set(item, [item.id, item.facet, item.prompt, ...answers].join("\n").toLowerCase());
    }
    return texts.get(item);
  }

  function verdictText(item, [, , , verdict, probability, , coherent]) {
    const also = coherent === -1 ? "" : coherent === null ? " · no verdict on coherence" : coherent ? " · coherent" : " · not coherent";
    if (verdict === -1) return `not judged${also}`;
    if (verdict === null) return `no verdict${also}`;
    const { yes, no } = data.axes[item.axis];
    return (verdict === 1 ? yes : no) + (probability === null ? "" : ` · P(${yes}) = ${probability.toFixed(2)}`) + also;
  }

  // Words, single characters of scripts without spaces, runs of white space, and every other character alone.
  const SCRIPTS = "\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Thai}";
  const TOKEN = new RegExp(`[${SCRIPTS}]|(?:(?![${SCRIPTS}])[\\p{L}\\p{M}\\p{N}'’-])+|\\s+|[^]`, "gu");

  // Two token lists -> what both have in the same order, as booleans for either side; null when they are too long.
  // From the longest common subsequence, less single words between two differences: those are chance.
  function compare(left, right) {
    let start = 0;
    while (start < left.length && start < right.length && left[start] === right[start]) start++;
    let end = 0;
    while (end < Math.min(left.length, right.length) - start && left.at(-1 - end) === right.at(-1 - end)) end++;
    const rows = left.length - start - end;
    const columns = right.length - start - end;
    if (rows * columns > MOST_CELLS) return null;
    const longest = Array.from({ length: rows + 1 }, () => new Uint32Array(columns + 1));
    for (let row = rows - 1; row >= 0; row--) {
      for (let column = columns - 1; column >= 0; column--) {
        longest[row][column] = left[start + row] === right[start + column]
          ? longest[row + 1][column + 1] + 1
          : Math.max(longest[row + 1][column], longest[row][column + 1]);
      }
    }
    const kept = [left, right].map((side) => side.map((_, place) => place < start || place >= side.length - end));
    for (let row = 0, column = 0; row < rows && column < columns;) {
      let length = 0;
      while (row + length < rows && column + length < columns
        && left[start + row + length] === right[start + column + length]) length++;
      const run = left.slice(start + row, start + row + length);
      if (run.filter(isWord).length > 1) {
        kept[0].fill(true, start + row, start + row + length);
        kept[1].fill(true, start + column, start + column + length);
      }
      row += length;
      column += length;
      if (row < rows && column < columns && longest[row + 1][column] >= longest[row][column + 1]) row++;
      else column++;
    }
    return kept;
  }

  function marked(tokens, kept, tag) {
    const nodes = [];
    for (let place = 0; place < tokens.length;) {
      let end = place + 1;
      while (end < tokens.length && kept[end] === kept[place]) end++;
      const text = tokens.slice(place, end).join("");
      const node = kept[place] ? document.createTextNode(text) : document.createElement(tag);
      if (!kept[place]) node.textContent = text;
      nodes.push(node);
      place = end;
    }
    return nodes;
  }

  // Fill two elements with two answers, what differs in <del> and <ins>; returns what to say of the pair.
  function fill(elements, answers) {
    elements.forEach((element, place) => { element.textContent = answers[place]; });
    if (answers[0] === answers[1]) return "The same answer, word for word.";
    const tokens = answers.map((text) => text.match(TOKEN) ?? []);
    const kept = compare(...tokens);
    if (!kept) return "";
    const words = tokens.map((side) => side.filter(isWord).length);
    const shared = tokens[0].filter((token, place) => kept[0][place] && isWord(token)).length;
    const share = (2 * shared) / Math.max(words[0] + words[1], 1);
    const said = `${Math.round(100 * share)}% of the words are the same, in the same order`;
    if (share < LEAST_SHARED) return `${said}; too few to mark the differences.`;
    elements.forEach((element, place) => {
      element.replaceChildren(...marked(tokens[place], kept[place], place ? "ins" : "del"));
    });
    return `${said}; the others are underlined.`;
  }

  function card(item) {
    const model = chosenModel();
    const element = byId("card").content.firstElementChild.cloneNode(true);
    const one = (selector) => element.querySelector(selector);
    const change = item.sides[model][5];
    one(".prompt").textContent = item.prompt;
    one(".mark").dataset.change = change;
    one(".mark").textContent = data.changes[change];
    one(".title").textContent = [item.id, item.facet].filter(Boolean).join(" · ");
    const sides = [...element.querySelectorAll(".side")];
    [0, model].forEach((number, place) => {
      const side = item.sides[number];
      const name = data.models[number];
      sides[place].querySelector("strong").textContent = name[0].toUpperCase() + name.slice(1);
      sides[place].querySelector(".verdict").textContent = verdictText(item, side);
      sides[place].querySelector(".length").textContent = `${side[1] === null ? "tokens not counted" : `${side[1]} tokens`}${side[2] ? "" : ", cut"}`;
    });
    const details = one("details");
    details.open = byId("toggle-all").getAttribute("aria-pressed") !== "true";
    let filled = false;
    const show = () => {
      if (filled || !details.open) return;
      filled = true;
      one(".note").textContent = fill(sides.map((side) => side.querySelector(".answer")), [answer(item, 0), answer(item, model)]);
    };
    details.addEventListener("toggle", () => {
      if (filled || !details.open) return;
      show();
      highlight();
    });
    return [element, show];
  }

  // Mark what was searched for, where the browser can do so without touching the document.
  function highlight() {
    if (!globalThis.Highlight || !CSS.highlights) return;
    const text = byId("filter-text").value.trim().toLowerCase();
    const ranges = [];
    const walker = document.createTreeWalker(list, NodeFilter.SHOW_TEXT);
    while (text && walker.nextNode()) {
      const node = walker.currentNode;
      const content = node.data.toLowerCase();
      if (content.length !== node.data.length) continue; // places would not fit
      for (let at = content.indexOf(text); at >= 0; at = content.indexOf(text, at + text.length)) {
        const range = new Range();
        range.setStart(node, at);
        range.setEnd(node, at + text.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("searched", new Highlight(...ranges));
  }

  function showPage() {
    const first = page * PAGE;
    const shown = found.slice(first, first + PAGE).map(card);
    list.replaceChildren(...shown.map(([element]) => element));
    list.start = first + 1;
    shown.forEach(([, show]) => show());
    highlight();
    const last = Math.ceil(found.length / PAGE);
    pages.hidden = last < 2;
    byId("previous-page").disabled = page === 0;
    byId("next-page").disabled = page + 1 >= last;
    byId("page-number").textContent = `Page ${page + 1} of ${last}`;
    byId("filter-status").textContent = found.length
      ? `${found.length} of ${data.items.length} prompts, ${first + 1} to ${first + shown.length} shown`
      : `None of ${data.items.length} prompts`;
  }

  function update() {
    const text = byId("filter-text").value.trim().toLowerCase();
    const [axis, facet, change] = ["axis", "facet", "change"].map((name) => byId(`filter-${name}`).value);
    const model = chosenModel();
    found = data.items.filter((item) => {
      if (!item.sides[model]) return false;
      const its = item.sides[model][5];
      return (!axis || item.axis === Number(axis)) && (!facet || item.facet === facet)
        && (!change || its === change || (change === "changed" && (its === "gain" || its === "loss")))
        && (!text || searched(item).includes(text));
    });
    page = 0;
    showPage();
  }

  // The facets of the chosen axis, or of all.
  function listFacets() {
    const axis = byId("filter-axis").value;
    const items = data.items.filter((item) => item.facet && (!axis || item.axis === Number(axis)));
    const facets = [...new Set(items.map((item) => item.facet))].sort();
    const options = ["", ...facets].map((facet) => new Option(facet || "all", facet));
    byId("filter-facet").replaceChildren(...options);
    byId("filter-facet").closest("label").hidden = options.length < 2;
  }

  function turn(step) {
    page += step;
    showPage();
    list.querySelector("summary").focus({ preventScroll: true });
    list.scrollIntoView();
  }

  byId("filter-text").addEventListener("input", update);
  byId("filter-axis").addEventListener("change", () => { listFacets(); update(); });
  for (const name of ["facet", "change", "model"]) byId(`filter-${name}`).addEventListener("change", update);
  byId("toggle-all").addEventListener("click", () => {
    const button = byId("toggle-all");
    const closed = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(closed));
    for (const details of list.querySelectorAll("details")) details.open = !closed;
  });
  byId("previous-page").addEventListener("click", () => turn(-1));
  byId("next-page").addEventListener("click", () => turn(1));
  byId("filter-model").closest("label").hidden = data.models.length < 3;
  filter.hidden = false;
  listFacets();
  update();
})();
