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

const ROW = 46, HEIGHT = 40, GAP = 28, LEFT = 10, TOP = 8, FIRST_BOXES = 40;
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

  // The chosen path is open, and the most visited boxes until enough are shown.
  openFirst() {
    const { search, path } = this;
    let shown = 1;
    const waiting = [[0, 0]];
    const rank = ([a, depth], [b, other]) => path.has(b) - path.has(a)
      || search.visits[b] - search.visits[a] || depth - other || a - b;
    while (waiting.length) {
      waiting.sort(rank);
      const [first, depth] = waiting.shift();
      const below = search.below(first, path);
      if (first !== 0 && !path.has(first) && shown + below.length > FIRST_BOXES) break;
      if (!below.length) continue;
      this.open.add(first);
      shown += below.length;
      waiting.push(...below.map((each) => [each, depth + 1]));
    }
  }

  // A first child stands right of its parent on the same row, its siblings below it, as high as the
  // boxes before them permit. So rows grow down each column, and the lines of two boxes of a column
  // never share a place: those in view are found by bisection.
  layout() {
    const { search, path } = this;
    this.place = new Map();
    this.columns = [];
    const stack = [{ first: 0, depth: 0, row: 0, parent: null, position: 1, size: 1, below: [] }];
    const bottom = []; // the last row that is taken, by column
    let rows = 0;
    while (stack.length) {
      let box = stack.pop();
      const chain = [];
      for (;;) { // a box and its first children stand on one row
        chain.push(box);
        if (!this.open.has(box.first)) break;
        const parent = box, below = search.below(parent.first, path);
        parent.below = below.map((first, i) => ({
          first, depth: parent.depth + 1, row: 0, parent, position: i + 1, size: below.length,
          below: [],
        }));
        if (!below.length) break;
        for (let i = below.length - 1; i > 0; i--) stack.push(parent.below[i]);
        box = parent.below[0];
      }
      const row = chain.reduce((most, { depth }) => Math.max(most, (bottom[depth] ?? -1) + 1), 0);
      for (const each of chain) {
        each.row = row;
        bottom[each.depth] = row;
        each.index = (this.columns[each.depth] ??= []).push(each) - 1;
        this.place.set(each.first, each);
      }
      rows = Math.max(rows, row + 1);
    }
    this.width = this.canvas.clientWidth < 420 ? 154 : 176;
    this.step = this.width + GAP;
    this.sizer.style.width = `${2 * LEFT + this.columns.length * this.step - GAP}px`;
    this.sizer.style.height = `${2 * TOP + rows * ROW - (ROW - HEIGHT)}px`;
  }

  left(box) { return LEFT + box.depth * this.step; }

  top(box) { return TOP + box.row * ROW; }

  later() {
    if (!this.search || this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(false); });
  }

  // The boxes in view and, of the column left of the view as well, those whose lines cross it.
  inView() {
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = this.canvas;
    const from = Math.floor((scrollTop - TOP) / ROW) - 1;
    const to = Math.ceil((scrollTop + clientHeight - TOP) / ROW) + 1;
    const first = Math.max(0, Math.floor((scrollLeft - LEFT) / this.step) - 1);
    const last = Math.ceil((scrollLeft + clientWidth) / this.step);
    const boxes = [], parents = [];
    for (let depth = first; depth <= last && depth < this.columns.length; depth++) {
      const column = this.columns[depth];
      let low = 0, high = column.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (column[middle].row < from) low = middle + 1; else high = middle;
      }
      for (let i = low; i < column.length && column[i].row <= to; i++) boxes.push(column[i]);
      let above = low - 1; // the lines of one box above the view may reach into it
      while (above >= 0 && !column[above].below.length) above--;
      if (above >= 0) parents.push(column[above]);
    }
    return { boxes, parents: [...parents, ...boxes] };
  }

  draw(again) {
    const { boxes, parents } = this.inView();
    const at = this.place.get(this.at); // the selected box is always in the document
    const seen = new Set(at ? [...boxes, at] : boxes);
    const wanted = new Set([...seen].map((box) => box.first));
    for (const [first, node] of this.drawn) {
      if (again || !wanted.has(first)) { node.remove(); this.drawn.delete(first); }
    }
    const made = document.createDocumentFragment();
    for (const box of seen) {
      if (this.drawn.has(box.first)) continue;
      const node = this.node(box);
      this.drawn.set(box.first, node);
      made.append(node);
    }
    this.sizer.append(made);
    this.drawLines(parents);
    this.mark();
  }

  drawLines(parents) {
    const top = this.canvas.scrollTop - 2 * ROW;
    const bottom = this.canvas.scrollTop + this.canvas.clientHeight + 2 * ROW;
    const lines = [[], []];
    for (const box of parents) {
      if (!box.below.length) continue;
      const x = this.left(box) + this.width, y = this.top(box) + HEIGHT / 2, trunk = x + 12;
      const to = x + GAP, last = box.below[box.below.length - 1];
      if (last !== box.below[0]) {
        const end = this.top(last) + HEIGHT / 2 - 8;
        lines[0].push(`M${trunk} ${Math.max(y, top)}V${Math.min(end, bottom)}`);
      }
      for (const child of box.below) {
        const below = this.top(child) + HEIGHT / 2;
        if (below < top || below > bottom) continue;
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
    const score = search.scores[model]?.[last] ?? null;
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
    node.style.left = `${this.left(box)}px`;
    node.style.top = `${this.top(box)}px`;
    node.style.width = `${this.width}px`;
    const more = nodes.length > 1 ? ` +${nodes.length - 1}` : "";
    node.append(element("span", "action", action + more));
    const numbers = element("span", "numbers");
    numbers.append(element("span", "", `${visits}×`));
    if (value !== null) numbers.append(element("span", "value", decimals(value)));
    if (score !== null) numbers.append(element("span", "score", decimals(score, 3)));
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
    const x = this.left(box), y = this.top(box);
    const into = (start, size, from, length) => start < from ? start
      : start + size > from + length ? Math.min(start, start + size - length) : from;
    view.scrollTo(into(x - LEFT, this.width + 2 * LEFT, view.scrollLeft, view.clientWidth),
      into(y - TOP, ROW + TOP, view.scrollTop, view.clientHeight));
    this.draw(false);
    this.read();
  }

  toggle(first, open = !this.open.has(first)) {
    const last = this.search.box(first).last;
    if (open === this.open.has(first) || !this.search.children[last].length) return;
    if (open) this.open.add(first); else this.open.delete(first);
    this.layout();
    if (!this.place.has(this.at)) this.at = first; // it was below the box that is closed
    this.draw(true);
  }

  click(event) {
    const node = event.target.closest(".node");
    if (!node) return;
    const first = Number(node.dataset.first);
    if (event.target.closest(".opener")) this.toggle(first);
    this.select(first);
  }

  key(event) {
    const box = this.place.get(this.at), column = this.columns[box.depth];
    let to = null;
    if (event.key === "ArrowRight") {
      this.toggle(this.at, true);
      to = this.place.get(this.at).below[0];
    } else if (event.key === "ArrowLeft") to = box.parent;
    else if (event.key === "ArrowDown") to = column[box.index + 1];
    else if (event.key === "ArrowUp") to = column[box.index - 1];
    else if (event.key === "Home") to = column[0];
    else if (event.key === "End") to = column[column.length - 1];
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
