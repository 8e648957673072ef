// Draws the charts whose data the page carries, in the colors of the page, and again when they change.
"use strict";
const packed = document.getElementById("plotly");
const charts = JSON.parse(document.getElementById("charts").textContent);

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function draw() {
  const narrow = window.innerWidth <= 600;
  const text = color("--text"), rule = color("--rule"), card = color("--card"), faint = color("--faint");
  charts.forEach((chart, index) => {
    const data = chart.data.map((trace) =>
      trace.line && trace.line.color === "text"
        ? { ...trace, line: { ...trace.line, color: text }, marker: { ...trace.marker, color: text } }
        : trace
    );
    const shown = (mark) => (mark.line && mark.line.color === "text" ? { ...mark, line: { ...mark.line, color: text } } : mark);
    // An axis without a trace is not drawn: this one has nothing to show and only its scale.
    if (chart.layout.xaxis2) {
      const range = chart.layout.xaxis.range;
      data.push({ type: "scatter", mode: "lines", x: range, y: [null, null], xaxis: "x2", showlegend: false, hoverinfo: "skip" });
    }
    const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule };
    const layout = {
      ...chart.layout,
      xaxis: { ...axis, ...chart.layout.xaxis },
      ...(chart.layout.xaxis2 ? { xaxis2: { ...axis, ...chart.layout.xaxis2, range: chart.layout.xaxis.range } } : {}),
      yaxis: { ...axis, ...chart.layout.yaxis },
      shapes: (chart.layout.shapes || []).map(shown),
      font: { family: "inherit", size: narrow ? 12 : 13, color: text },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      // Room above for the buttons, so that they cover no curve.
      margin: { l: 55, r: 12, t: chart.layout.xaxis2 ? 48 : narrow ? 12 : 28, b: 40 },
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

// plotly.js is in the page in compressed form; what it says is run as if it stood here.
async function unpack() {
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

if (typeof DecompressionStream === "undefined") {
  document.getElementById("old-browser").hidden = false;
} else {
  unpack().then(() => {
    draw();
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  });
}
