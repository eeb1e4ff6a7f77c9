// The drawing surface. It paints strokes, asks for answers while people draw, and sends finished drawings to be kept.
// Gradio runs this with `element` (the DOM element of pad.html) and `server` (the page's functions).

const SIDE = 280;          // pixels of the picture that is sent
const BRUSH = 20;          // pixels of it: about the stroke width of MNIST, for a digit that fills the paper
const PAUSE = 700;         // ms without a stroke, after which a drawing is finished and sent to be kept
const REST = 2;            // times the last answer's duration: the wait before the next question, so that none pile up
const MOST_REST = 500;     // ms, the longest such wait
const AGAIN = 4000;        // ms until a drawing that was not kept is sent again

const find = (name) => element.querySelector(name);
const canvas = find("canvas"), context = canvas.getContext("2d");
const labels = find(".labels"), notice = find(".notice");

let strokes = [];          // each a list of [x, y], 0 to 1
let pointer = null;        // the id of the one that draws; others, such as a resting palm, are ignored
let key = newKey();
let version = 0;           // grows with each change of the drawing
let answered = 0, asking = false, lost = false, label = null, pauseTimer = null;
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
  return { problem: status === 401 ? "The page needs its password again: log in in another tab, then continue here"
    : status === 200 ? "The server could not answer: reload the page if this happens again"
    : "The server does not answer: is it still running?" };
}

// drawing

function paint(target, width) {
  target.clearRect(0, 0, width, width);
  target.lineWidth = BRUSH * width / SIDE;
  target.lineCap = target.lineJoin = "round";
  for (const stroke of strokes) {
    target.beginPath();
    target.moveTo(stroke[0][0] * width, stroke[0][1] * width);
    target.lineTo(stroke[0][0] * width + 0.01, stroke[0][1] * width);  // otherwise a dot leaves no ink
    for (const [x, y] of stroke) target.lineTo(x * width, y * width);
    target.stroke();
  }
}

function repaint() {
  const width = Math.max(1, Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)));
  if (canvas.width !== width) canvas.width = canvas.height = width;
  paint(context, width);
  find(".hint").hidden = strokes.length > 0;
  find(".clear").disabled = strokes.length === 0;
  find(".undo").disabled = strokes.length === 0 || label !== null;  // a label is for the whole drawing
}

function picture() {       // base64 of a PNG file: opaque ink on a transparent background
  const copy = document.createElement("canvas");
  copy.width = copy.height = SIDE;
  paint(copy.getContext("2d"), SIDE);
  return copy.toDataURL("image/png").split(",")[1];
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
  if (label !== null) fresh();           // the drawing has its label: this stroke begins the next
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

for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    pauseTimer = setTimeout(keep, PAUSE);
  });
}

// otherwise a phone takes a quick stroke for a swipe, and ignores taps while that swipe would last
canvas.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });

function changed() {
  version += 1;
  find(".kept").textContent = "";
  repaint();
  ask();
}

function undo() {
  if (find(".undo").disabled || pointer !== null) return;
  if (strokes.length === 1) return clear();
  strokes.pop();
  clearTimeout(pauseTimer);
  pauseTimer = setTimeout(keep, PAUSE);
  changed();
}

function clear() {         // a drawing that is cleared before the pause is not kept
  if (pointer !== null) return;
  clearTimeout(pauseTimer);
  pauseTimer = null;
  fresh();
}

function fresh() {         // an empty paper; the last drawing stays kept, or waits to be kept
  strokes = [];
  key = newKey();
  version += 1;
  answered = version;
  label = null;
  show(null);
  find(".kept").textContent = "";
  repaint();
}

// answers

