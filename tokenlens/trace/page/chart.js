// The entropy curve with thresholds and switches, and the schedule's wave beneath it.

const LEFT = 46;
const RIGHT = 10;
const WAVE = 46; // height of the wave's strip
const AXIS = 18;

function Chart(canvas, onPick) {
  this.canvas = canvas;
  this.traces = [];
  this.range = [0, 1];
  this.picked = null;
  const position = (event) => this.positionAt(event.clientX - canvas.getBoundingClientRect().left);
  canvas.addEventListener("mousemove", (event) => onPick(position(event), false));
  canvas.addEventListener("click", (event) => onPick(position(event), true));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    this.zoom(event.deltaY < 0 ? 0.8 : 1.25, position(event));
  }, { passive: false });
  new ResizeObserver(() => this.draw()).observe(canvas);
}

Chart.prototype.show = function (traces) {
  this.traces = traces;
  this.zoom(0);
};

// Changes the range of positions around one of them; 0 shows everything.
Chart.prototype.zoom = function (factor, around) {
  const ends = this.traces.filter((t) => t.length).flatMap((t) => [t.c.position[0], t.c.position[t.length - 1]]);
  const low = ends.length ? Math.min(...ends) : 0;
  const high = ends.length ? Math.max(...ends, low + 1) : 1;
  let [from, to] = factor ? this.range : [low, high];
  if (factor) {
    around = around ?? (this.picked ?? (from + to) / 2);
    const width = Math.max(8, Math.min((to - from) * factor, high - low));
    from = Math.min(Math.max(low, around - (around - from) / (to - from) * width), high - width);
    to = from + width;
  }
  this.range = [from, to];
  this.draw();
};

Chart.prototype.keepInView = function (position) {
  const [from, to] = this.range;
  if (position < from || position > to) {
    this.range = [position - (to - from) / 2, position + (to - from) / 2];
  }
};

Chart.prototype.x = function (position) {
  const [from, to] = this.range;
  return LEFT + (position - from) / (to - from) * (this.canvas.clientWidth - LEFT - RIGHT);
};

Chart.prototype.positionAt = function (x) {
  const [from, to] = this.range;
  return Math.round(from + (x - LEFT) / (this.canvas.clientWidth - LEFT - RIGHT) * (to - from));
};

Chart.prototype.draw = function () {
  const canvas = this.canvas;
  const scale = window.devicePixelRatio || 1;
  const waves = this.traces.length
    ? Object.entries(this.traces[0].c.edits).filter(([, amounts]) => !amounts.some((a) => a < BAN)) : [];
  const height = 144 + (waves.length ? WAVE : 0);
  canvas.style.height = `${height}px`;
  canvas.width = canvas.clientWidth * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const ink = (name) => style.getPropertyValue(name).trim();
  const colours = {
    ground: ink("--ground"), dim: ink("--dim"), line: ink("--line"), pick: ink("--pick"), mark: `rgb(${ink("--mark")})`,
    traces: [`rgb(${ink("--latent")})`, `rgb(${ink("--discrete")})`], latent: `rgb(${ink("--latent")} / .13)`,
  };
  pen.clearRect(0, 0, canvas.clientWidth, height);
  pen.font = "11px system-ui, sans-serif";
  if (!this.traces.length) return;
  const bottom = 144 - AXIS;
  // Not Math.max(...): a spread of hundreds of thousands of arguments overflows the stack.
  const all = this.traces.map((t) => t.c.entropy.reduce((a, b) => Math.max(a, b), 0));
  const most = Math.max(0.5, ...all) * 1.05;
  const y = (entropy) => bottom - entropy / most * (bottom - 8);
  this.axes(pen, colours, bottom, most, y);
  this.shade(pen, colours, bottom);
  this.traces.forEach((trace, side) => {
    pen.globalAlpha = side ? 0.6 : 1;
    this.line(pen, trace, trace.c.entropy, y, colours.traces[side]);
  });
  pen.globalAlpha = 1;
  for (const [name, value] of this.traces[0].c.thresholds) {
    if (value > most) continue;
    pen.strokeStyle = colours.mark;
    pen.setLineDash([5, 4]);
    // In the middle of a pixel, or the line is two faint ones.
    const at = Math.round(y(value)) + 0.5;
    this.stroke(pen, LEFT, at, canvas.clientWidth - RIGHT, at);
    pen.setLineDash([]);
    this.label(pen, `${name} ${value}`, LEFT + 4, y(value) - 4, colours.mark, colours.ground);
  }
  this.switches(pen, colours, bottom);
  if (waves.length) this.waves(pen, colours, waves);
  if (this.picked !== null) {
    pen.strokeStyle = colours.pick;
    this.stroke(pen, this.x(this.picked), 0, this.x(this.picked), height);
  }
};

