"use strict";
// Sorts and filters the tables, and shows the case browser. Loads nothing.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = id => JSON.parse(document.getElementById(id)?.textContent ?? "null");

function element(tag, content, attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...[content].flat());
  return made;
}

// a cell's number: typographic minus signs, the lower end of intervals, times in seconds; NaN for words
function valueOf(text) {
  const match = text.replaceAll("\u2212", "-").match(/^[[<>\s]*([+-]?\d+(?:\.\d+)?)(?: (min|h)$)?/);
  return match ? Number(match[1]) * ({min: 60, h: 3600}[match[2]] ?? 1) : NaN;
}

function makeSortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], original = [...body.rows];
  heads.forEach((head, column) => {
    const button = element("button", head.textContent, {type: "button", title: "sort"});
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const cells = new Map(original.map(row => [row, row.cells[column].textContent.trim()]));
      const numbers = new Map([...cells].map(([row, text]) => [row, valueOf(text)]));
      const numeric = [...numbers.values()].some(value => !Number.isNaN(value));
      const turns = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
      const turn = turns[turns.indexOf(head.getAttribute("aria-sort")) + 1];  // undefined after the second
      heads.forEach(other => other.removeAttribute("aria-sort"));
      const sign = turn === "descending" ? -1 : 1, rows = [...original];
      if (turn) head.setAttribute("aria-sort", turn);
      if (turn && numeric) {
        const last = row => Number.isNaN(numbers.get(row));  // cells without a number stay at the bottom
        rows.sort((a, b) => last(a) - last(b) || (last(a) ? 0 : sign * (numbers.get(a) - numbers.get(b))));
      } else if (turn) {
        rows.sort((a, b) => sign * cells.get(a).localeCompare(cells.get(b)));
      }
      body.append(...rows);
    });
  });
}

// the method of a row: the longest method name that begins the cell, alone or before a mark ("LocBAM, atlas")
function methodOf(text, methods) {
  const begun = methods.filter(name => text === name || [" (", ": ", ", "].some(mark => text.startsWith(name + mark)));
  return begun.sort((a, b) => b.length - a.length)[0];
}

function makeFilter(names, changed) {
  const filter = document.getElementById("filter"), summary = filter.querySelector("summary");
  const chosen = {methods: new Set(names.methods), classes: new Set(names.classes)};
  const update = () => {
    const words = Object.entries(chosen).map(([kind, kept]) =>
      kept.size === names[kind].length ? `all ${kind}` : `${kept.size} of ${names[kind].length} ${kind}`);
    summary.textContent = `Show ${words.join(", ")}`;
    for (const table of all("table")) filterTable(table, names, chosen);
    changed(chosen.methods);
  };
  for (const kind of ["methods", "classes"]) {
    if (names[kind].length < 2) continue;
    const boxes = names[kind].map(name => element("input", [], {type: "checkbox", checked: true, name: kind, value: name}));
    const set = on => boxes.forEach(box => { if (box.checked !== on) box.click(); });
    boxes.forEach(box => box.addEventListener("change", () => {
      chosen[kind][box.checked ? "add" : "delete"](box.value);
      update();
    }));
    const buttons = [true, false].map(on => {
      const button = element("button", on ? "all" : "none", {type: "button"});
      button.addEventListener("click", () => set(on));
      return button;
    });
    filter.append(element("fieldset", [element("legend", kind), ...buttons,
      ...boxes.map(box => element("label", [box, " ", box.value]))]));
  }
  filter.hidden = !filter.querySelector("fieldset");
  update();
}

function filterTable(table, names, chosen) {
  const heads = [...table.tHead.rows[0].cells].map(cell => cell.textContent.trim());
  const at = heads.indexOf("method");
  for (const row of table.rows) {
    const method = at < 0 || row.parentElement === table.tHead ? null : methodOf(row.cells[at].textContent.trim(), names.methods);
    row.hidden = Boolean(method) && !chosen.methods.has(method);
    heads.forEach((head, column) => {
      if (names.classes.includes(head)) row.cells[column].hidden = !chosen.classes.has(head);
    });
  }
  const kept = [...table.tHead.rows[0].cells].filter(cell => !cell.hidden);
  table.style.setProperty("--columns", kept.length);  // wide tables are printed with columns as rows
}

