"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const pressed = (chart, key) =>
  [...document.querySelectorAll(`button[data-chart="${chart}"][data-${key}][aria-pressed="true"]`)]
    .map((button) => button.dataset[key]);

function draw(chart) {
  const [measure = "error"] = pressed(chart, "measure");
  const arms = pressed(chart, "arm");
  const { data, layout } = figures[chart][measure];
  const traces = data.map((trace) => ({ ...trace, visible: !trace.meta || arms.includes(trace.meta.arm) }));
  const config = { displayModeBar: false, responsive: true };
  return Plotly.react(`chart-${chart}`, traces, layout, config);
}

for (const button of document.querySelectorAll("button[data-chart]")) {
  button.addEventListener("click", () => {
    const { chart, measure } = button.dataset;
    if (measure) {
      for (const other of button.parentElement.children) other.setAttribute("aria-pressed", other === button);
    } else {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    }
    draw(chart);
  });
}
Object.keys(figures).forEach(draw);

const resize = (layout) => {
  for (const chart of Object.keys(figures)) Plotly.relayout(`chart-${chart}`, layout);
};
addEventListener("beforeprint", () => resize({ width: 680 }));
addEventListener("afterprint", () => resize({ width: null, autosize: true }));
