// A search tree as boxes and lines, of which only those in view are in the document.
"use strict";

const element = (name, classes = "", text = null) => {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text !== null) made.textContent = text; // texts never become markup
  return made;
};
const decimals = (number, places = 2) => number === null || number === undefined
  ? "–" : number.toFixed(places);

const ROW = 48, LEFT = 10, TOP = 8, FIRST_BOXES = 120;
const STATUS = ["kept", "removed", "finished", "failed"];

// The arrays of one search and what follows from them. A box holds the steps that follow each other
// without a choice; it is named by its first node.
class Search {
  constructor(data) {
    Object.assign(this, data);
    const n = this.parent.length;
    this.children = Array.from({ length: n }, () => []);
    for (let i = 1; i < n; i++) this.children[this.parent[i]].push(i);
    this.boxes = new Map();
    this.models = Object.keys(this.scores);
  }

  chosenPath(model) {
    const path = new Set();
    let node = this.chosen[model] ?? this.chosen[""] ?? -1;
    for (; node >= 0; node = this.parent[node]) path.add(node);
    return path;
  }

  box(first) { // the box that begins with a node
    if (!this.boxes.has(first)) {
      const nodes = [first];
      for (let last = first; first !== 0 && this.children[last].length === 1;) {
        const next = this.children[last][0];
        if (this.visits[next] !== this.visits[first]) break;
        nodes.push(next);
        last = next;
      }
      this.boxes.set(first, { nodes, last: nodes[nodes.length - 1], below: null });
    }
    return this.boxes.get(first);
  }

  below(first, path) { // the boxes after a box: the chosen one, then the most visited first
    const box = this.box(first);
    if (box.below?.path !== path) {
      const order = [...this.children[box.last]];
      order.sort((a, b) => path.has(b) - path.has(a) || this.visits[b] - this.visits[a] || a - b);
      box.below = { path, order };
    }
    return box.below.order;
  }

  text(index) { return this.texts[index]; }
}

// One pane: a search, the boxes that are open, the box that is selected, and its text.
class TreeView {
  constructor(place, name) {
    this.canvas = element("div", "canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "tree");
    this.canvas.id = `tree-${name}`;
    this.sizer = element("div");
    this.sizer.setAttribute("role", "presentation");
    this.lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.lines.setAttribute("aria-hidden", "true");
    this.panel = element("div", "text");
    this.panel.tabIndex = -1;
    this.panel.setAttribute("aria-live", "polite");
    this.canvas.append(this.lines, this.sizer);
    place.append(this.canvas, this.panel);
    this.drawn = new Map();
    this.canvas.addEventListener("scroll", () => this.later());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("click", (event) => this.click(event));
    new ResizeObserver(() => this.later()).observe(this.canvas);
  }

  show(search, model) {
    this.search = search;
    this.model = model;
    this.path = search.chosenPath(model);
    this.at = 0;
    this.open = new Set();
    this.canvas.setAttribute("aria-label", search.label);
    this.openFirst();
    this.layout();
    this.canvas.scrollTo(0, 0);
    this.draw(true);
    this.read();
  }

  openFirst() { // level by level until enough boxes are shown; the chosen path is always open
    let level = [0], shown = 1;
    while (level.length && shown < FIRST_BOXES) {
      const next = [];
      for (const first of level) {
        const below = this.search.below(first, this.path);
        if (!below.length || (shown + below.length > FIRST_BOXES && first !== 0)) continue;
        this.open.add(first);
        shown += below.length;
        next.push(...below);
      }
      level = next;
    }
    for (let first = 0; this.path.has(first);) {
      const next = this.search.below(first, this.path)[0];
      if (next === undefined) break;
      this.open.add(first);
      first = next;
    }
  }

  // A first child stands right of its parent, its siblings below: rows never fall from one shown
  // box to the next, so that those in view are found by bisection.
  layout() {
    const { search, path } = this;
    this.shown = [];
    this.place = new Map();
    const stack = [[0, 0, null, true, 1, 1]];
    let row = -1;
    while (stack.length) {
      const [first, depth, parent, isFirst, position, size] = stack.pop();
      if (!isFirst || parent === null) row += 1;
      const box = { first, depth, row, parent, position, size, end: row, below: [] };
      this.place.set(first, box);
      this.shown.push(box);
      parent?.below.push(box);
      if (parent && !isFirst) parent.end = row;
      if (!this.open.has(first)) continue;
      const below = search.below(first, path);
      for (let i = below.length - 1; i >= 0; i--) {
        stack.push([below[i], depth + 1, box, i === 0, i + 1, below.length]);
      }
    }
    this.rows = row + 1;
    this.depth = this.shown.reduce((most, box) => Math.max(most, box.depth), 0);
    this.width = this.canvas.clientWidth < 420 ? 154 : 184;
    this.column = this.width + 30;
    this.sizer.style.width = `${2 * LEFT + (this.depth + 1) * this.column - 30}px`;
    this.sizer.style.height = `${2 * TOP + this.rows * ROW - 6}px`;
  }

  later() {
    if (!this.search || this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(false); });
  }