async function ask() {     // one question at a time; the next one includes all changes made meanwhile
  if (asking) return;
  asking = true;
  find(".verdict").setAttribute("aria-busy", "true");  // screen readers wait for the final answer
  while (answered !== version) {
    const now = version, asked = key, sent = performance.now();
    const answer = await call("recognise", { picture: picture() });
    lost = Boolean(answer.problem);
    answered = Math.max(answered, now);
    if (strokes.length && asked === key) show(answer);
    const rest = Math.min(MOST_REST, REST * (performance.now() - sent));
    await new Promise((go) => setTimeout(go, rest));
  }
  asking = false;
  find(".verdict").setAttribute("aria-busy", "false");
}

function percent(share) {
  return (100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1) + " %";
}

function show(answer) {
  const digit = answer?.digit ?? null, reason = answer?.problem ?? answer?.reason ?? "";
  find(".digit").textContent = digit ?? "?";
  find(".answer").classList.toggle("doubted", Boolean(reason));
  find(".words").textContent = !answer ? "The answer appears here while you draw."
    : digit === null ? reason
    : `${digit}, ${percent(answer.confidence)} sure` + (reason ? `, but do not trust it: ${reason}` : "");
  find(".seen").hidden = !answer?.seen;
  if (answer?.seen) find(".seen").src = answer.seen;
  element.querySelectorAll(".bars li").forEach((row, index) => {
    const share = digit === null ? 0 : answer.probabilities[index];
    row.querySelector(".bar").style.width = `${100 * share}%`;
    row.querySelector(".share").textContent = digit === null ? "" : percent(share);
  });
  labels.disabled = digit === null;
  for (const button of labels.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(label !== null && Number(button.value) === label));
  }
  canvas.dataset.answered = String(digit ?? "");   // read by the tests and the benchmark
}

// keeping

function keep() {
  clearTimeout(pauseTimer);
  pauseTimer = null;
  if (!strokes.length) return;
  waiting.set(key, { drawing: key, picture: picture(), label });
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
    const reply = await call("keep", item);
    if (reply.problem) {
      problem = reply.problem;
      break;
    }
    if (waiting.get(first) === item) waiting.delete(first);
    if (reply.score) find(".score").textContent = reply.score;
    if (first === key) {
      find(".kept").textContent = !reply.id ? (reply.reason ? `Not kept: ${reply.reason}.` : "")
        : item.label === null ? `Kept as no. ${reply.id}.`
        : `Kept as no. ${reply.id}, labelled ${item.label}: ${reply.digit === item.label ? "right" : "read as " + reply.digit}. `
          + "Draw the next one.";
    }
  }
  sending = false;
  tell(problem);
  if (lost && !problem && strokes.length) {            // the server is back: ask again
    version += 1;
    ask();
  }
  clearTimeout(again);
  if (waiting.size) again = setTimeout(send, AGAIN);
}

function tell(problem) {
  notice.hidden = !problem;
  const count = waiting.size;
  notice.textContent = !problem ? "" : `${problem[0].toUpperCase()}${problem.slice(1)}.`.replace(/([.?!])\.$/, "$1")
    + (count ? ` ${count === 1 ? "One drawing is" : count + " drawings are"} not kept yet; `
      + "this page tries again while it stays open." : "");
  if (problem && waiting.has(key)) find(".kept").textContent = "Not kept yet.";
}

function name(digit) {
  if (!strokes.length || labels.disabled) return;
  label = digit;
  repaint();
  for (const button of labels.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.value) === digit));
  }
  keep();
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
canvas.addEventListener("keydown", (event) => {
  if (event.altKey || event.metaKey && event.key !== "z") return;
  const action = event.key === "Backspace" || (event.ctrlKey || event.metaKey) && event.key === "z" ? undo
    : event.key === "Escape" ? clear
    : !event.ctrlKey && /^[0-9]$/.test(event.key) ? () => name(Number(event.key)) : null;
  if (!action) return;
  event.preventDefault();
  action();
});
new ResizeObserver(repaint).observe(canvas);
show(null);
repaint();
call("state", null).then((state) => {
  tell(state.problem);
  find(".score").textContent = state.score ?? "";
});
