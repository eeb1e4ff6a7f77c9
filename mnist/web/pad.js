// The drawing surface. It paints strokes and reads them at every frame. On the page it also sends drawings to be kept.
//
// It runs as the body of a function with `element` (the DOM element around pad.html), `NETWORK` (see mnist/html.py; null
// where the server reads instead) and `server` (the page's functions; null in a file without a server).

const PAUSE = 700;         // ms without a stroke, after which a drawing is finished and sent to be kept
const REST = 2;            // times the server's last answer's duration: the wait before the next question
const MOST_REST = 500;     // ms, the longest such wait
const AGAIN = 4000;        // ms until a drawing that was not kept is sent again
const WRITING = 1100;      // ms in which an example is written
const DISCARDING = "Discarding…";
const FIRST_EXAMPLES = [3, 8, 2, 5, 0, 9, 4, 6, 7, 1];              // in the order in which they are shown
const WELCOME = "The answer appears here while you draw.";

const find = (name) => element.querySelector(name);
const canvas = find(".ink"), context = canvas.getContext("2d");
const labels = find("fieldset.labels"), notice = find(".notice"), details = find(".inside");
const small = document.createElement("canvas");
small.width = small.height = SIDE;
const smallContext = small.getContext("2d");

let strokes = [];          // each a list of [x, y], 0 to 1
let cleared = null;        // what Undo brings back after Clear
let pointer = null;        // the id of the one that draws; others, such as a resting palm, are ignored
let key = newKey();
let version = 0;           // grows with each change of the drawing
let answered = 0, frame = 0, asking = false, lost = false, label = null, pauseTimer = null;
let last = null;           // the last answer
let example = 0, writing = false;                    // the number of the example on the paper; 0 without one
let examples = 0;          // shown so far
const waiting = new Map(); // drawings that the server has not confirmed, by key

function newKey() {        // crypto.randomUUID is missing on pages without https
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function call(name, message) {   // where the server fails, Gradio's promise has no value
  const reply = await server[name](message).catch(() => null);
  if (reply) return reply;
  const status = await fetch("config").then((response) => response.status, () => 0);
  return { lost: true, problem: status === 401 ? "The page needs its password again: log in in another tab, then continue here"
    : status === 200 ? "The server could not answer: reload the page if this happens again"
    : "The server does not answer: is it still running?" };
}

// drawing

function repaint() {
  const width = Math.max(1, Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)));
  if (canvas.width !== width) canvas.width = canvas.height = width;
  paintStrokes(context, strokes, width, getComputedStyle(canvas).color);
  find(".hint").hidden = strokes.length > 0;
  find(".clear").disabled = strokes.length === 0;
  find(".undo").disabled = strokes.length === 0 ? cleared === null : label !== null || example > 0;  // for all strokes
}

function picture() {       // base64 of a PNG file: opaque ink on a transparent background
  paintStrokes(smallContext, strokes, SIDE, "#000");
  return small.toDataURL("image/png").split(",")[1];
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

canvas.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button > 0) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  if (label !== null || example) fresh();            // the drawing is done: this stroke begins the next
  pointer = event.pointerId;
  clearTimeout(pauseTimer);
  strokes.push([place(event)]);
  changed();
});

canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const all = event.getCoalescedEvents?.() ?? [];
  strokes.at(-1).push(...(all.length ? all : [event]).map(place));
  changed();
});

for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
  canvas.addEventListener(end, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    settle();
    rest();
  });
}

// otherwise a phone takes a quick stroke for a swipe, and ignores taps while that swipe would last
canvas.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });

function changed() {
  version += 1;
  cleared = null;
  find(".kept").textContent = "";
  find(".discard").hidden = true;
  find(".verdict").setAttribute("aria-busy", "true");  // screen readers wait for the final answer
  if (frame) return;
  update();                // at once, so that the next frame shows it
  frame = requestAnimationFrame(() => {                // and the changes until then together
    frame = 0;
    if (answered !== version) update();
  });
}

function update() {
  repaint();
  if (!reader) return ask();
  show(strokes.length ? reader.readStrokes(strokes) : null);
  answered = version;
  settle();
}

function settle() {        // the answer is final once the pen is up
  if (pointer === null && !writing && answered === version) find(".verdict").setAttribute("aria-busy", "false");
}

function undo() {
  if (find(".undo").disabled || pointer !== null) return;
  if (!strokes.length) {
    ({ strokes, key, label } = cleared);
    changed();
  } else if (strokes.length === 1) {
    return fresh();        // not clear(): Undo once more would bring the stroke back
  } else {
    strokes.pop();
    changed();
  }
  rest();
}

function clear() {         // a drawing that is cleared before the pause is not kept
  if (pointer !== null || !strokes.length) return;
  const before = example ? null : { strokes, key, label };
  fresh();
  cleared = before;
  repaint();
}

