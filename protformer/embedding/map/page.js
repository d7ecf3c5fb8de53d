"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const plot = at("plot");
  const count = data.ids.length;
  const number = (value) => value.toLocaleString("en-US");

  // What lies behind is drawn first; of the others the larger group, so that no rare one is hidden.
  const groups = [...data.groups].sort((a, b) => Boolean(b.behind) - Boolean(a.behind));
  const groupOf = new Int32Array(count);
  groups.forEach((group, place) => group.of.forEach((protein) => { groupOf[protein] = place; }));
  const shown = groups.map(() => true);
  const picks = new Set(); // in the order in which they were picked
  let matches = null; // of a search: the proteins; null without one
  let mode = "pan";

  // Without WebGL the points are SVG: right, and slow where they are many.
  const webgl = Boolean(document.createElement("canvas").getContext("webgl"));
  const type = webgl ? "scattergl" : "scatter";
  if (!webgl && count > 10000) {
    at("slow").textContent = `This browser has no WebGL, so ${number(count)} points are drawn slowly.`;
    at("slow").hidden = false;
  }
  const size = count <= 500 ? 9 : count <= 5000 ? 6.5 : count <= 30000 ? 4.5 : 3;

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  function theme() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { ink: of("--ink"), quiet: of("--quiet"), rule: of("--rule"), paper: of("--paper") };
  }

  function mixed(value) {
    const { low, high, colours, nothing } = data.scale;
    if (value === null) return nothing;
    const place = Math.min(Math.max(high > low ? (value - low) / (high - low) : 0.5, 0), 1) * (colours.length - 1);
    const first = Math.min(Math.floor(place), colours.length - 2);
    const part = (colour, from) => parseInt(colour.slice(from, from + 2), 16);
    const blend = (from) => {
      const [a, b] = [part(colours[first], from), part(colours[first + 1], from)];
      return Math.round(a + (b - a) * (place - first));
    };
    return `rgb(${blend(1)},${blend(3)},${blend(5)})`;
  }
  const colourOf = (protein) => groups[groupOf[protein]].colour ?? mixed(data.scale.numbers[protein]);
  const filled = (protein) => groups[groupOf[protein]].shape.replace("-open", "");
  const pointsOf = (proteins) => ({ x: proteins.map((one) => data.x[one]), y: proteins.map((one) => data.y[one]) });

  function traces() {
    const { ink } = theme();
    const opacity = matches === null ? (count > 30000 ? 0.6 : 0.8) : 0.12;
    const base = groups.map((group, place) => ({
      type, mode: "markers", ...pointsOf(group.of), visible: shown[place], hoverinfo: "none", showlegend: false,
      selectedpoints: null, selected: { marker: { opacity } }, unselected: { marker: { opacity } },
      marker: {
        size: group.shape === "circle" ? size : size + 1, opacity, symbol: group.shape,
        color: group.colour ?? group.of.map((protein) => mixed(data.scale.numbers[protein])),
        line: { width: group.shape.endsWith("open") ? 1.5 : 0 },
      },
    }));
    const found = (matches ?? []).filter((protein) => shown[groupOf[protein]]);
    const over = { type, mode: "markers", hoverinfo: "skip", showlegend: false };
    return [
      ...base,
      {
        ...over, ...pointsOf(found),
        marker: { size: size + 4, color: found.map(colourOf), symbol: found.map(filled), line: { color: ink, width: 1.5 } },
      },
      { ...over, ...pointsOf([...picks]), marker: { size: size + 7, color: ink, symbol: "circle-open", line: { width: 2 } } },
    ];
  }

  function layout() {
    const { ink, quiet, rule, paper } = theme();
    const axis = (title) => ({
      title: { text: title, font: { size: 12 }, standoff: 6 }, gridcolor: rule, zerolinecolor: rule, linecolor: quiet,
      automargin: true, tickfont: { size: 11 },
    });
    return {
      xaxis: axis(data.axes[0]), yaxis: axis(data.axes[1]), dragmode: mode, hovermode: "closest", uirevision: "same",
      selections: [], newselection: { line: { color: ink, width: 1.5 } }, activeselection: { opacity: 0.2 },
      margin: { l: 8, r: 12, t: 12, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, 'DejaVu Sans', sans-serif", size: 12 },
      modebar: { color: quiet, bgcolor: paper }, autosize: true, showlegend: false, hoverdistance: 12,
    };
  }

  const settings = { displayModeBar: false, displaylogo: false, responsive: true, scrollZoom: true, doubleClick: "autosize" };
  let waiting = Promise.resolve();
  function draw() {
    // one after the other: plotly forgets points where a drawing begins before the last has ended
    waiting = waiting.then(() => Plotly.react(plot, traces(), layout(), settings));
    return waiting;
  }

  // What is shown on hover is text, whatever it looks like.
  const tip = at("tip");
  function lines(protein) {
    const residues = data.lengths[protein];
    const told = [data.ids[protein], `${number(residues)} residue${residues === 1 ? "" : "s"}`, data.titles[protein]];
    if (data.label) told.push(`${data.label.name}: ${data.label.texts[protein] ?? "no value"}`);
    return told.filter((line) => line !== "");
  }
  function showTip(protein, event) {
    tip.replaceChildren(...lines(protein).map((line) => {
      const paragraph = document.createElement("p");
      paragraph.textContent = line.length > 300 ? `${line.slice(0, 300)}…` : line;
      return paragraph;
    }));
    tip.hidden = false;
    const touch = event.changedTouches?.[0] ?? event;
    const { width, height } = tip.getBoundingClientRect();
    const [x, y] = [touch.clientX ?? 0, touch.clientY ?? 0];
    const left = x + 14 + width > innerWidth ? x - width - 14 : x + 14;
    const top = y + 14 + height > innerHeight ? y - height - 14 : y + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  }
  const hideTip = () => { tip.hidden = true; };
  window.addEventListener("scroll", hideTip, { passive: true });

  function proteinsOf(points) {
    const own = points.filter((point) => point.curveNumber < groups.length);
    return own.map((point) => groups[point.curveNumber].of[point.pointNumber]);
  }

  function listen() {
    plot.on("plotly_hover", ({ points, event }) => {
      const [protein] = proteinsOf(points);
      if (protein !== undefined) showTip(protein, event);
    });
    plot.on("plotly_unhover", hideTip);
    plot.on("plotly_relayout", hideTip);
    plot.on("plotly_click", ({ points }) => {
      const [protein] = proteinsOf(points);
      if (protein === undefined) return;
      if (!picks.delete(protein)) picks.add(protein);
      picked();
    });
    plot.on("plotly_selected", (selection) => {
      const proteins = proteinsOf(selection?.points ?? []);
      proteins.forEach((protein) => picks.add(protein));
      picked();
    });
  }

  // Picks
  const LISTED = 100;
  function picked() {
    at("count").textContent = number(picks.size);
    at("hint").hidden = picks.size > 0;
    for (const id of ["save-tsv", "save-fasta", "clear"]) at(id).disabled = picks.size === 0;
    at("list").replaceChildren(...[...picks].slice(0, LISTED).map(row));
    at("more").hidden = picks.size <= LISTED;
    at("more").textContent = `and ${number(picks.size - LISTED)} more; all are saved`;
    if (data.fasta) {
      const lacking = [...picks].filter((protein) => data.fasta.letters[protein] === null).length;
      at("unsaved").hidden = lacking === 0;
      at("unsaved").textContent = `${number(lacking)} of them without a sequence in the FASTA file`;
      at("save-fasta").disabled = picks.size === lacking;
    }
    draw();
  }
  function row(protein) {
    const item = document.createElement("li");
    const words = document.createElement("div");
    const [name, ...rest] = lines(protein);
    words.append(name);
    const small = document.createElement("small");
    small.textContent = rest.join(" · ");
    words.append(small);
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${name}`);
    remove.addEventListener("click", () => {
      picks.delete(protein);
      picked();
    });
    item.append(words, remove);
    return item;
  }
  const cell = (value) => String(value ?? "").replace(/[\t\r\n]+/g, " ");
  function table() {
    const heading = ["id", "length", "description", "label", ...data.columns];
    const rows = [...picks].map((one) => [
      data.ids[one], data.lengths[one], data.titles[one], data.label?.texts[one], data.x[one], data.y[one],
    ]);
    return [heading, ...rows].map((cells) => cells.map(cell).join("\t")).join("\n") + "\n";
  }
  function fasta() {
    const { headers, letters } = data.fasta;
    const has = [...picks].filter((protein) => letters[protein] !== null);
    return has.map((one) => `>${cell(headers[one])}\n${letters[one].replace(/(.{60})(?=.)/g, "$1\n")}\n`).join("");
  }
  function save(text, ending) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = `${data.stem}_picks.${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
  at("save-tsv").addEventListener("click", () => save(table(), "tsv"));
  at("save-fasta").addEventListener("click", () => save(fasta(), "fasta"));
  at("clear").addEventListener("click", () => {
    picks.clear();
    picked();
  });
  at("save-fasta").hidden = !data.fasta;
  at("no-fasta").hidden = Boolean(data.fasta);

  // Search: every word that was typed must be in the id or the description.
  let texts = null;
  function search() {
    const words = at("search").value.toLowerCase().split(/\s+/).filter((word) => word !== "");
    if (words.length === 0) {
      matches = null;
    } else {
      texts ??= data.ids.map((id, place) => `${id} ${data.titles[place]}`.toLowerCase());
      matches = [];
      texts.forEach((text, protein) => {
        if (words.every((word) => text.includes(word))) matches.push(protein);
      });
    }
    const hidden = (matches ?? []).filter((protein) => !shown[groupOf[protein]]).length;
    at("found").textContent = matches === null ? ""
      : `${number(matches.length)} of ${number(count)} found${hidden ? `, ${number(hidden)} of them hidden` : ""}`;
    at("take").hidden = !matches?.length;
    draw();
  }
  let typing = 0;
  at("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(search, 150);
  });
  at("take").addEventListener("click", () => {
    matches.forEach((protein) => picks.add(protein));
    picked();
  });

  // Legend
  function mark(group) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "mark");
    svg.setAttribute("viewBox", "0 0 12 12");
    svg.setAttribute("aria-hidden", "true");
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const paths = {
      circle: "M6 1a5 5 0 1 0 .01 0z", square: "M1.5 1.5h9v9h-9z", "diamond-open": "M6 1L11 6L6 11L1 6z",
    };
    shape.setAttribute("d", paths[group.shape]);
    const colour = group.colour ?? data.scale.colours[2];
    shape.setAttribute("fill", group.shape.endsWith("open") ? "none" : colour);
    shape.setAttribute("stroke", colour);
    shape.setAttribute("stroke-width", "1.6");
    svg.append(shape);
    return svg;
  }
  function toggle() {
    document.querySelectorAll(".chip").forEach((chip) => {
      chip.setAttribute("aria-pressed", String(shown[Number(chip.dataset.group)]));
    });
    search();
  }
  function legend() {
    if (!data.label) return;
    at("legend").hidden = false;
    at("legend").querySelector("h2").textContent = data.label.name;
    if (data.scale) {
      const { low, high, colours } = data.scale;
      const bar = at("legend").querySelector(".scale");
      bar.hidden = false;
      bar.querySelector(".bar").style.background = `linear-gradient(to right, ${colours.join(", ")})`;
      const [left, right] = bar.querySelectorAll("span");
      const short = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 4 });
      left.textContent = short(low);
      right.textContent = short(high);
    }
    data.groups.forEach((group) => {
      const place = groups.indexOf(group);
      const chip = document.createElement("button");
      chip.type = "button";
      chip.className = "chip";
      chip.dataset.group = place;
      chip.setAttribute("aria-pressed", "true");
      const [name, many] = [document.createElement("span"), document.createElement("span")];
      name.textContent = group.name;
      many.textContent = number(group.of.length);
      many.className = "many";
      chip.append(mark(group), name, many);
      chip.addEventListener("click", () => {
        shown[place] = !shown[place];
        toggle();
      });
      at("legend").querySelector(".chips").append(chip);
    });
    at("legend").querySelector(".both").hidden = groups.length < 2;
    at("legend").querySelector(".chips").hidden = groups.length < 2 && Boolean(data.scale);
    at("all").addEventListener("click", () => {
      shown.fill(true);
      toggle();
    });
    at("none").addEventListener("click", () => {
      shown.fill(false);
      toggle();
    });
  }

  // View
  for (const button of document.querySelectorAll("[data-mode]")) {
    button.addEventListener("click", () => {
      mode = button.dataset.mode;
      for (const other of document.querySelectorAll("[data-mode]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      Plotly.relayout(plot, { dragmode: mode });
    });
  }
  function zoom(factor) {
    const change = {};
    for (const name of ["xaxis", "yaxis"]) {
      const [low, high] = plot._fullLayout[name].range;
      const [middle, half] = [(low + high) / 2, ((high - low) / 2) * factor];
      change[`${name}.range`] = [middle - half, middle + half];
    }
    Plotly.relayout(plot, change);
  }
  at("nearer").addEventListener("click", () => zoom(0.5));
  at("farther").addEventListener("click", () => zoom(2));
  at("whole").addEventListener("click", () => Plotly.relayout(plot, { "xaxis.autorange": true, "yaxis.autorange": true }));
  dark.addEventListener("change", draw);

  legend();
  draw().then(() => {
    listen();
    document.documentElement.dataset.drawn = "yes";
  });
})();
