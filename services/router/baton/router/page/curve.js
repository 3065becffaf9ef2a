// One curve of the last 15 minutes, or two, or bars: a small picture whose right edge is now.

import { svg } from "./dom.js";

const HEIGHT = 40;

// `lines`: lists of numbers or null, the newest last; `length` is how many fit. Where nothing was measured there is a gap.
export function curve(lines, length, told) {
  const most = Math.max(...lines.flat().filter((value) => value !== null), 1e-9);
  const picture = frame(length, told);
  lines.forEach((values, i) => {
    const at = (j) => `${length - values.length + j} ${(HEIGHT - 1 - (HEIGHT - 4) * (values[j] / most)).toFixed(1)}`;
    let path = "";
    values.forEach((value, j) => {
      if (value === null) return;
      const isAlone = values[j - 1] === null || j === 0;
      path += isAlone ? `M${at(j)}h0.7` : `L${at(j)}`;
    });
    picture.append(svg("path", { d: path || "M0 0", class: `line line-${i}` }));
  });
  return picture;
}

// `kinds`: {name: values}; bars stand on one another.
export function bars(kinds, length, told) {
  const lists = Object.entries(kinds);
  const num = lists[0][1].length;
  const most = Math.max(...Array.from({ length: num }, (_, j) => lists.reduce((sum, [, values]) => sum + values[j], 0)), 1);
  const picture = frame(length, told);
  for (let j = 0; j < num; j += 1) {
    let top = HEIGHT - 1;
    for (const [name, values] of lists) {
      if (!values[j]) continue;
      const height = Math.max(((HEIGHT - 4) * values[j]) / most, 3);
      top -= height;
      picture.append(svg("rect", { x: length - num + j - 0.7, width: 0.7, y: top, height, class: "bar-of", "data-kind": name }));
    }
  }
  return picture;
}

function frame(length, told) {
  return svg("svg", { viewBox: `0 0 ${length} ${HEIGHT}`, preserveAspectRatio: "none", height: HEIGHT, role: "img", "aria-label": told },
    svg("path", { class: "floor", d: `M0 ${HEIGHT - 0.5}H${length}` }));
}
