// What is shown and what is chosen. Knows no element of the page.

const FULL_ENTROPY = 1.5; // nats at which the shading is at its strongest
const MIXED = 0.99; // a concept token whose top weight is above this is as good as a token

function Trace(columns) {
  this.c = columns;
  this.length = columns.token.length;
  this.at = new Map(columns.position.map((position, index) => [position, index]));
  this.offsets = [];
  let text = "";
  for (let index = 0; index < this.length; index++) {
    this.offsets.push(text.length);
    text += this.text(index);
  }
  this.plain = text.toLowerCase();
  this.gated = Object.keys(columns.switch).length > 0;
}

// What the token adds to the text; a character of several tokens stands at the last of them.
Trace.prototype.text = function (index) { return this.c.pieces[index] ?? this.c.texts[this.c.token[index]]; };
Trace.prototype.isPart = function (index) { return this.c.pieces[index] === ""; };
Trace.prototype.latent = function (index) { return this.c.latent[index] === "1"; };
Trace.prototype.forced = function (index) { return this.c.forced[index] === "1"; };
Trace.prototype.valid = function (index) { return this.c.valid[index] === "1"; };
Trace.prototype.topWeight = function (index) {
  return this.latent(index) && this.c.entries[index].length ? this.c.entries[index][1] : 1;
};

// A switch that a gate reported, or, without one, a thinking step of another mode than the one before.
Trace.prototype.isSwitch = function (index) {
  if (this.gated) return this.c.switch[index] !== undefined;
  return index > 0 && this.c.phase[index] === "t" && this.c.phase[index - 1] === "t"
    && this.c.latent[index] !== this.c.latent[index - 1];
};

// Whether the other trace has, at the same position, another token or mode, or nothing.
Trace.prototype.differs = function (index, other) {
  if (!other) return false;
  const at = other.at.get(this.c.position[index]);
  return at === undefined || other.c.token[at] !== this.c.token[index]
    || other.c.latent[at] !== this.c.latent[index];
};

const FILTERS = {
  all: () => true,
  latent: (trace, i) => trace.latent(i),
  discrete: (trace, i) => !trace.latent(i),
  mixed: (trace, i) => trace.topWeight(i) < MIXED,
  forced: (trace, i) => trace.forced(i),
  switch: (trace, i) => trace.isSwitch(i),
  thinking: (trace, i) => trace.c.phase[i] === "t",
  answer: (trace, i) => trace.c.phase[i] === "a",
  differs: (trace, i, other) => trace.differs(i, other),
};

// The first and the last token of each place where the text stands; places may touch, not overlap.
Trace.prototype.find = function (wanted) {
  const found = [];
  const text = wanted.toLowerCase();
  if (!text) return found;
  let index = 0;
  for (let at = this.plain.indexOf(text); at >= 0; at = this.plain.indexOf(text, at + text.length)) {
    while (index + 1 < this.length && this.offsets[index + 1] <= at) index++;
    let last = index;
    while (last + 1 < this.length && this.offsets[last + 1] < at + text.length) last++;
    found.push([index, last]);
  }
  return found;
};

// What a method did to the logits at a step, in words.
const AMOUNTS = { edt: "temperature", hapo: "temperature", forking_temperature: "temperature", min_p: "keeps", top_h: "keeps", top_n_sigma: "keeps" };
const BAN = -1e9; // a bias below it bans

function editText(name, amount) {
  if (amount < BAN) return `${name} bans`;
  if (AMOUNTS[name]) return `${name} ${AMOUNTS[name]} ${+amount.toFixed(3)}`;
  return `${name} ${amount >= 0 ? "+" : ""}${amount.toFixed(3)}`;
}

function visible(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
}

function escaped(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
}
