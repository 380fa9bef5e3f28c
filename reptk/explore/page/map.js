// The map: points drawn by Plotly with WebGL, moved and zoomed by pointer and keys.

const PAN_SHARE = 0.15;
const ZOOM = 1.35;
const MARGIN = 1.08;

const config = { scrollZoom: true, displayModeBar: false, displaylogo: false, responsive: true, doubleClick: false };

const axis = { visible: false, fixedrange: false, autorange: false };

/** Points get smaller the more there are, as long as they can be seen. */
function pointSize(count) {
  if (count <= 2000) return 7;
  if (count <= 20000) return 4.5;
  return 3;
}

export class PointMap {
  /** `handlers`: hovered(row, event), left(), clicked(row), selected(rows). */
  constructor(element, handlers) {
    this.element = element;
    this.handlers = handlers;
    this.mode = "pan";
    this.marker = {};
    this.highlighted = null;
  }

  async draw(positions, marker) {
    const count = positions.length / 2;
    this.x = new Float32Array(count);
    this.y = new Float32Array(count);
    for (let row = 0; row < count; row += 1) {
      this.x[row] = positions[2 * row];
      this.y[row] = positions[2 * row + 1];
    }
    this.marker = { ...marker, size: pointSize(count), opacity: 0.8, line: { width: 0 } };
    const isFirst = !this.element.layout;
    await Plotly.react(this.element, [this.trace()], this.layout(), config);
    if (isFirst) this.listen();
  }

  trace() {
    return {
      type: "scattergl",
      mode: "markers",
      x: this.x,
      y: this.y,
      marker: this.marker,
      hoverinfo: "none",
      selectedpoints: this.highlighted,
      selected: { marker: { opacity: 1 } },
      unselected: { marker: { opacity: 0.12 } },
    };
  }

  layout() {
    return {
      dragmode: this.mode,
      hovermode: "closest",
      hoverdistance: 12,
      showlegend: false,
      margin: { l: 0, r: 0, t: 0, b: 0 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: { ...axis, range: [-MARGIN, MARGIN] },
      yaxis: { ...axis, range: [-MARGIN, MARGIN], scaleanchor: "x" },
      selections: [],
    };
  }

  listen() {
    const { element, handlers } = this;
    const rowOf = (event) => event.points[0].pointNumber;
    element.on("plotly_hover", (event) => handlers.hovered(rowOf(event), event.event));
    element.on("plotly_unhover", () => handlers.left());
    element.on("plotly_click", (event) => handlers.clicked(rowOf(event)));
    element.on("plotly_selected", (event) => {
      // An event without points follows every change of the selection by this script.
      if (event && event.points && (event.lassoPoints || event.range)) handlers.selected(event.points.map((point) => point.pointNumber));
    });
    element.addEventListener("keydown", (event) => this.pressed(event));
  }

  color(marker) {
    this.marker = { ...this.marker, colorscale: undefined, cmin: undefined, cmax: undefined, ...marker };
    return Plotly.react(this.element, [this.trace()], this.element.layout, config);
  }

  /** Draw some rows as they are and the others pale; null draws all alike. */
  highlight(rows) {
    this.highlighted = rows;
    return Plotly.update(this.element, { selectedpoints: [rows] }, { selections: [] });
  }

  setMode(mode) {
    this.mode = mode;
    return Plotly.relayout(this.element, { dragmode: mode });
  }

  /** Show all points, and all of them alike. */
  showAll() {
    this.highlighted = null;
    const view = { "xaxis.range": [-MARGIN, MARGIN], "yaxis.range": [-MARGIN, MARGIN], selections: [] };
    return Plotly.update(this.element, { selectedpoints: [null] }, view);
  }

  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== this.element) return;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const zooms = { "+": 1 / ZOOM, "=": 1 / ZOOM, "-": ZOOM, "0": 0 };
    if (event.key in moves) this.move(...moves[event.key]);
    else if (event.key === "0") this.showAll();
    else if (event.key in zooms) this.zoom(zooms[event.key]);
    else return;
    event.preventDefault();
  }

  move(right, up) {
    const [left, farRight] = this.element.layout.xaxis.range;
    const [bottom, top] = this.element.layout.yaxis.range;
    const dx = right * PAN_SHARE * (farRight - left);
    const dy = up * PAN_SHARE * (top - bottom);
    return Plotly.relayout(this.element, {
      "xaxis.range": [left + dx, farRight + dx],
      "yaxis.range": [bottom + dy, top + dy],
    });
  }

  zoom(factor) {
    const zoomed = ([low, high]) => {
      const middle = (low + high) / 2;
      const half = ((high - low) / 2) * factor;
      return [middle - half, middle + half];
    };
    const { xaxis, yaxis } = this.element.layout;
    return Plotly.relayout(this.element, { "xaxis.range": zoomed(xaxis.range), "yaxis.range": zoomed(yaxis.range) });
  }
}