Chart.prototype.label = function (pen, text, x, y, colour, ground) {
  pen.fillStyle = ground;
  pen.fillRect(x - 2, y - 10, pen.measureText(text).width + 4, 13);
  pen.fillStyle = colour;
  pen.fillText(text, x, y);
};

Chart.prototype.stroke = function (pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
};

Chart.prototype.axes = function (pen, colours, bottom, most, y) {
  pen.strokeStyle = colours.line;
  pen.fillStyle = colours.dim;
  const step = [0.25, 0.5, 1, 2, 5].find((s) => most / s <= 4.5) ?? 10;
  for (let value = 0; value <= most; value += step) {
    this.stroke(pen, LEFT, y(value), this.canvas.clientWidth - RIGHT, y(value));
    pen.fillText(value.toFixed(2), 16, y(value) + 4);
  }
  pen.save();
  pen.translate(10, bottom);
  pen.rotate(-Math.PI / 2);
  pen.fillText("entropy, nats", 0, 0);
  pen.restore();
  const [from, to] = this.range;
  const gap = Math.max(1, Math.pow(10, Math.floor(Math.log10((to - from) / 4))));
  const spacing = [1, 2, 5, 10].map((k) => k * gap).find((k) => (to - from) / k <= 10) ?? gap * 10;
  for (let position = Math.ceil(from / spacing) * spacing; position <= to; position += spacing) {
    const x = this.x(position) - pen.measureText(String(position)).width / 2;
    pen.fillText(String(position), Math.min(x, this.canvas.clientWidth - 40), bottom + 13);
  }
};

// Latent stretches of the first trace are tinted.
Chart.prototype.shade = function (pen, colours, bottom) {
  const trace = this.traces[0];
  pen.fillStyle = colours.latent;
  for (let start = 0; start < trace.length;) {
    let stop = start + 1;
    while (stop < trace.length && trace.c.latent[stop] === trace.c.latent[start]) stop++;
    if (trace.latent(start)) {
      const left = Math.max(LEFT, this.x(trace.c.position[start] - 0.5));
      const right = Math.min(this.canvas.clientWidth - RIGHT, this.x(trace.c.position[stop - 1] + 0.5));
      if (right > left) pen.fillRect(left, 8, right - left, bottom - 8);
    }
    start = stop;
  }
};

Chart.prototype.line = function (pen, trace, values, y, colour) {
  pen.strokeStyle = colour;
  pen.lineWidth = 1.2;
  pen.beginPath();
  let drawing = false;
  for (let i = 0; i < trace.length; i++) {
    const x = this.x(trace.c.position[i]);
    if (values[i] === null || x < LEFT || x > this.canvas.clientWidth - RIGHT) { drawing = false; continue; }
    if (drawing) pen.lineTo(x, y(values[i])); else pen.moveTo(x, y(values[i]));
    drawing = true;
  }
  pen.stroke();
  pen.lineWidth = 1;
};

Chart.prototype.switches = function (pen, colours, bottom) {
  pen.strokeStyle = colours.mark;
  const trace = this.traces[0];
  for (let i = 0; i < trace.length; i++) {
    const x = this.x(trace.c.position[i]);
    if (trace.isSwitch(i) && x >= LEFT && x <= this.canvas.clientWidth - RIGHT) this.stroke(pen, x, bottom - 7, x, bottom);
  }
};

Chart.prototype.waves = function (pen, colours, waves) {
  const middle = 144 + WAVE / 2;
  pen.strokeStyle = colours.line;
  this.stroke(pen, LEFT, middle, this.canvas.clientWidth - RIGHT, middle);
  waves.forEach(([name, amounts], number) => {
    const largest = amounts.reduce((most, a) => Math.max(most, Math.abs(a ?? 0)), 1e-9);
    // Steps that say nothing between steps that do: joined, so that the wave can be seen.
    const joined = amounts.slice();
    for (let i = 1; i < joined.length - 1; i++) if (joined[i] === null && amounts[i + 1] !== null) joined[i] = joined[i - 1];
    this.line(pen, this.traces[0], joined, (a) => middle - a / largest * (WAVE / 2 - 4), number ? colours.dim : colours.mark);
    const sign = amounts.some((a) => a < 0) ? "±" : "up to ";
    this.label(pen, `${name} ${sign}${largest.toFixed(2)}`, LEFT + 4 + number * 160, 144 + 9, colours.dim, colours.ground);
  });
};
