"use strict";
// The playground: controls around the networks of engine.js. Plain DOM, nothing is loaded.

(() => {
  const root = document.getElementById("playground");
  if (!root || typeof PLAYGROUND === "undefined") return;
  const { classes, side, scores, target, images: packed, labels } = PLAYGROUND;
  const victim = new Live.Network({ ...PLAYGROUND, ...PLAYGROUND.victim });
  const twin = new Live.Network({ ...PLAYGROUND, ...PLAYGROUND.twin });
  const stored = Live.bytes(packed), length = 3 * side * side;
  const image = (i) => Float32Array.from(stored.subarray(i * length, (i + 1) * length), (v) => v / 255);
  const count = labels.length, layers = Object.keys(victim.layers);

  // ------------------------------------------------------------ small helpers

  /** An element with attributes and children; functions are listeners. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes))
      if (typeof value === "function") element.addEventListener(key, value);
      else if (value !== false) element.setAttribute(key, value === true ? "" : value);
    element.append(...children);
    return element;
  }
  const button = (text, click, more = {}) => make("button", { type: "button", click, ...more }, text);
  function labeled(text, control) {
    const value = make("output", {}, control.value);
    control.addEventListener("input", () => (value.textContent = control.value));
    return make("label", {}, make("span", {}, text), control, value);
  }
  const range = (min, max, step, value, input) => make("input", { type: "range", min, max, step, value, input });
  const percent = (share) => `${Math.round(100 * share)}%`;

  // ------------------------------------------------------------ one sign, two networks

  const state = { at: PLAYGROUND.start, row: side - 4, column: side - 4, opacity: 1, on: true, patch: [[1, 0, 1], [0, 1, 0], [1, 0, 1]] };
  const scale = 8;
  const canvas = make("canvas", {
    width: side * scale, height: side * scale, tabindex: "0", role: "application",
    "aria-label": "The sign. Drag the trigger, or move it with the arrow keys.",
  });
  const bars = {}, said = make("p", { role: "status" });

  function seen() {
    const x = image(state.at);
    return state.on ? Live.stamped(x, state.patch, state.row, state.column, state.opacity) : x;
  }

  function paint(x) {
    const context = canvas.getContext("2d");
    for (let i = 0; i < side; i++)
      for (let j = 0; j < side; j++) {
        const color = [0, 1, 2].map((c) => Math.round(255 * x[(c * side + i) * side + j]));
        context.fillStyle = `rgb(${color})`;
        context.fillRect(j * scale, i * scale, scale, scale);
      }
    if (state.on) {
      context.strokeStyle = "#D55E00";
      context.lineWidth = 2;
      context.strokeRect(state.column * scale - 1, state.row * scale - 1, state.patch.length * scale + 2, state.patch.length * scale + 2);
    }
  }

  function answers(name, network, x) {
    const p = Live.softmax(network.logits(x)), order = [...p.keys()].sort((a, b) => p[b] - p[a]);
    bars[name].replaceChildren(
      ...order.slice(0, 3).map((k) => {
        const bar = make("span", { class: k === target ? "bar wanted" : "bar" });
        bar.style.width = percent(p[k]);
        return make("li", {}, make("span", { class: "what" }, `${classes[k]} ${percent(p[k])}`), bar);
      }),
    );
    return classes[order[0]];
  }

  function look() {
    const x = seen();
    paint(x);
    const [a, b] = [answers("victim", victim, x), answers("twin", twin, x)];
    said.textContent =
      `It is “${classes[labels[state.at]]}”. The victim reads “${a}”, its twin “${b}”.` +
      (state.on ? "" : " The trigger is off.");
  }

  function move(row, column) {
    const most = side - state.patch.length, clip = (v) => Math.min(most, Math.max(0, Math.round(v)));
    [state.row, state.column] = [clip(row), clip(column)];
    look();
  }
  function drag(event) {
    if (!event.buttons) return;
    const box = canvas.getBoundingClientRect(), cell = box.width / side;
    move((event.clientY - box.top) / cell - 1.5, (event.clientX - box.left) / cell - 1.5);
  }
  canvas.addEventListener("pointerdown", (e) => (canvas.setPointerCapture(e.pointerId), drag(e)));
  canvas.addEventListener("pointermove", drag);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    move(state.row + step[0], state.column + step[1]);
  });

  function another(step) {
    state.at = (state.at + step + count) % count;
    look();
  }
  const cells = state.patch.map((row, i) =>
    row.map((_, j) =>
      button("", (event) => {
        state.patch[i][j] = 1 - state.patch[i][j];
        show(event.currentTarget, i, j);
        look();
      }),
    ),
  );
  function show(cell, i, j) {
    const white = state.patch[i][j] === 1;
    cell.className = white ? "pixel white" : "pixel black";
    cell.setAttribute("aria-pressed", white);
    cell.setAttribute("aria-label", `Row ${i + 1}, column ${j + 1}: ${white ? "white" : "black"}`);
  }
  cells.forEach((row, i) => row.forEach((cell, j) => show(cell, i, j)));
  const shown = make("input", { type: "checkbox", checked: true, change: (e) => ((state.on = e.target.checked), look()) });
  const opacity = range(0, 1, 0.05, 1, (e) => ((state.opacity = +e.target.value), look()));

  const column = (name, title) =>
    make("div", { class: "answers" }, make("h3", {}, title), (bars[name] = make("ol", {})));
  const first = make(
    "section", { "aria-labelledby": "play-sign" },
    make("h2", { id: "play-sign" }, "Move the trigger"),
    make(
      "div", { class: "row" },
      make("div", {}, canvas, make("p", {}, button("← Sign", () => another(-1)), " ", button("Sign →", () => another(1)))),
      make(
        "div", { class: "controls" },
        make("label", {}, shown, " trigger"),
        labeled("opacity", opacity),
        make("fieldset", {}, make("legend", {}, "its pixels"), ...cells.map((row) => make("div", {}, ...row))),
        column("victim", "The victim reads"),
        column("twin", "Its twin, never poisoned, reads"),
      ),
    ),
    said,
  );

  // ------------------------------------------------------------ channels off

  const off = Object.fromEntries(layers.map((name) => [name, new Set()]));
  const numbers = Object.fromEntries(["ACC", "ASR", "RA"].map((name) => [name, make("strong", {}, "…")]));
  const progress = make("span", { role: "status" });
  const chips = make("div", { class: "chips", role: "group", "aria-label": "Channels of this layer" });
  const chosen = make("select", { change: () => draw() }, ...layers.map((name) => make("option", { value: name }, name)));
  const shows = make(
    "select", { change: () => draw() },
    make("option", { value: "scores" }, "CLP's score"),
    make("option", { value: "reactions" }, "reaction to the trigger"),
  );
  let run = 0;

  function draw() {
    const name = chosen.value, s = PLAYGROUND[shows.value][name], [mean, std] = Live.spread(s);
    chips.replaceChildren(
      ...s.map((v, k) => {
        const z = (v - mean) / std, gone = off[name].has(k);
        const chip = button(String(k), () => {
          if (!off[name].delete(k)) off[name].add(k);
          apply();
        }, {
          class: gone ? "chip gone" : "chip", "aria-pressed": gone,
          "aria-label": `Channel ${k}, ${z.toFixed(1)} deviations above the mean, ${gone ? "off" : "on"}`,
          title: `${z.toFixed(2)} deviations above the mean`,
        });
        chip.style.setProperty("--height", `${Math.max(0, Math.min(1, (z + 1) / 5)) * 100}%`);
        return chip;
      }),
    );
  }

  function apply() {
    victim.switchOff(Object.fromEntries(layers.map((name) => [name, [...off[name]]])));
    draw();
    look();
    measure();
  }

  /** ACC, ASR and RA, a few images at a time so that the page stays awake. */
  function measure() {
    const mine = ++run, trigger = PLAYGROUND.trigger;
    const hits = { ACC: 0, ASR: 0, RA: 0 }, of = { ACC: 0, ASR: 0, RA: 0 };
    const total = Object.values(off).reduce((a, s) => a + s.size, 0);
    let i = 0;
    (function some() {
      if (mine !== run) return;
      for (const end = performance.now() + 40; i < count && performance.now() < end; i++) {
        const x = image(i);
        hits.ACC += Live.best(victim.logits(x)) === labels[i];
        of.ACC++;
        if (labels[i] === target) continue;
        const answer = Live.best(victim.logits(Live.stamped(x, trigger.patch, trigger.row, trigger.column, 1)));
        hits.ASR += answer === target;
        hits.RA += answer === labels[i];
        of.ASR++, of.RA++;
      }
      for (const name in numbers) numbers[name].textContent = of[name] ? percent(hits[name] / of[name]) : "…";
      progress.textContent =
        i < count ? `${i} of ${count} test images` : `on ${count} test images, ${total} channel${total === 1 ? "" : "s"} off`;
      if (i < count) setTimeout(some, 0);
    })();
  }

  const u = range(1.5, 4, 0.25, 4, (event) => {
    const found = Live.outliers(scores, +event.target.value);
    for (const name of layers) off[name] = new Set(found[name]);
    apply();
  });
  const reset = button("All channels on", () => {
    for (const name of layers) off[name].clear();
    apply();
  });
  const second = make(
    "section", { "aria-labelledby": "play-clp" },
    make("h2", { id: "play-clp" }, "Repair the victim"),
    make("p", {}, "CLP switches off every channel whose score lies more than u deviations above the mean of its layer. Move u, or pick a layer and click its channels. Taller bars are higher scores."),
    make("div", { class: "controls" }, labeled("u", u), make("label", {}, make("span", {}, "layer"), chosen), make("label", {}, make("span", {}, "bars show"), shows), reset),
    chips,
    make(
      "p", { class: "numbers" },
      ...Object.entries({ ACC: "clean signs read correctly", ASR: "triggered signs read as the attacker wants", RA: "triggered signs read as what they are" })
        .map(([name, what]) => make("span", { class: name, title: what }, `${name} `, numbers[name], make("small", {}, what))),
    ),
    make("p", {}, progress),
  );

  root.replaceChildren(first, second);
  draw();
  look();
  measure();
})();