function fresh() {         // an empty paper; the last drawing stays kept, or waits to be kept
  clearTimeout(pauseTimer);
  pauseTimer = null;
  strokes = [];
  cleared = null;
  example = 0;
  writing = false;
  key = newKey();
  version += 1;
  answered = version;
  label = null;
  show(null);
  find(".kept").textContent = "";
  find(".discard").hidden = true;
  settle();
  repaint();
}

function rest() {          // the pen is up: after a pause the drawing is kept
  if (!server) return;
  clearTimeout(pauseTimer);
  pauseTimer = setTimeout(keep, PAUSE);
  if (label === null) find(".kept").textContent = "Kept in a moment.";
  find(".discard").hidden = label !== null;
}

function showExample() {   // write a digit, stroke by stroke; it is not kept
  if (pointer !== null) return;
  if (pauseTimer !== null) keep();
  fresh();
  example = examples += 1;
  writing = true;
  const own = example, lines = EXAMPLES[FIRST_EXAMPLES[(own - 1) % 10]].map(smooth), count = lines.flat().length;
  const start = performance.now(), atOnce = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const write = () => {
    if (example !== own || pointer !== null) return;
    let left = Math.ceil(count * (atOnce ? 1 : Math.min(1, (performance.now() - start) / WRITING + 0.02)));
    writing = left < count;
    strokes = [];
    for (const line of lines) {
      if (left > 0) strokes.push(line.slice(0, left));
      left -= line.length;
    }
    changed();
    if (writing) requestAnimationFrame(write);
    else settle();
    if (!writing && server) find(".kept").textContent = "An example: it is not kept.";
  };
  write();
}

// another network: the page's was trained further

let renewing = false;

async function renew(digest) {
  if (!reader || renewing || !digest || digest === reader.network.digest) return;
  renewing = true;
  const network = await call("network", null);
  renewing = false;
  if (!network.values) return;
  if (reader.renew(network) && strokes.length) show(reader.readStrokes(strokes));
}

// answers

async function ask() {     // the server: one question at a time; the next one includes all changes made meanwhile
  if (asking) return;
  asking = true;
  while (answered !== version) {
    const now = version, asked = key, sent = performance.now();
    const answer = await call("recognise", { picture: picture() });
    lost = Boolean(answer.lost);
    answered = Math.max(answered, now);
    if (strokes.length && asked === key) show(answer);
    const pause = Math.min(MOST_REST, REST * (performance.now() - sent));
    await new Promise((go) => setTimeout(go, pause));
  }
  asking = false;
  settle();
}

function percent(share) {
  return (100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1) + " %";
}

function show(answer) {
  last = answer;
  const digit = answer?.digit ?? null, reason = answer?.problem ?? answer?.reason ?? "";
  find(".digit").textContent = digit ?? "?";
  find(".answer").classList.toggle("doubted", Boolean(reason));
  find(".words").textContent = !answer ? WELCOME : digit === null ? `${reason[0].toUpperCase()}${reason.slice(1)}.`
    : `${percent(answer.confidence)} sure` + (reason ? `, but do not trust it: ${reason}.` : ".");
  if (digit !== null) {                              // beside the large digit, which screen readers skip
    find(".words").prepend(Object.assign(document.createElement("span"), { className: "unseen", textContent: `${digit}, ` }));
  }
  element.querySelectorAll(".bars li").forEach((row, index) => {
    const share = digit === null ? 0 : answer.probabilities[index];
    row.classList.toggle("first", index === digit);
    row.querySelector(".bar").style.transform = `scaleX(${share})`;
    row.querySelector(".share").textContent = digit === null ? "" : percent(share);
  });
  labels.disabled = digit === null || example > 0;
  press();
  if (details.open) inside?.show(answer);
  canvas.dataset.answered = String(digit ?? "");   // read by the tests and the benchmark
}

function press() {         // show which label was chosen
  for (const button of labels.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(label !== null && Number(button.value) === label));
  }
}

// keeping

function keep() {
  clearTimeout(pauseTimer);
  pauseTimer = null;
  if (!server || !strokes.length || example) return;
  waiting.set(key, { drawing: key, picture: picture(), label, version });
  find(".kept").textContent = "Keeping…";
  send();
}

let sending = false, again = null;

async function send() {    // one drawing at a time, oldest first; confirmed drawings leave the list
  if (sending) return;
  sending = true;
  let problem = "";
  while (waiting.size && !problem) {
    const [first, item] = waiting.entries().next().value;
    const reply = await call(item.discarded ? "discard" : "keep", item);
    if (reply.problem) {
      problem = reply.problem;
      break;
    }
    if (waiting.get(first) === item) waiting.delete(first);
    renew(reply.network);
    if (reply.score) celebrate(reply.score, item.label === reply.digit && first === key);
    if (item.discarded && find(".kept").textContent === DISCARDING) find(".kept").textContent = "Discarded.";
    if (first === key && item.version === version) {  // otherwise it has changed, and is kept again
      find(".kept").textContent = !reply.id ? (reply.reason ? `Not kept: ${reply.reason}.` : "")
        : item.label === null ? `Kept as no. ${reply.id}.`
        : `Kept as no. ${reply.id}, labelled ${item.label}: ${reply.digit === item.label ? "right" : "read as " + reply.digit}. `
          + "Draw the next one.";
      find(".discard").hidden = !reply.id;
    }
  }
  sending = false;
  tell(problem);
  if (!reader && lost && !problem && strokes.length) {  // the server is back: ask again
    version += 1;
    ask();
  }
  clearTimeout(again);
  if (waiting.size) again = setTimeout(send, AGAIN);
}

