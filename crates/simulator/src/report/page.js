// Draws the charts of a simulation's report. Every text is set as text, never as markup.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const DASHES = ["", "7 3", "2 3", "10 3 2 3", "5 2 1 2", "12 4", "1 3", "8 2 2 2 2 2", "4 4", "14 3 3 3"];
  // The eleventh has the colour of the first, with another dash.
  const dash = (index) => DASHES[(index + Math.floor(index / 10)) % 10];
  const root = document.documentElement;
  const report = JSON.parse(document.getElementById("report").textContent);
  const times = report.at_seconds;
  const end = times[times.length - 1] || 1;
  const shown = report.policies.map(() => true);

  const element = (name, attributes, parent) => {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (parent) parent.append(made);
    return made;
  };
  const html = (name, text, parent) => {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const swatch = (index, parent) => {
    const svg = element("svg", { width: 26, height: 10, "aria-hidden": "true", class: "p" + index % 10 }, parent);
    element("path", { d: "M0 5H26", class: "swatch", "stroke-width": 3, "stroke-dasharray": dash(index) }, svg);
    return svg;
  };

  // Numbers and times as people write them.
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const short = new Intl.NumberFormat("en", { maximumFractionDigits: 1, notation: "compact" });
  const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const UNITS = [
    ["days", 86400, [1, 2, 4, 7, 14, 28, 56, 91, 182, 365]], ["hours", 3600, [1, 2, 3, 6, 12, 24]],
    ["minutes", 60, [1, 2, 5, 10, 15, 30, 60]], ["seconds", 1, [1, 2, 5, 10, 15, 30, 60]],
  ];
  const [unitName, unit, steps] = UNITS.find(([, size]) => end >= 2 * size) || UNITS[3];
  const clock = (seconds) => {
    const parts = [];
    let rest = Math.round(seconds);
    for (const [letter, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
      if (rest >= size) parts.push(Math.floor(rest / size) + " " + letter);
      rest %= size;
    }
    return parts.slice(0, 2).join(" ") || "0 s";
  };
  const nice = (most, count) => {
    const rough = most / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    return [1, 2, 2.5, 5, 10].map((n) => n * power).find((step) => step >= rough) || 10 * power;
  };

  const named = (reference) => `one more “${reference.workload} ${reference.flavor}”`;
  const asked = (resources) => {
    const parts = [];
    for (const key in resources) {
      const value = resources[key];
      if (key === "accelerators") for (const model in value) parts.push(`${value[model]} × ${model}`);
      else if (!/^0(\D|$)/.test(value)) parts.push(key === "cpu" ? `${value} core${value === "1" ? "" : "s"}` : key === "memory" ? value : `${value} ${key.replace("_", " ")}`);
    }
    return parts.join(", ");
  };
  const { typical, largest } = report.references;
  const percent = { unit: "%", most: 100, print: (value) => one.format(value) + " %", axis: "percent" };
  const count = (axis) => ({ unit: axis, print: (value) => whole.format(value), axis });
  const committed = report.elements.map((info, index) => ({
    ...percent, title: info.title + " committed", about: `of ${info.capacity} in all`,
    of: (policy) => policy.series.committed_percent[index],
  }));
  const charts = [
    ...committed.slice(0, 2),
    { ...count("VMs"), title: "Rejected VMs", about: report.scenario.warm_up_seconds ? "all since the warm-up" : "all since the start", of: (policy) => policy.series.rejected },
    { ...count("hosts"), title: "Hosts in use", about: `of ${whole.format(report.scenario.hosts)}: those that run a VM`, most: report.scenario.hosts, of: (policy) => policy.series.hosts_in_use },
    { ...percent, title: "Fragmentation, typical VM", about: `free capacity on hosts without room for ${named(typical)} (${asked(typical.resources)})`, of: (policy) => policy.series.fragmented_percent.typical },
    { ...percent, title: "Fragmentation, largest VM", about: `free capacity on hosts without room for ${named(largest)} (${asked(largest.resources)})`, of: (policy) => policy.series.fragmented_percent.largest },
    ...committed.slice(2),
    { ...count("VMs"), title: "Running VMs", about: "that have a place", of: (policy) => policy.series.vms },
  ];

  // The sample that is pointed at, in all charts at once; -1 for none.
  let pointed = -1;
  const point = (index, owner) => {
    pointed = index;
    for (const chart of charts) chart.mark(chart === owner);
  };

  const build = (chart, parent) => {
    const figure = html("figure", "", parent);
    const caption = html("figcaption", "", figure);
    html("strong", chart.title, caption);
    html("span", chart.about, caption);
    const svg = element("svg", { class: "chart", role: "img", tabindex: 0 }, figure);
    const tip = html("div", "", figure);
    tip.className = "tip";
    tip.hidden = true;
    Object.assign(chart, { figure, svg, tip, values: report.policies.map((policy) => chart.of(policy)) });
    const at = (event) => {
      const box = svg.getBoundingClientRect();
      const part = (event.clientX - box.left - chart.left) / (chart.right - chart.left);
      const wanted = Math.min(Math.max(part, 0), 1) * end;
      let low = 0;
      let high = times.length - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (times[middle] < wanted) low = middle + 1; else high = middle;
      }
      return low > 0 && wanted - times[low - 1] < times[low] - wanted ? low - 1 : low;
    };
    svg.addEventListener("pointermove", (event) => point(at(event), chart));
    svg.addEventListener("pointerdown", (event) => point(at(event), chart));
    svg.addEventListener("pointerleave", () => point(-1));
    svg.addEventListener("blur", () => point(-1));
    svg.addEventListener("keydown", (event) => {
      const last = times.length - 1;
      const from = pointed < 0 ? last : pointed;
      const to = { ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from - 10, PageDown: from + 10, Home: 0, End: last }[event.key];
      if (event.key === "Escape") point(-1);
      if (to === undefined) return;
      event.preventDefault();
      point(Math.min(Math.max(to, 0), last), chart);
    });
  };

  const draw = (chart) => {
    const { svg, values } = chart;
    const width = Math.max(svg.getBoundingClientRect().width, 240);
    const height = width < 420 ? 210 : 240;
    const drawn = values.filter((_, index) => shown[index]);
    let most = chart.most || 0;
    if (!most) for (const list of drawn) for (const value of list) most = Math.max(most, value);
    const rise = most <= 5 && chart.unit !== "%" ? 1 : nice(most, 4);
    const top = chart.most || Math.max(Math.ceil(most / rise) * rise, rise);
    const labels = [];
    for (let value = 0; value <= top; value += rise) labels.push(value);
    if (top - labels[labels.length - 1] > 0.1 * top) labels.push(top);
    const print = (value) => (value >= 10000 ? short : whole).format(value);
    const widest = Math.max(...labels.map((value) => print(value).length));
    const left = 26 + 7 * widest;
    const right = width - 10;
    const [above, below] = [20, height - 40];
    const x = (seconds) => left + (seconds / end) * (right - left);
    const y = (value) => below - (value / top) * (below - above);
    Object.assign(chart, { left, right, x, y });
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    svg.setAttribute("aria-label", `${chart.title}, ${chart.about}. ` + report.policies.map((policy, index) => {
      const list = values[index];
      return `${policy.policy}: at the end ${chart.print(list[list.length - 1] || 0)}, at most ${chart.print(list.reduce((a, b) => Math.max(a, b), 0))}`;
    }).join("; "));

    const warm = report.scenario.warm_up_seconds;
    if (warm > 0) {
      element("rect", { class: "warm", x: left, y: above, width: x(warm) - left, height: below - above }, svg);
      if (x(warm) - left > 56) element("text", { x: (left + x(warm)) / 2, y: above - 6, "text-anchor": "middle" }, svg).textContent = "warm-up";
    }
    for (const value of labels) {
      element("path", { class: value ? "grid" : "axis", d: `M${left} ${y(value)}H${right}` }, svg);
      element("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, svg).textContent = print(value);
    }
    element("text", { x: 0, y: 0, transform: `translate(12 ${(above + below) / 2}) rotate(-90)`, "text-anchor": "middle" }, svg).textContent = chart.axis;
    const rough = (end / unit) / ((right - left) / 44);
    const run = steps.find((step) => step >= rough) || nice(rough, 1);
    for (let value = 0; value * unit <= end * 1.0001; value += run) {
      const label = String(Math.round(value * 100) / 100);
      element("path", { class: "axis", d: `M${x(value * unit)} ${below}v4` }, svg);
      element("text", { x: x(value * unit), y: below + 17, "text-anchor": "middle" }, svg).textContent = label;
    }
    element("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, svg).textContent = `${unitName} since the start`;

    values.forEach((list, index) => {
      if (!shown[index]) return;
      const d = list.map((value, sample) => `${sample ? "L" : "M"}${x(times[sample]).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      element("path", { class: "line p" + index % 10, d, "stroke-dasharray": dash(index) }, svg);
    });
    const marks = element("g", {}, svg);
    chart.mark = (owner) => {
      marks.replaceChildren();
      chart.tip.hidden = !owner || pointed < 0;
      if (pointed < 0) return;
      const where = x(times[pointed]);
      element("path", { class: "cross", d: `M${where} ${above}V${below}` }, marks);
      const rows = values.map((list, index) => ({ index, value: list[pointed] })).filter(({ index }) => shown[index]);
      for (const { index, value } of rows) element("circle", { class: "dot p" + index % 10, cx: where, cy: y(value), r: 4 }, marks);
      if (!owner) return;
      chart.tip.replaceChildren();
      html("b", clock(times[pointed]), chart.tip);
      for (const { index, value } of rows.sort((a, b) => b.value - a.value)) {
        const line = html("div", "", chart.tip);
        swatch(index, line);
        html("span", report.policies[index].policy, line);
        html("i", chart.print(value), line);
      }
      // Elements of SVG have no offset of their own.
      const [outer, inner] = [chart.figure.getBoundingClientRect(), svg.getBoundingClientRect()];
      const inset = inner.left - outer.left + where;
      const room = chart.figure.clientWidth - chart.tip.offsetWidth - 8;
      const beside = inset + 14 + chart.tip.offsetWidth < chart.figure.clientWidth ? inset + 14 : inset - 14 - chart.tip.offsetWidth;
      chart.tip.style.left = Math.min(Math.max(beside, 8), Math.max(room, 8)) + "px";
      chart.tip.style.top = inner.top - outer.top + above + "px";
    };
  };

  const drawAll = () => {
    pointed = -1;
    for (const chart of charts) {
      draw(chart);
      chart.tip.hidden = true;
    }
    // For those who wait until everything is there, such as tests.
    root.dataset.drawn = String(charts.length);
  };

  try {
    const legend = document.getElementById("legend");
    report.policies.forEach((policy, index) => {
      const button = html("button", "", legend);
      button.type = "button";
      button.title = "Show or hide";
      button.setAttribute("aria-pressed", "true");
      swatch(index, button);
      html("span", policy.policy, button);
      button.addEventListener("click", () => {
        shown[index] = !shown[index];
        button.setAttribute("aria-pressed", String(shown[index]));
        drawAll();
      });
    });
    const parent = document.getElementById("charts");
    for (const chart of charts) build(chart, parent);
    drawAll();
    let width = parent.clientWidth;
    new ResizeObserver(() => {
      if (parent.clientWidth === width) return;
      width = parent.clientWidth;
      requestAnimationFrame(drawAll);
    }).observe(parent);
  } catch (error) {
    root.dataset.failed = String(error);
    const note = html("p", `The charts could not be drawn: ${error}`);
    note.className = "note";
    document.getElementById("charts").before(note);
    throw error;
  }
})();