function makeBrowser(content) {
  const place = document.getElementById("browser");
  let methods = null, preset = content.presets[0], shown = null, views = [];
  const presets = element("select", content.presets.map(one => element("option", one.name)), {title: "preset"});
  const cases = element("select", [], {title: "case"}), slider = element("input", [], {type: "range", min: 0, title: "slice"});
  const name = element("output", ""), marks = element("input", [], {type: "checkbox", checked: true});
  const panels = element("div", [], {className: "panels"}), swaps = element("p", [], {className: "note"});
  const steps = [["\u25C0", -1, "case before"], ["\u25B6", 1, "next case"]].map(([sign, by, title]) => {
    const button = element("button", sign, {type: "button", title});
    button.addEventListener("click", () => {
      const count = preset.cases.length;
      showCase((cases.selectedIndex + by + count) % count);
    });
    return button;
  });

  function showSlice(index) {
    const count = shown.names.length;
    slider.value = index;
    name.textContent = shown.names[index];
    for (const {view, panel} of views) {
      const pictures = [marks.checked && panel.labels, shown.scan].filter(Boolean);
      view.style.backgroundImage = pictures.map(url => `url("${url}")`).join(", ");
      view.style.backgroundPosition = `0 ${count > 1 ? 100 * index / (count - 1) : 0}%`;
      const score = panel.dice ? `: Dice ${panel.dice}%${panel.swapped ? `, ${panel.swapped}% swapped` : ""}` : "";
      view.setAttribute("aria-label", `${shown.case}, ${shown.names[index]}, ${panel.name}${score}`);
    }
  }

  function makePanel(panel) {
    const view = element("div", shown.letters.map(letter => element("span", letter)), {className: "view"});
    view.setAttribute("role", "img");
    view.style.aspectRatio = shown.ratio;
    view.style.backgroundSize = `100% ${100 * shown.names.length}%`;
    view.classList.toggle("empty", !panel.labels);
    const caption = element("figcaption", element("strong", panel.name));
    if (panel.dice) caption.append(` Dice ${panel.dice}%`);
    if (panel.swapped) caption.append(" ", swapButton(`${panel.swapped}% swapped`, () => showSlice(panel.at)));
    views.push({view, panel});
    return element("figure", [view, caption], {className: "panel"});
  }

  function swapButton(text, act) {
    const button = element("button", text, {type: "button", title: "to the slice with most swapped voxels"});
    button.addEventListener("click", act);
    return button;
  }

  function showCase(index, slice) {
    cases.selectedIndex = index;
    shown = preset.cases[index];
    views = [];
    slider.max = shown.names.length - 1;
    panels.replaceChildren(...shown.panels.filter(one => !one.method || methods.has(one.method)).map(makePanel));
    showSlice(slice ?? shown.first);
  }

  function showPreset(index) {
    preset = content.presets[index];
    cases.replaceChildren(...preset.cases.map(one => element("option", `${one.case}: ${preset.leader} ${one.dice}%`)));
    const swapped = preset.cases.flatMap((one, at) => one.panels.filter(panel => panel.swapped).map(panel => ({one, at, panel})));
    swapped.sort((a, b) => Number(b.panel.swapped) - Number(a.panel.swapped));
    swaps.replaceChildren(...swapped.slice(0, 6).flatMap(({one, at, panel}) =>
      [swapButton(`${one.case}, ${panel.name}: ${panel.swapped}%`, () => showCase(at, panel.at)), " "]));
    if (swapped.length) swaps.prepend("Most swapped sides: ");
    showCase(0);
  }

  presets.addEventListener("change", () => showPreset(presets.selectedIndex));
  cases.addEventListener("change", () => showCase(cases.selectedIndex));
  slider.addEventListener("input", () => showSlice(Number(slider.value)));
  marks.addEventListener("change", () => showSlice(Number(slider.value)));
  const colours = [...content.labels, ...(content.presets.some(one => one.cases.some(two => two.panels.some(three => three.swapped))) ?
    [["predicted as the other side", content.swapped]] : [])];
  const legend = element("ul", colours.map(([label, colour]) => {
    const patch = element("i", "");
    patch.style.background = colour;
    return element("li", [patch, label]);
  }), {className: "legend"});
  place.append(
    element("div", [content.presets.length > 1 ? presets : "", steps[0], cases, steps[1],
      element("label", [marks, " labels"]), element("span", [slider, name], {className: "slice"})], {className: "controls"}),
    swaps, panels, legend);
  return kept => {
    const first = methods === null, at = Math.max(0, cases.selectedIndex), slice = Number(slider.value);
    methods = kept;
    if (first) showPreset(0); else showCase(at, slice);
  };
}

all(".table table").forEach(makeSortable);
const content = data("cases-data");
makeFilter(data("names"), content ? makeBrowser(content) : () => {});
