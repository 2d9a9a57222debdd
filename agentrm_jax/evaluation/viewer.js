// The list of tasks and, for the chosen one, its searches in one or two panes.
"use strict";

(() => {
  const place = document.getElementById("viewer");
  if (!place) return;
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const LISTED = 400;
  const cache = new Map();
  const get = (name) => place.querySelector(`[data-part="${name}"]`);
  const [list, count, environment, outcome, error, text] =
    ["tasks", "count", "environment", "outcome", "error", "text"].map(get);

  const search = (number) => { // parsed when it is first shown
    if (!cache.has(number)) {
      const block = document.getElementById(`search-${number}`);
      cache.set(number, new Search(JSON.parse(block.textContent)));
    }
    return cache.get(number);
  };

  const state = (task) => {
    const solved = task.rows.map((row) => row[2]);
    if (!solved.length) return "none";
    return solved.every((share) => share >= 1 - 1e-6) ? "all"
      : solved.some((share) => share > 1e-6) ? "some" : "none";
  };
  const failed = (task) => task.rows.some((row) => row[3]);
  const SAID = { all: "solved by all", some: "solved by some", none: "not solved" };
  for (const task of data.tasks) {
    task.state = state(task);
    task.words = [task.id, task.goal, ...task.rows.map((row) => row[3] ?? "")].join("\n")
      .toLowerCase();
  }

  let found = [], at = null;
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = data.tasks.filter((task) =>
      (!environment.value || task.environment === environment.value)
      && (!outcome.value || task.state === outcome.value
        || (outcome.value === "differ" && task.state === "some")
        || (outcome.value === "drawn" && task.searches.length))
      && (!error.value || failed(task) === (error.value === "yes"))
      && words.every((word) => task.words.includes(word)));
    listed();
  };

  const listed = () => {
    const shown = found.slice(0, LISTED);
    const more = found.length > shown.length ? `; the first ${LISTED} are listed` : "";
    count.textContent = `${found.length} of ${data.tasks.length} tasks${more}`;
    list.replaceChildren(...shown.map((task) => {
      const item = element("li", task.searches.length ? "" : "bare");
      item.id = `task-${data.tasks.indexOf(task)}`;
      item.setAttribute("role", "option");
      const dot = element("span", `dot ${failed(task) ? "failed" : task.state}`);
      dot.title = failed(task) ? "an error" : SAID[task.state];
      item.setAttribute("aria-label", `${task.id}, ${dot.title}`);
      item.append(dot, element("span", "name", task.id), element("span", "about", task.goal
        || (task.searches.length ? "" : "no search in this page")));
      item.addEventListener("click", () => choose(task));
      return item;
    }));
    markTask();
  };

  const markTask = () => {
    const number = data.tasks.indexOf(at);
    for (const item of list.children) {
      item.setAttribute("aria-selected", item.id === `task-${number}`);
    }
    list.setAttribute("aria-activedescendant", at ? `task-${number}` : "");
  };

  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || !found.length) return;
    event.preventDefault();
    const last = Math.min(found.length, LISTED) - 1;
    choose(found[Math.max(0, Math.min(last, found.indexOf(at) + step))]);
    list.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
  });

  const panes = get("panes"), both = get("both"), views = [];
  class Pane {
    constructor(name) {
      this.place = element("div");
      const head = element("div", "pane-head");
      this.which = element("select", "control");
      this.which.setAttribute("aria-label", "search");
      this.model = element("select", "control");
      this.model.setAttribute("aria-label", "scores of");
      this.facts = element("span", "facts");
      head.append(this.which, this.model, this.facts);
      this.place.append(head);
      panes.append(this.place);
      this.view = new TreeView(this.place, name);
      this.which.addEventListener("change", () => this.show(Number(this.which.value)));
      this.model.addEventListener("change", () => this.draw());
    }

    offer(numbers, number) {
      this.which.replaceChildren(...numbers.map((each) =>
        new Option(data.searches[each].label, each, each === number, each === number)));
      this.show(number);
    }

    show(number) {
      this.search = search(number);
      this.which.value = number;
      const models = this.search.models;
      this.model.replaceChildren(...models.map((name) => new Option(name || "the search", name)));
      this.model.hidden = models.length < 2;
      const { nodes, note } = data.searches[number];
      this.facts.textContent = `${nodes.toLocaleString("en")} nodes${note ? ` · ${note}` : ""}`;
      this.draw();
    }

    draw() { this.view.show(this.search, this.model.value); }
  }

  const choose = (task) => {
    at = task;
    markTask();
    get("title").textContent = task.id;
    get("goal").textContent = task.goal;
    get("outcomes").replaceChildren(...task.rows.map(([label, score, , reason]) => {
      const item = element("li", reason ? "bad" : "",
        `${data.labels[label]}: ${decimals(score)}${reason ? ` (${reason})` : ""}`);
      return item;
    }));
    const numbers = task.searches;
    get("nothing").hidden = numbers.length > 0;
    panes.hidden = !numbers.length;
    both.hidden = numbers.length < 2;
    if (!numbers.length) return;
    const two = both.getAttribute("aria-pressed") === "true" && numbers.length > 1;
    panes.classList.toggle("two", two);
    for (const name of two ? ["a", "b"] : ["a"]) {
      if (views.length < "ab".indexOf(name) + 1) views.push(new Pane(name));
    }
    views.forEach((pane, i) => {
      pane.place.hidden = i > 0 && !two;
      if (!pane.place.hidden) pane.offer(numbers, numbers[i]);
    });
  };

  both.addEventListener("click", () => {
    const on = both.getAttribute("aria-pressed") !== "true";
    both.setAttribute("aria-pressed", on);
    both.textContent = on ? "One search" : "Side by side";
    choose(at);
  });
  environment.append(...[...new Set(data.tasks.map((task) => task.environment))]
    .map((name) => new Option(name, name)));
  environment.hidden = environment.options.length < 3;
  for (const control of [environment, outcome, error]) control.addEventListener("change", filter);
  text.addEventListener("input", filter);
  place.hidden = false;
  filter();
  const first = data.tasks.find((task) => task.searches.includes(0)) ?? data.tasks[0];
  if (first) choose(first);
})();
