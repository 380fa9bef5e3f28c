// From the values of a column to the colors of points, and to a legend.

// Twenty colors that are told apart on a light and on a dark ground; more categories use them again.
const PALETTE = [
  "#2f7ed8", "#e0701a", "#2f9e4f", "#d1383d", "#8e5bc4", "#8b6a4f", "#d864a9", "#8a8f1e", "#1fa6b8", "#e0a21a",
  "#5b63d6", "#b0562a", "#6cb33f", "#b3376b", "#a884e0", "#b59a73", "#f08fb8", "#6f7b3a", "#5fc4d4", "#f2cf5b",
];
const MISSING_COLOR = "#9a9a94";
const RIGHT_COLOR = "#4f9d8f";
const WRONG_COLOR = "#d1483d";

// For numbers, from low to high; Plotly's own scales begin or end in the color of one of the grounds.
const SCALE = ["#7a5bd0", "#3f8fd6", "#27a78f", "#8bb33a", "#e3a823"];
export const gradient = `linear-gradient(90deg, ${SCALE.join(", ")})`;

function colorsOf(column) {
  if (column.name === "error") return [RIGHT_COLOR, WRONG_COLOR];
  return PALETTE;
}

/** The colors of categories: numbers of colors, a scale of steps, and legend items {name, color, code, count}. */
export function categoryColors(column, codes) {
  const colors = colorsOf(column);
  const steps = [MISSING_COLOR, ...colors];
  const values = new Float32Array(codes.length);
  const counts = new Int32Array(column.categories.length + 1);
  for (let row = 0; row < codes.length; row += 1) {
    const code = codes[row];
    values[row] = code < 0 ? 0 : 1 + (code % colors.length);
    counts[code + 1] += 1;
  }
  const scale = [];
  steps.forEach((color, step) => {
    scale.push([step / steps.length, color], [(step + 1) / steps.length, color]);
  });
  const items = column.categories.map((name, code) => {
    return { name, code, color: colors[code % colors.length], count: counts[code + 1] };
  });
  if (counts[0]) items.push({ name: "none", code: -1, color: MISSING_COLOR, count: counts[0] });
  return {
    marker: { color: values, colorscale: scale, cmin: -0.5, cmax: steps.length - 0.5 },
    items: items.filter((item) => item.count),
    range: null,
  };
}

/** The colors of numbers, from the 1st to the 99th percentile, so that one extreme value does not hide the others. */
export function numberColors(values) {
  const sorted = values.filter((value) => !Number.isNaN(value)).sort();
  if (!sorted.length) return { marker: { color: MISSING_COLOR }, items: [], range: null };
  const low = sorted[Math.floor(0.01 * (sorted.length - 1))];
  const high = sorted[Math.ceil(0.99 * (sorted.length - 1))];
  return {
    marker: { color: values, colorscale: SCALE.map((color, step) => [step / (SCALE.length - 1), color]), cmin: low, cmax: high > low ? high : low + 1 },
    items: [],
    range: [low, high],
  };
}

export const plainColors = () => ({ marker: { color: PALETTE[0] }, items: [], range: null });
