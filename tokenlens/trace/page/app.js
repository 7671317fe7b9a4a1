// Wires the page together: choices, keys, the hover card.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const traces = data.traces.map((columns) => new Trace(columns));
const panes = new Panes($("panes"));
const chart = new Chart($("chart"), (position, pinned) => pickPosition(position, pinned));
const state = { sides: [null, null], colour: "entropy", filter: "all", picked: null, pinned: false, hits: [], hit: -1 };

function passes(side, index) {
  return FILTERS[state.filter](state.sides[side], index, state.sides[1 - side]);
}

function show() {
  const second = $("second").value;
  state.sides = [traces[+$("first").value] ?? null, second === "" ? null : traces[+second]];
  if (!state.sides[0]) return;
  const started = performance.now();
  panes.show(...state.sides);
  panes.colour(state.colour);
  chart.show(state.sides.filter(Boolean));
  // Says what the two have in common where the two end at different positions, too.
  $("filter").querySelector('[value="differs"]').disabled = !state.sides[1];
  state.picked = null;
  state.pinned = false;
  $("card").hidden = true;
  filter();
  search();
  document.body.dataset.ms = Math.round(performance.now() - started);
}

function filter() {
  if (state.filter === "differs" && !state.sides[1]) $("filter").value = "all";
  state.filter = $("filter").value;
  state.sides.forEach((trace, side) => trace && panes.mark("off", side, (i) => !passes(side, i)));
}

function search() {
  const wanted = $("search").value;
  state.hits = [];
  state.hit = -1;
  state.sides.forEach((trace, side) => {
    if (!trace) return;
    const found = trace.find(wanted);
    const inside = new Set();
    for (const [first, last] of found) for (let i = first; i <= last; i++) inside.add(i);
    panes.mark("hit", side, (i) => inside.has(i));
    for (const [first] of found) state.hits.push([side, first]);
  });
  tellMatches();
}

function tellMatches() {
  const count = state.hits.length;
  $("matches").textContent = !$("search").value ? "" : count ? `${Math.max(state.hit + 1, 0)} of ${count}` : "not found";
}

function nextMatch(step) {
  if (!state.hits.length) return;
  state.hit = state.hit < 0 ? (step > 0 ? 0 : state.hits.length - 1) : (state.hit + step + state.hits.length) % state.hits.length;
  pick(...state.hits[state.hit], true, true);
  tellMatches();
}

// Choose a token; in the other trace the one at the same position is chosen with it.
function pick(side, index, pinned, scroll) {
  for (const span of panes.element.querySelectorAll(".on")) span.classList.remove("on");
  const trace = state.sides[side];
  if (!trace || index < 0 || index >= trace.length) return;
  state.picked = [side, index];
  state.pinned = pinned;
  const position = trace.c.position[index];
  panes.spans[side][index].classList.add("on");
  const other = state.sides[1 - side];
  const beside = other ? other.at.get(position) : undefined;
  if (beside !== undefined) panes.spans[1 - side][beside].classList.add("on");
  chart.picked = position;
  if (pinned) chart.keepInView(position);
  chart.draw();
  if (scroll) panes.spans[side][index].scrollIntoView({ block: "center" });
  showCard(side, index);
}

function pickPosition(position, pinned) {
  if (state.pinned && !pinned) return;
  const side = state.sides[0] && state.sides[0].at.has(position) ? 0 : 1;
  const trace = state.sides[side];
  const index = trace ? trace.at.get(position) : undefined;
  if (index !== undefined) pick(side, index, pinned, true);
}

function release() {
  state.picked = chart.picked = null;
  state.pinned = false;
  for (const span of panes.element.querySelectorAll(".on")) span.classList.remove("on");
  $("card").hidden = true;
  chart.draw();
}

function cardHtml(trace, index) {
  const c = trace.c;
  const phase = { p: "prompt", t: "thinking", a: "answer" }[c.phase[index]];
  const facts = [`position ${c.position[index]}`, `id ${c.token[index]}`, phase, trace.latent(index) ? "latent" : "discrete"];
  if (trace.forced(index)) facts.push("forced");
  if (!trace.valid(index)) facts.push("logits not usable");
  if (c.switch[index]) facts.push(`switch ${c.switch[index].replace("_", " ")}`);
  const edits = Object.entries(c.edits).filter(([, amounts]) => amounts[index] !== null)
    .map(([name, amounts]) => editText(name, amounts[index]));
  const bars = [];
  for (let i = 0; i < c.entries[index].length; i += 2) {
    const [token, weight] = [c.entries[index][i], c.entries[index][i + 1]];
    bars.push(`<div class="entry"><span class="name">${escaped(visible(c.texts[token]))}</span><span class="track">`
      + `<div class="fill" style="width:${(weight * 100).toFixed(1)}%"></div></span><span class="value">${weight.toFixed(3)}</span></div>`);
  }
  return `<h3>${escaped(visible(trace.text(index) || trace.c.texts[trace.c.token[index]]))}</h3><div class="facts">${escaped(facts.join(" · "))}<br>`
    + `entropy ${c.entropy[index].toFixed(3)} nats · max probability ${c.top[index].toFixed(3)}`
    + (edits.length ? `<br>${escaped(edits.join(" · "))}` : "") + `</div>${bars.join("")}`;
}

