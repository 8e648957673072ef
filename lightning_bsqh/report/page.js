// Draws the charts whose data the page carries, in the colours of the page, and again when they change.
"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function draw() {
  const narrow = window.innerWidth <= 600;
  const text = colour("--text"), rule = colour("--rule"), card = colour("--card"), faint = colour("--faint");
  charts.forEach((chart, index) => {
    const data = chart.data.map((trace) =>
      trace.line && trace.line.color === "text"
        ? { ...trace, line: { ...trace.line, color: text }, marker: { ...trace.marker, color: text } }
        : trace
    );
    const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule };
    const layout = {
      ...chart.layout,
      xaxis: { ...axis, ...chart.layout.xaxis },
      yaxis: { ...axis, ...chart.layout.yaxis },
      font: { family: "inherit", size: narrow ? 12 : 13, color: text },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      // Room above for the buttons, so that they cover no curve.
      margin: { l: 55, r: 12, t: narrow ? 12 : 28, b: 40 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: faint, activecolor: text },
      legend: { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom" },
      hoverlabel: { bgcolor: card, bordercolor: rule, font: { color: text, size: 13 }, namelength: -1 },
      // A finger scrolls the page; a mouse draws a box to enlarge.
      dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom",
    };
    const config = {
      responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover",
      // Named one by one: none that would send anything anywhere.
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    };
    const box = document.getElementById(`chart-${index}`);
    // Many lines have a legend of many rows: the curves keep their height.
    const rows = layout.showlegend ? Math.ceil(data.length / Math.max(1, Math.floor(box.clientWidth / 150))) : 0;
    box.style.height = `${(narrow ? 280 : 320) + 20 * rows}px`;
    Plotly.react(box, data, layout, config);
  });
}

draw();
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
