"use strict";
// What a plot has under the pointer, the finger, or the arrow keys. Without this script the titles
// of the marks say the same.
{
  const near = 48; // pixels
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  let lit = null;

  const hide = () => {
    if (lit) lit.classList.remove("lit");
    lit = null;
    tip.hidden = true;
  };

  const show = (mark) => {
    if (mark === lit) return;
    hide();
    lit = mark;
    mark.classList.add("lit");
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const at = mark.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const middle = at.left + at.width / 2 - tip.offsetWidth / 2;
    const left = Math.max(4, Math.min(middle, width - tip.offsetWidth - 4));
    const above = at.top - tip.offsetHeight - 8;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(above < 4 ? at.bottom + 8 : above) + window.scrollY}px`;
  };

  const nearest = (marks, x, y) => {
    let best = null;
    let least = near;
    for (const mark of marks) {
      const at = mark.getBoundingClientRect();
      const away = Math.hypot(at.left + at.width / 2 - x, at.top + at.height / 2 - y);
      if (away < least) [best, least] = [mark, away];
    }
    return best;
  };

  for (const plot of document.querySelectorAll("svg.plot")) {
    const marks = [...plot.querySelectorAll(".mark")];
    if (!marks.length) continue;
    for (const mark of marks) {
      const title = mark.querySelector("title");
      mark.dataset.tip = title.textContent;
      title.remove();
    }
    const point = (event) => {
      const mark = event.target.closest(".mark") ?? nearest(marks, event.clientX, event.clientY);
      mark ? show(mark) : hide();
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", (event) => event.pointerType === "touch" || hide());
    plot.addEventListener("blur", hide);
    plot.setAttribute("tabindex", "0");
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const place = marks.indexOf(lit);
      show(marks[(place < 0 && step < 0 ? marks.length - 1 : place + step + marks.length) % marks.length]);
    });
  }
}