function showCard(side, index) {
  const card = $("card");
  card.innerHTML = cardHtml(state.sides[side], index);
  card.hidden = false;
  const token = panes.spans[side][index].getBoundingClientRect();
  const left = Math.min(Math.max(8, token.left), window.innerWidth - card.offsetWidth - 8);
  const below = token.bottom + 8 + card.offsetHeight < window.innerHeight;
  card.style.left = `${left}px`;
  card.style.top = `${Math.max(8, below ? token.bottom + 8 : token.top - card.offsetHeight - 8)}px`;
}

// Moves by tokens that pass the filter.
function move(step, far) {
  const [side, from] = state.picked ?? [0, step > 0 ? -1 : state.sides[0].length];
  const trace = state.sides[side];
  let left = far ? 10 : 1;
  let found = -1;
  for (let i = from + step; i >= 0 && i < trace.length && left; i += step) {
    if (passes(side, i)) { found = i; left--; }
  }
  if (found >= 0) pick(side, found, true, true);
}

function toEnd(step) {
  const trace = state.sides[0];
  let index = step > 0 ? trace.length - 1 : 0;
  while (index >= 0 && index < trace.length && !passes(0, index)) index -= step;
  if (index >= 0 && index < trace.length) pick(0, index, true, true);
}

function nextSwitch(step) {
  const [side, from] = state.picked ?? [0, step > 0 ? -1 : state.sides[0].length];
  const trace = state.sides[side];
  for (let i = from + step; i >= 0 && i < trace.length; i += step) if (trace.isSwitch(i)) return pick(side, i, true, true);
}

function cycle(select) {
  const options = [...select.options].filter((option) => !option.disabled);
  const at = options.findIndex((option) => option.value === select.value);
  select.value = options[(at + 1) % options.length].value;
  select.dispatchEvent(new Event("change"));
}

function legend() {
  const swatch = (variable, label) => `<span class="swatch" style="background:${variable}">${label}</span>`;
  $("legend").innerHTML = {
    entropy: [0, 0.5, 1, 1.5].map((h) => swatch(`rgb(var(--hot) / ${h / FULL_ENTROPY * 0.75})`, h)).join("") + " nats",
    mode: swatch("rgb(var(--latent) / .38)", "latent") + swatch("rgb(var(--discrete) / .22)", "discrete"),
    weight: [1, 0.8, 0.6, 0.4].map((w) => swatch(`rgb(var(--latent) / ${(1 - w) * 1.4})`, w)).join("") + " top weight",
  }[state.colour];
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  chart.draw();
}

const KEYS = {
  ArrowRight: () => move(1), ArrowLeft: () => move(-1), ArrowDown: () => move(1, true), ArrowUp: () => move(-1, true),
  Home: () => toEnd(-1), End: () => toEnd(1), s: () => nextSwitch(1), S: () => nextSwitch(-1),
  n: () => nextMatch(1), N: () => nextMatch(-1), "/": () => $("search").focus(),
  c: () => cycle($("colour")), f: () => cycle($("filter")), Escape: release,
  "+": () => chart.zoom(0.7), "-": () => chart.zoom(1.4), 0: () => chart.zoom(0),
  d: () => $("theme").click(), "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.target === $("search")) {
    if (event.key === "Enter") nextMatch(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.target.tagName === "SELECT" && event.key.startsWith("Arrow")) return;
  if (KEYS[event.key] && state.sides[0]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

$("panes").addEventListener("mouseover", (event) => {
  const token = event.target.closest(".t");
  if (token && !state.pinned) pick(+token.dataset.s, +token.dataset.i, false, false);
});
$("panes").addEventListener("mouseleave", () => { if (!state.pinned) release(); });
$("panes").addEventListener("click", (event) => {
  const token = event.target.closest(".t");
  if (token) pick(+token.dataset.s, +token.dataset.i, true, false);
});
$("panes").addEventListener("scroll", () => { if (state.picked) showCard(...state.picked); }, { passive: true });
for (const id of ["first", "second"]) $(id).addEventListener("change", show);
$("filter").addEventListener("change", filter);
$("search").addEventListener("input", search);
$("colour").addEventListener("change", () => { state.colour = $("colour").value; panes.colour(state.colour); legend(); });
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
$("keys").addEventListener("click", () => $("help").showModal());

$("title").textContent = data.title;
$("fault").textContent = data.fault;
$("fault").hidden = !data.fault;
traces.forEach((trace, index) => {
  const name = `${index} · ${trace.c.engine} · ${trace.length} · ${trace.c.prompt.slice(0, 30)}`;
  for (const id of ["first", "second"]) $(id).add(new Option(name, index));
});
$("second").add(new Option("nothing", ""), 0);
$("second").value = "";
theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
legend();
show();
document.body.dataset.ready = "yes";
