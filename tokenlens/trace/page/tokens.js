// The text of one trace, or of two side by side, as coloured tokens.

const BLOCK = 400; // tokens in a block; the browser lays out only the blocks that are on screen
const ROW = 16; // positions in a row where two traces stand side by side

function tokenHtml(trace, index, side, other) {
  const latent = trace.latent(index);
  const classes = ["t", latent ? "l" : "d"];
  if (trace.forced(index) && !latent) classes.push("f");
  if (!trace.valid(index)) classes.push("x");
  if (trace.isSwitch(index)) classes.push("s");
  if (trace.differs(index, other)) classes.push("differs");
  const heat = Math.min(trace.c.entropy[index] / FULL_ENTROPY, 1) * 0.75;
  const spread = Math.min((1 - trace.topWeight(index)) * 1.4, 0.85);
  const text = escaped(trace.text(index)).replace(/\n/g, '<span class="nl">⏎</span>\n');
  return `<span class="${classes.join(" ")}" data-i="${index}" data-s="${side}"`
    + ` style="--e:${heat.toFixed(3)};--w:${spread.toFixed(3)}">${text || (trace.isPart(index) ? '<span class="part"></span>' : '<span class="nl">∅</span>')}</span>`;
}

function flowHtml(trace) {
  const blocks = [];
  for (let start = 0; start < trace.length; start += BLOCK) {
    const tokens = [];
    for (let i = start; i < Math.min(start + BLOCK, trace.length); i++) tokens.push(tokenHtml(trace, i, 0));
    blocks.push(`<div class="block"><span class="flow">${tokens.join("")}</span></div>`);
  }
  return blocks.join("");
}

// Both traces in rows of the same positions, so that what stands beside each other belongs together.
function pairHtml(first, second) {
  const positions = [...new Set([...first.c.position, ...second.c.position])].sort((a, b) => a - b);
  const rows = [];
  for (let start = 0; start < positions.length; start += ROW) {
    const cells = [[], []];
    for (const position of positions.slice(start, start + ROW)) {
      [first, second].forEach((trace, side) => {
        const index = trace.at.get(position);
        if (index !== undefined) cells[side].push(tokenHtml(trace, index, side, side ? first : second));
      });
    }
    rows.push(`<div class="row"><span class="at">${positions[start]}</span>`
      + cells.map((cell) => `<div class="cell">${cell.join("")}</div>`).join("") + "</div>");
  }
  const blocks = [];
  for (let i = 0; i < rows.length; i += 16) {
    blocks.push(`<div class="block">${rows.slice(i, i + 16).join("")}</div>`);
  }
  return blocks.join("");
}

function headHtml(trace) {
  const counts = trace.c.counts;
  const facts = [trace.c.engine, trace.c.model, `${counts.tokens} tokens`,
    `${counts.thinking_tokens} thinking`, `${counts.latent_steps} latent`, `${counts.forced_steps} forced`];
  if (counts.cold_stops) facts.push(`Cold Stop ×${counts.cold_stops}`);
  if (counts.gate_switches) facts.push(`${counts.gate_switches} gate switches`);
  if (counts.mode_changes) facts.push(`${counts.mode_changes} mode changes`);
  if (counts.invalid_steps) facts.push(`${counts.invalid_steps} invalid`);
  if (trace.c.dropped) facts.push(`${trace.c.dropped} steps not kept`);
  if (!trace.c.complete) facts.push("cut off");
  return `<div><div class="prompt">${escaped(trace.c.prompt)}</div>${escaped(facts.filter(Boolean).join(" · "))}`
    + `<details><summary>spec</summary><pre>${escaped(trace.c.spec)}</pre></details></div>`;
}

function Panes(element) {
  this.element = element;
  this.spans = [[], []];
}

Panes.prototype.show = function (first, second) {
  const heads = [first, second].filter(Boolean).map(headHtml).join("");
  this.element.innerHTML = `<div class="head">${heads}</div>` + (second ? pairHtml(first, second) : flowHtml(first));
  this.spans = [new Array(first.length), new Array(second ? second.length : 0)];
  for (const span of this.element.querySelectorAll(".t")) this.spans[+span.dataset.s][+span.dataset.i] = span;
};

Panes.prototype.mark = function (name, side, keep) {
  this.spans[side].forEach((span, index) => span.classList.toggle(name, keep(index)));
};

Panes.prototype.colour = function (how) {
  this.element.classList.remove("by-entropy", "by-mode", "by-weight");
  this.element.classList.add(`by-${how}`);
};
