"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const plots = charts.map((_, number) => document.getElementById(`plot-${number}`));
  const hidden = new Set();
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { ink: of("--ink"), quiet: of("--quiet"), rule: of("--rule"), paper: of("--paper"), floor: of("--floor") };
  }

  function layout(chart) {
    const { ink, quiet, rule, paper, floor } = theme();
    const axis = { gridcolor: rule, zerolinecolor: rule, linecolor: quiet, automargin: true, tickfont: { size: 11 } };
    const one = (own) => ({ ...axis, ...own, title: { ...own.title, font: { size: 12 }, standoff: 8 } });
    const { rules, ...rest } = chart.layout;
    return {
      ...rest,
      shapes: rest.shapes.map((shape) => ({ ...shape, line: { ...shape.line, color: floor } })),
      annotations: rest.annotations.map((note) => ({ ...note, font: { ...note.font, color: floor } })),
      xaxis: one(chart.layout.xaxis),
      yaxis: one(chart.layout.yaxis),
      margin: { l: 8, r: 12, t: 10 + 12 * Math.min(rules, 3), b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, 'DejaVu Sans', sans-serif", size: 12 },
      hoverlabel: { bgcolor: paper, bordercolor: rule, font: { color: ink } },
      hovermode: "closest",
      showlegend: false,
      autosize: true,
    };
  }

  const settings = { displayModeBar: false, displaylogo: false, responsive: true, doubleClick: "autosize" };

  function draw(number) {
    const traces = charts[number].data.map((trace) => ({ ...trace, visible: !hidden.has(trace.meta) }));
    return Plotly.react(plots[number], traces, layout(charts[number]), settings);
  }

  // Those in view first, the others when they come near: a page of many pictures opens at once.
  const drawn = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      const number = plots.indexOf(entry.target);
      watcher.unobserve(entry.target);
      if (!drawn.has(number)) {
        drawn.add(number);
        draw(number);
      }
    }
  }, { rootMargin: "1200px" });
  plots.forEach((plot) => watcher.observe(plot));
  window.addEventListener("beforeprint", () => {
    plots.forEach((_, number) => {
      drawn.add(number);
      draw(number);
    });
  });

  function redraw() {
    drawn.forEach((number) => draw(number));
  }
  dark.addEventListener("change", redraw);

  for (const chip of document.querySelectorAll(".chip")) {
    chip.addEventListener("click", () => {
      const label = chip.dataset.label;
      const show = hidden.delete(label);
      if (!show) hidden.add(label);
      chip.setAttribute("aria-pressed", String(show));
      for (const row of document.querySelectorAll("tr[data-label]")) {
        if (row.dataset.label === label) row.hidden = !show;
      }
      redraw();
    });
  }

  function sort(table, column, descending) {
    const body = table.tBodies[0];
    // A cell whose text is what it is sorted by has no value of its own; "\u2013" stands for none.
    const value = (row) => {
      const { dataset, textContent } = row.cells[column];
      return dataset.value ?? (textContent === "\u2013" ? undefined : textContent);
    };
    const compare = (one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const [x, y] = [Number(a), Number(b)];
      const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
      return descending ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
      });
    });
  }
})();
