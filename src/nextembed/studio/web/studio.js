// What the studio's own parts of the page do: fragments that are pages, charts, maps, patches. No library but plotly,
// which the studio serves itself.
window.nextembed = (() => {
  "use strict";
  const sheet = new CSSStyleSheet();
  fetch("studio/inside.css").then((answer) => answer.text()).then((text) => sheet.replaceSync(text));

  let loading = null;
  const plotly = () => {
    loading ||= new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = "studio/plotly.js";
      script.onload = () => done(window.Plotly);
      script.onerror = () => failed(new Error("plotly did not load"));
      document.head.appendChild(script);
    });
    return loading;
  };

  const colour = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
  const themed = new Set(); // what is drawn anew when light becomes dark
  new MutationObserver(() => themed.forEach((draw) => draw())).observe(document.documentElement, {
    subtree: false, attributes: true, attributeFilter: ["class"],
  });
  document.addEventListener("DOMContentLoaded", () =>
    new MutationObserver(() => themed.forEach((draw) => draw())).observe(document.body, {
      attributes: true, attributeFilter: ["class"],
    }));

  // Nothing is drawn while a pointer or the space bar is pressed: what it was pressed on must still be there when it is
  // released, else there is no click.
  let pressed = false;
  const waiting = new Set();
  window.addEventListener("pointerdown", (event) => { pressed = event.button === 0; }, true);
  window.addEventListener("keydown", (event) => { if (event.key === " ") pressed = true; }, true);
  const released = () => {
    pressed = false;
    waiting.forEach((look) => look());
    waiting.clear();
  };
  for (const end of ["pointerup", "pointercancel", "keyup"]) window.addEventListener(end, () => setTimeout(released), true);
  window.addEventListener("blur", released); // of the window: it may be released over another one

  const once = (watch, props, draw) => {
    let before = null;
    const look = () => {
      const now = JSON.stringify(props.value ?? null);
      if (now !== before) { before = now; draw(props.value); }
    };
    watch("value", () => (pressed ? waiting.add(look) : look()));
    look();
  };

  const shadow = (element) => {
    const host = element.querySelector(".nx");
    if (!host.shadowRoot) host.attachShadow({ mode: "open" }).adoptedStyleSheets = [sheet];
    return host.shadowRoot;
  };

  // Rows by the column that was clicked, the same after each refresh.
  const sorted = (root, order) => {
    const table = root.querySelector("table.sortable");
    if (!table || order.column === null) return;
    const body = table.tBodies[0];
    const value = (row) => {
      const cell = row.cells[order.column];
      const text = cell.dataset.v ?? cell.textContent;
      return text === "" ? null : isNaN(Number(text)) ? text.toLowerCase() : Number(text);
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what is missing comes last
      const less = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x < typeof y ? -1 : 1;
      return order.down ? -less : less;
    };
    [...body.rows].sort(compare).forEach((row) => body.appendChild(row));
    [...table.tHead.rows[0].cells].forEach((cell, i) => {
      cell.setAttribute("aria-sort", i === order.column ? (order.down ? "descending" : "ascending") : "none");
    });
  };

  // A fragment of HTML in a shadow, so that its styles and gradio's leave each other alone. What has data-send tells it.
  const page = (element, props, watch, trigger) => {
    const root = shadow(element);
    const order = { column: null, down: false };
    root.addEventListener("click", (event) => {
      const sort = event.target.closest("table.sortable th button");
      if (sort) {
        const column = sort.closest("th").cellIndex;
        order.down = order.column === column ? !order.down : false;
        order.column = column;
        sorted(root, order);
        return;
      }
      const sender = event.target.closest("[data-send]");
      if (sender) trigger("select", { name: sender.dataset.send, value: sender.dataset.value ?? "" });
    });
    root.addEventListener("keydown", (event) => { // arrow keys walk over patches
      const grid = event.target.closest("[data-columns]");
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!grid || !step) return;
      const columns = event.key.endsWith("Up") || event.key.endsWith("Down") ? Number(grid.dataset.columns) : 1;
      const all = [...grid.querySelectorAll("button")];
      const next = all[all.indexOf(event.target) + step * columns];
      event.preventDefault();
      if (next) { next.focus(); next.click(); }
    });
    once(watch, props, (value) => {
      const open = [...root.querySelectorAll("details")].map((one) => one.open);
      // the focus stays where it was: at the same key, or else (heads of columns, summaries, links) at the same place
      const places = () => [...root.querySelectorAll("a[href], button, summary, input")];
      const focused = root.activeElement?.dataset?.key;
      const place = places().indexOf(root.activeElement);
      root.innerHTML = value || "";
      root.querySelectorAll("details").forEach((one, i) => { if (i < open.length && open[i]) one.open = true; });
      sorted(root, order);
      if (focused) root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
      else if (place >= 0) places()[place]?.focus();
    });
  };

  const axis = (more) => ({
    gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"), fixedrange: false,
    tickfont: { size: 11 }, automargin: true, ...more,
  });
  const layout = (more) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 44, r: 10, t: 6, b: 36 },
    font: { family: colour("--font") || "system-ui, sans-serif", color: colour("--soft"), size: 11 },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink"), size: 12 } },
    showlegend: false, uirevision: "kept", ...more,
  });
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

  const make = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const swatch = (trace) => {
    const chip = make("span", "nx-chip");
    const line = make("i", `nx-${trace.dash || "solid"}`);
    line.style.setProperty("--c", `var(${COLOURS[trace.colour % COLOURS.length]})`);
    const last = trace.y[trace.y.length - 1];
    chip.append(line, `${trace.name} `, make("b", "", trace.shown ?? short(last, trace.percent)));
    return chip;
  };
  const short = (value, percent) => {
    if (value === undefined || value === null) return "";
    if (percent) return `${(100 * value).toFixed(1)} %`;
    return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
  };

  // Cards with a chart each. The cards stay, so that a zoom outlives a refresh.
  const charts = (element, props, watch) => {
    const host = element.querySelector(".nx");
    const cards = new Map();
    let newest = null;
    const draw = async (value) => {
      const wanted = newest = value || [];
      if (wanted.length) await plotly();
      if (wanted !== newest) return; // another value came while plotly was loading
      const names = new Set(wanted.map((chart) => chart.title));
      for (const [name, card] of cards) if (!names.has(name)) { card.remove(); cards.delete(name); }
      for (const chart of wanted) {
        let card = cards.get(chart.title);
        if (!card) {
          card = make("figure", "nx-card");
          card.append(make("h3", "", chart.title), make("div", "nx-chips"), make("div", "nx-plot"), make("figcaption"));
          card.querySelector(".nx-plot").setAttribute("role", "img");
          card.querySelector(".nx-plot").setAttribute("aria-label", chart.title);
          cards.set(chart.title, card);
        }
        host.append(card);
        card.querySelector(".nx-chips").replaceChildren(
          ...chart.traces.map((trace) => swatch({ ...trace, percent: chart.percent })));
        card.querySelector("figcaption").textContent = chart.text;
        const traces = chart.traces.map((trace) => ({
          x: trace.x, y: trace.y, name: trace.name, type: "scatter", mode: trace.x.length < 12 ? "lines+markers" : "lines",
          line: { color: colour(COLOURS[trace.colour % COLOURS.length]), dash: trace.dash, width: 2 },
          error_y: trace.error?.length ? { type: "data", array: trace.error, thickness: 1, width: 2 } : undefined,
          hovertemplate: `%{y:${chart.percent ? ".1%" : ".4~g"}}<extra>%{fullData.name}</extra>`,
        }));
        const y = axis({ range: chart.limits, tickformat: chart.percent ? ".3~%" : undefined, nticks: 5 });
        const shapes = chart.zero
          ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: colour("--soft"), width: 1 } }] : [];
        const x = axis({ range: chart.ends, title: { text: chart.x_title, font: { size: 11 } }, nticks: 6 });
        window.Plotly.react(card.querySelector(".nx-plot"), traces,
          layout({ height: 190, xaxis: x, yaxis: y, shapes, hovermode: "x unified" }), CONFIG);
      }
    };
    once(watch, props, draw);
    themed.add(() => draw(props.value));
  };

  // Points that are chosen by dragging, each with its picture under the pointer.
  const map = (element, props, watch, trigger) => {
    const host = element.querySelector(".nx");
    const text = make("p", "nx-note"), plot = make("div", "nx-plot nx-large"), card = make("div", "nx-hover");
    card.append(make("img"), make("span"));
    card.hidden = true;
    host.append(text, plot, card);
    let bound = false;
    const draw = async (value) => {
      if (!value) { text.textContent = "Choose features and show their map."; return; }
      await plotly();
      text.textContent = value.text;
      const kind = value.x.length > 3000 ? "scattergl" : "scatter";
      const traces = value.groups.map((name, group) => {
        const own = value.group.flatMap((one, i) => (one === group ? [i] : []));
        return { type: kind, mode: "markers", name, x: own.map((i) => value.x[i]), y: own.map((i) => value.y[i]),
          customdata: own, hoverinfo: "none",
          marker: { size: 7, opacity: 0.8, color: colour(COLOURS[group % COLOURS.length]), symbol: group / 8 | 0 } };
      });
      const shape = { showlegend: value.groups.length > 1, dragmode: "lasso", height: 460, hovermode: "closest",
        legend: { orientation: "h", y: -0.06, font: { color: colour("--ink") } }, uirevision: value.name,
        margin: { l: 8, r: 8, t: 8, b: 8 } };
      const hidden = axis({ showticklabels: false });
      window.Plotly.react(plot, traces, layout({ ...shape, xaxis: hidden, yaxis: { ...hidden, scaleanchor: "x" } }),
        { displaylogo: false, responsive: true, scrollZoom: true, modeBarButtonsToRemove: ["autoScale2d"] });
      if (bound) return;
      bound = true;
      plot.on("plotly_selected", (event) => {
        const own = (event?.points || []).map((point) => point.customdata);
        if (own.length) trigger("select", { name: "chosen", value: own.join(",") });
      });
      plot.on("plotly_hover", (event) => {
        const place = event.points[0].customdata, now = props.value;
        card.querySelector("img").src = `studio/thumb?features=${encodeURIComponent(now.name)}&place=${place}`;
        card.querySelector("img").alt = "";
        card.querySelector("span").textContent = `${now.keys[place]}  ${now.groups[now.group[place]]}`;
        const box = host.getBoundingClientRect();
        card.style.left = `${Math.min(event.event.clientX - box.left + 14, box.width - 150)}px`;
        card.style.top = `${event.event.clientY - box.top + 14}px`;
        card.hidden = false;
      });
      plot.on("plotly_unhover", () => { card.hidden = true; });
    };
    once(watch, props, draw);
    themed.add(() => draw(props.value));
  };

  const dark = () => document.body.classList.toggle("dark");
  return { page, charts, map, dark, plotly, colour, themed, once, layout, axis, CONFIG, COLOURS, make, shadow };
})();