function tell(problem) {
  notice.hidden = !problem;
  const count = [...waiting.values()].filter((item) => !item.discarded).length;
  notice.textContent = !problem ? "" : `${problem[0].toUpperCase()}${problem.slice(1)}.`.replace(/([.?!])\.$/, "$1")
    + (count ? ` ${count === 1 ? "One drawing is" : count + " drawings are"} not kept yet; `
      + "this page tries again while it stays open." : "");
  if (problem && waiting.has(key)) find(".kept").textContent = "Not kept yet.";
}

function name(digit) {
  if (!server || !strokes.length || labels.disabled) return;
  label = digit;
  repaint();
  press();
  keep();
}

function discard() {       // the drawing on the paper is not kept, or deleted where it was
  if (pointer !== null || !strokes.length) return;
  waiting.set(key, { drawing: key, discarded: true });
  fresh();
  canvas.focus({ preventScroll: true });             // the button is about to vanish
  find(".kept").textContent = DISCARDING;
  send();
}

function celebrate(score, right) {
  const { labelled, correct, text } = score;
  find(".score").hidden = !labelled;
  find(".score .bar").style.transform = `scaleX(${labelled ? correct / labelled : 0})`;
  find(".so-far").textContent = text;
  if (!right || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  find(".digit").animate([{ transform: "none" }, { transform: "translateY(-0.12em) scale(1.15)", color: "var(--blue)" },
    { transform: "translateY(0.02em) scale(0.98)" }, { transform: "none" }], { duration: 500, easing: "ease-out" });
}

window.addEventListener("beforeunload", (event) => {
  if (pauseTimer !== null) keep();
  if (waiting.size) event.preventDefault();  // the browser asks before it loses drawings
});

// the page

for (let digit = 0; digit < 10; digit += 1) {
  const row = document.createElement("li");
  row.innerHTML = `<span>${digit}</span><span class="track"><span class="bar"></span></span><span class="share"></span>`;
  find(".bars").append(row);
  const button = document.createElement("button");
  button.type = "button";
  button.value = button.textContent = String(digit);
  button.setAttribute("aria-label", `It was a ${digit}`);
  button.addEventListener("click", () => name(digit));
  labels.querySelector("div").append(button);
}
find(".undo").addEventListener("click", undo);
find(".clear").addEventListener("click", clear);
find(".discard").addEventListener("click", discard);
find(".example").addEventListener("click", showExample);
canvas.addEventListener("keydown", (event) => {
  if (event.altKey || event.metaKey && event.key !== "z") return;
  const action = event.key === "Backspace" || (event.ctrlKey || event.metaKey) && event.key === "z" ? undo
    : event.key === "Escape" ? clear
    : !event.ctrlKey && /^[0-9]$/.test(event.key) ? () => name(Number(event.key)) : null;
  if (!action) return;
  event.preventDefault();
  action();
});

let reader = null, inside = null;
try {
  reader = NETWORK && new DigitReader(NETWORK);
} catch (error) {          // then the server reads, where there is one
  console.warn(error);
}
if (!reader && !server) {
  notice.textContent = "This page is damaged and cannot read digits: export it again.";
  notice.hidden = false;
  canvas.style.pointerEvents = "none";
}

function colours() {       // as they are now, in light or in dark
  const style = getComputedStyle(find(".pad"));
  const parts = (name) => {
    smallContext.fillStyle = style.getPropertyValue(name);
    const [red, green, blue] = smallContext.fillStyle.match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
    return [red, green, blue];
  };
  return { ground: parts("--ground"), text: parts("--text"), blue: parts("--blue"), orange: parts("--orange") };
}

details.hidden = !reader;
if (reader) {
  details.open = matchMedia("(min-width: 40rem)").matches;         // on a small phone only when asked for
  inside = new InsideView(find(".stages"), find(".overlay"), find(".about"), reader, colours());
  details.addEventListener("toggle", () => {
    inside.answer = last;
    inside.layOut();
  });
}
for (const part of element.querySelectorAll(".with-labels")) part.hidden = !server;
find(".score").hidden = true;
new ResizeObserver(() => {
  repaint();
  if (details.open) inside?.layOut();
}).observe(find(".pad"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(() => {
  repaint();
  inside?.recolour(colours());
}));
show(null);
repaint();
function greet() {
  call("state", null).then((state) => {
    renew(state.network);
    if (!waiting.size) tell(state.problem);
    if (state.score) celebrate(state.score, false);
  });
}

if (server) new IntersectionObserver((seen) => seen.at(-1).isIntersecting && greet()).observe(find(".pad"));  // on each visit
