"use strict";
// Reads the values of a chart under the pointer, or with the arrow keys; the curves themselves need no script.
for (const area of document.querySelectorAll(".chart .area[data-low]")) {
  const low = Number(area.dataset.low), high = Number(area.dataset.high), percent = area.dataset.percent === "1";
  const cross = area.querySelector(".cross"), tip = area.querySelector(".tip");
  const curves = [...area.querySelectorAll(".curve")].map((path) => ({
    name: path.dataset.name, x: JSON.parse(path.dataset.x), y: JSON.parse(path.dataset.y),
  }));
  const steps = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  let current = -1;
  const text = (value) =>
    value === null ? "not finite" : percent ? (100 * value).toFixed(1) + "%" : String(Number(value.toPrecision(4)));
  const show = (index) => {
    if (!steps.length) return;
    current = Math.max(0, Math.min(steps.length - 1, index));
    const step = steps[current], at = 100 * (step - low) / (high - low);
    const lines = curves
      .map((curve) => [curve, curve.x.indexOf(step)])
      .filter(([, i]) => i >= 0)
      .map(([curve, i]) => (curves.length > 1 ? curve.name + "  " : "") + text(curve.y[i]));
    tip.textContent = [area.dataset.xLabel + " " + step, ...lines].join("\n");
    cross.style.left = at + "%";
    tip.style.left = at < 50 ? "calc(" + at + "% + 10px)" : "auto";
    tip.style.right = at < 50 ? "auto" : "calc(" + (100 - at) + "% + 10px)";
    cross.hidden = tip.hidden = false;
  };
  const hide = () => { cross.hidden = tip.hidden = true; };
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    const x = low + (high - low) * (event.clientX - box.left) / box.width;
    let best = 0;
    steps.forEach((step, i) => { if (Math.abs(step - x) < Math.abs(steps[best] - x)) best = i; });
    show(best);
  });
  area.addEventListener("pointerleave", hide);
  area.addEventListener("blur", hide);
  area.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (move !== undefined) { event.preventDefault(); show(move); }
    if (event.key === "Escape") hide();
  });
}