  inView() {
    const from = Math.floor((this.canvas.scrollTop - TOP) / ROW) - 2;
    const to = Math.ceil((this.canvas.scrollTop + this.canvas.clientHeight) / ROW) + 2;
    let low = 0, high = this.shown.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.shown[middle].row < from) low = middle + 1; else high = middle;
    }
    const found = [];
    for (let i = low; i < this.shown.length && this.shown[i].row <= to; i++) {
      found.push(this.shown[i]);
    }
    return found;
  }

  draw(again) {
    const left = this.canvas.scrollLeft - this.column;
    const right = this.canvas.scrollLeft + this.canvas.clientWidth + this.column;
    const rows = this.inView();
    const seen = rows.filter((box) => {
      const x = LEFT + box.depth * this.column;
      return x >= left && x <= right;
    });
    const at = this.place.get(this.at);
    if (at && !seen.includes(at)) seen.push(at); // the selected box is always in the document
    const wanted = new Set(seen.map((box) => box.first));
    for (const [first, node] of this.drawn) {
      if (again || !wanted.has(first)) { node.remove(); this.drawn.delete(first); }
    }
    for (const box of seen) {
      if (this.drawn.has(box.first)) continue;
      const node = this.node(box);
      this.drawn.set(box.first, node);
      this.sizer.append(node);
    }
    this.drawLines(rows);
    this.mark();
  }

  drawLines(rows) { // of the boxes in view and of the boxes above them, whose lines pass the view
    const parents = new Set(rows);
    for (let box = rows[0]?.parent; box; box = box.parent) parents.add(box);
    for (const box of rows) if (box.parent) parents.add(box.parent);
    const top = this.canvas.scrollTop - 3 * ROW;
    const bottom = this.canvas.scrollTop + this.canvas.clientHeight + 3 * ROW;
    const lines = [[], []];
    for (const box of parents) {
      const x = LEFT + box.depth * this.column + this.width, y = TOP + box.row * ROW + 21;
      const trunk = x + 13, end = TOP + box.end * ROW + 21 - 8;
      if (box.end > box.row) {
        lines[0].push(`M${trunk} ${Math.max(y, top)}V${Math.min(end, bottom)}`);
      }
      for (const child of box.below) {
        const below = TOP + child.row * ROW + 21;
        if (below < top || below > bottom) continue;
        const to = LEFT + child.depth * this.column;
        const onPath = this.path.has(child.first) && this.path.has(box.first);
        lines[+onPath].push(child.row === box.row ? `M${x} ${y}H${to}`
          : `M${trunk} ${below - 8}Q${trunk} ${below} ${trunk + 8} ${below}H${to}`);
      }
    }
    this.lines.replaceChildren(...lines.map((parts, chosen) => {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      if (chosen) path.setAttribute("class", "chosen");
      path.setAttribute("d", parts.join(""));
      return path;
    }));
  }

  facts(box) {
    const { search, model } = this, { nodes, last } = search.box(box.first);
    const score = model === "" ? null : search.scores[model][last];
    const span = search.spans[model] ?? [0, 1];
    return {
      nodes, last, score, status: STATUS[search.status[last]], chosen: this.path.has(last),
      place: score === null ? null : (score - span[0]) / (span[1] - span[0] || 1),
      visits: search.visits[box.first], value: search.value[box.first],
      done: search.flags[last] & 1, success: search.flags[last] & 2,
      below: search.children[last].length,
      action: box.first === 0 ? "start"
        : search.text(search.action[box.first]) || "(no action)",
      times: search.multiplicity?.[box.first] ?? 1,
    };
  }

  node(box) {
    const facts = this.facts(box), { action, visits, value, score, nodes } = facts;
    const node = element("div", `node ${facts.status}${facts.chosen ? " chosen" : ""}`);
    node.id = `${this.canvas.id}-${box.first}`;
    node.dataset.first = box.first;
    node.style.left = `${LEFT + box.depth * this.column}px`;
    node.style.top = `${TOP + box.row * ROW}px`;
    node.style.width = `${this.width}px`;
    const more = nodes.length > 1 ? ` +${nodes.length - 1}` : "";
    node.append(element("span", "action", action + more));
    const numbers = element("span", "numbers");
    numbers.append(element("span", "", `${visits}×`));
    if (value !== null) numbers.append(element("span", "value", decimals(value)));
    if (score !== null) numbers.append(element("span", "score", decimals(score)));
    const ended = facts.success ? ["✓ solved", "mark good"]
      : facts.status === "failed" ? ["failed", "mark bad"] : facts.done ? ["ended", "mark bad"]
      : facts.status === "removed" ? ["removed", ""] : null;
    if (ended) numbers.append(element("span", ended[1], ended[0]));
    node.append(numbers);
    const meter = element("span", "meter");
    if (value !== null) {
      const bar = element("i");
      bar.style.width = `${100 * Math.min(1, Math.max(0, value))}%`;
      meter.append(bar);
    }
    if (facts.place !== null) {
      const tick = element("b");
      tick.style.left = `${100 * Math.min(1, Math.max(0, facts.place))}%`;
      meter.append(tick);
    }
    node.append(meter);
    node.title = action;
    const set = (name, given) => node.setAttribute(name, given);
    set("role", "treeitem");
    set("aria-level", box.depth + 1);
    set("aria-posinset", box.position);
    set("aria-setsize", box.size);
    if (facts.below) {
      const open = this.open.has(box.first);
      set("aria-expanded", open);
      node.append(element("span", "opener", open ? "−" : `+${facts.below}`));
    }
    set("aria-label", `${action}${more ? ` and ${nodes.length - 1} more steps` : ""}, ${visits} `
      + `visits, value ${decimals(value)}${score === null ? "" : `, score ${decimals(score)}`}`
      + `${ended ? `, ${ended[0]}` : ""}${facts.chosen ? ", chosen" : ""}`);
    return node;
  }

  mark() {
    for (const [first, node] of this.drawn) {
      node.classList.toggle("at", first === this.at);
      node.setAttribute("aria-selected", first === this.at);
    }
    this.canvas.setAttribute("aria-activedescendant", `${this.canvas.id}-${this.at}`);
  }

  select(first) {
    this.at = first;
    const box = this.place.get(first), view = this.canvas;
    const x = LEFT + box.depth * this.column, y = TOP + box.row * ROW;
    const into = (start, size, from, length) => start < from ? start
      : start + size > from + length ? Math.min(start, start + size - length) : from;
    view.scrollTo(into(x - LEFT, this.width + 2 * LEFT, view.scrollLeft, view.clientWidth),
      into(y - TOP, ROW + TOP, view.scrollTop, view.clientHeight));
    this.draw(false);
    this.read();
  }

  toggle(first, open = !this.open.has(first)) {
    if (!this.search.children[this.search.box(first).last].length) return;
    if (open) this.open.add(first); else this.open.delete(first);
    if (!open && !this.isShown(this.at)) this.at = first;
    this.layout();
    this.draw(true);
  }

  isShown(first) { // whether all boxes above a box are open
    for (let box = this.place.get(first)?.parent; box; box = box.parent) {
      if (!this.open.has(box.first)) return false;
    }
    return this.place.has(first);
  }

  click(event) {
    const node = event.target.closest(".node");
    if (!node) return;
    const first = Number(node.dataset.first);
    if (event.target.closest(".opener")) this.toggle(first);
    this.select(first);
  }

  key(event) {
    const box = this.place.get(this.at);
    const beside = (step) => { // the sibling, else the next row's box that is not below this one
      const index = this.shown.indexOf(box);
      for (let i = index + step; i >= 0 && i < this.shown.length; i += step) {
        if (this.shown[i].depth <= box.depth && this.shown[i].row !== box.row) return this.shown[i];
      }
      return null;
    };
    let to = null;
    if (event.key === "ArrowRight") {
      this.toggle(this.at, true);
      to = this.place.get(this.at).below[0];
    } else if (event.key === "ArrowLeft") to = box.parent;
    else if (event.key === "ArrowDown") to = beside(1);
    else if (event.key === "ArrowUp") to = beside(-1);
    else if (event.key === "Home") to = this.shown[0];
    else if (event.key === "End") to = this.shown[this.shown.length - 1];
    else if (event.key === " ") this.toggle(this.at);
    else if (event.key === "Enter") this.panel.focus();
    else return;
    event.preventDefault();
    if (to) this.select(to.first);
  }

  // The text of the selected box: its steps, and on demand the steps before them.
  read() {
    const { search } = this, box = this.place.get(this.at), facts = this.facts(box);
    const before = [];
    for (let above = box.parent; above; above = above.parent) {
      before.unshift(...search.box(above.first).nodes.filter((node) => node !== 0));
    }
    const said = [`${facts.visits} visit${facts.visits === 1 ? "" : "s"}`];
    if (facts.value !== null) said.push(`value ${decimals(facts.value, 3)}`);
    for (const model of search.models) {
      const score = search.scores[model][facts.last];
      if (score !== null) said.push(`score ${model ? `(${model}) ` : ""}${decimals(score, 3)}`);
    }
    said.push(`return so far ${decimals(search.outcome[facts.last])}`);
    if (facts.times > 1) said.push(`sampled ${facts.times} times`);
    if (facts.status !== "kept") said.push(facts.status);
    if (facts.chosen) said.push("chosen");
    this.panel.replaceChildren(element("h4", "", box.first === 0 ? "The task" : facts.action),
      element("p", "soft", said.join(" · ")));
    if (before.length) {
      const details = element("details");
      const count = `${before.length} step${before.length === 1 ? "" : "s"}`;
      details.append(element("summary", "soft", `The ${count} before`));
      details.addEventListener("toggle", () => {
        if (details.children.length === 1) details.append(...before.map((i) => this.turn(i)));
      });
      this.panel.append(details);
    }
    this.panel.append(...facts.nodes.map((node) => this.turn(node)));
    this.panel.scrollTop = 0;
  }

  turn(node) {
    const { search } = this, turn = element("div", "turn");
    if (node !== 0) turn.append(element("p", "", search.text(search.reply[node])));
    turn.append(element("p", "observation", search.text(search.observation[node])));
    return turn;
  }
}
