// Shows what each layer of the network computes, and what it looks at on the paper. It draws into two elements:
//
//   const inside = new InsideView(stages, overlay, about, reader, colours);
//   inside.show(answer);      // after reader.read(...), or null without a drawing
//
// Pointing at a map shows its filter, and on the paper where it responds. Pointing at a digit's probability shows which
// ink raises its logit and which lowers it: the ink times the gradient, whose absolute value mnist.evaluate.saliency gives.
// The arrow keys point as well.

const MAP = [38, 64];        // CSS pixels of a map's side, at least and at most
const GAP = 4;               // between maps
const ROWS = 5;              // maps below each other, where the number allows it
const LEVELS = 256;

class InsideView {
  constructor(stages, overlay, about, reader, colours) {
    Object.assign(this, { overlay, about, reader, answer: null, chosen: null, pointing: about.textContent });
    this.parent = stages;
    this.stages = this.choose().map((stage, number) => this.build(stages, stage, number));
    stages.addEventListener("pointermove", (event) => this.point(event));
    stages.addEventListener("pointerdown", (event) => this.point(event));
    stages.addEventListener("pointerleave", (event) => {  // a finger leaves at once
      if (event.pointerType === "mouse") this.choosePart(null);
    });
    stages.addEventListener("keydown", (event) => this.step(event));
    this.take(colours);
    this.layOut();
  }

  // The layers worth a look: what ReLU gives, pooling behind it, and linear layers.
  choose() {
    const { layers } = this.reader, stages = [{ name: "28 × 28 pixels", layer: null, shape: [1, MNIST_SIDE, MNIST_SIDE] }];
    let before = null;         // the last convolution
    layers.forEach((layer, at) => {
      if (layer.kind === "Conv2d") before = layer;
      const last = at === layers.length - 1, next = layers[at + 1];
      const [count, rows] = layer.shape;
      if (layer.kind === "ReLU" && layer.shape.length === 3) {
        stages.push({ name: `${count} filters, ${rows} × ${rows}`, layer, shape: layer.shape, filters: before, at });
      } else if (layer.kind === "MaxPool2d" && layers[at - 1].kind === "ReLU") {
        stages.push({ name: `pooled to ${rows} × ${rows}`, layer, shape: layer.shape, filters: before, at });
      } else if (layer.kind === "Linear" && !last) {
        stages.push({ name: `${count} numbers`, layer: next?.kind === "ReLU" ? next : layer, shape: [count, 1, 1], at });
      }
    });
    return [...stages, { name: "10 probabilities", layer: null, shape: [10, 1, 1], answers: true }];
  }

  build(parent, stage, number) {
    if (number) {
      parent.insertAdjacentHTML("beforeend",
        '<svg class="flow" width="14" height="24" viewBox="0 0 14 24" aria-hidden="true"><path d="M2 3l9 9-9 9" '
        + 'fill="none" stroke="currentColor" stroke-width="2.5" stroke-linecap="round" stroke-linejoin="round"/></svg>');
    }
    const [count, height] = stage.shape;
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    figure.className = "stage";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", stage.name);
    figure.append(canvas, Object.assign(document.createElement("figcaption"), { textContent: stage.name }));
    parent.append(figure);
    stage.canvas = canvas;
    stage.rows = stage.answers || count > 1 && height === 1 ? 10 : count === 1 ? 1 : count % ROWS ? 4 : ROWS;
    stage.columns = Math.ceil(count / stage.rows);
    stage.buffer = document.createElement("canvas");
    [stage.buffer.width, stage.buffer.height] = [stage.shape[2], count * height];
    return stage;
  }

  // Maps as large as the width allows; all stages are as high.
  layOut() {
    const room = this.parent.clientWidth - 8, between = (this.stages.length - 1) * (14 + 2 * 12);
    const wide = (map) => this.stages.reduce((sum, stage) => sum + this.measure(stage, map), between);
    let map = MAP[1];
    while (map > MAP[0] && wide(map) > room) map -= 1;
    for (const stage of this.stages) {
      this.measure(stage, map);
      stage.canvas.style.width = `${stage.width}px`;
      stage.canvas.style.height = `${stage.high}px`;
    }
    this.show(this.answer);
  }

  measure(stage, map) {
    const [count, height] = stage.shape, whole = ROWS * (map + GAP) - GAP, numbers = height === 1;
    stage.gap = numbers ? 2 : GAP;
    stage.side = count === 1 ? whole * 0.6 : (whole + stage.gap) / stage.rows - stage.gap;
    stage.width = stage.answers ? 2 * map : stage.columns * (stage.side + stage.gap) - stage.gap;
    stage.high = stage.rows * (stage.side + stage.gap) - stage.gap;
    return Math.max(stage.width, stage.canvas.parentElement.querySelector("figcaption").offsetWidth);
  }

  // colours are { ground, blue, orange, text }, each [red, green, blue]; they change with light and dark
  recolour(colours) {
    this.take(colours);
    this.show(this.answer);
  }

  take(colours) {
    this.colours = colours;
    const { ground, text, blue, orange } = colours, none = mixed(ground, text, 0.06);
    const shade = (ink) => Uint32Array.from({ length: LEVELS }, (_, level) => {
      const [red, green, one] = mixed(none, ink, (level / (LEVELS - 1)) ** 0.7).map(Math.round);
      return (255 << 24 | one << 16 | green << 8 | red) >>> 0;  // as a canvas stores a pixel
    });
    this.shades = { positive: shade(blue), negative: shade(orange), grey: shade(text) };
  }

  show(answer) {
    this.answer = answer;
    if (!answer) for (const stage of this.stages) stage.most = 1e-6;  // the largest value so far: its colours' scale
    for (const stage of this.stages) {
      if (stage.answers) this.drawAnswers(stage);
      else this.drawMaps(stage);
    }
    this.drawOverlay();
  }

  values(stage) {
    if (!this.answer?.picture || this.answer.digit === null) return null;
    return stage.layer ? stage.layer.output : Float32Array.from(this.answer.picture, (level) => level / 255);
  }

  drawMaps(stage) {
    const { canvas, buffer, side, gap, rows } = stage, [count, height, width] = stage.shape;
    const scale = window.devicePixelRatio || 1, context = blank(canvas, stage.width, stage.high, scale);
    const values = this.values(stage), pixels = new ImageData(width, count * height);
    if (values) for (const value of values) stage.most = Math.max(stage.most, Math.abs(value));
    const words = new Uint32Array(pixels.data.buffer), { positive, negative, grey } = this.shades;
    const above = stage.layer ? positive : grey, factor = (LEVELS - 1) / stage.most;
    for (let at = 0; at < words.length; at += 1) {
      const value = values ? values[at] * factor : 0;
      words[at] = value < 0 ? negative[-value | 0] : above[value | 0];
    }
    buffer.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    for (let map = 0; map < count; map += 1) {
      const x = Math.floor(map / rows) * (side + gap), y = (map % rows) * (side + gap);
      context.drawImage(buffer, 0, map * height, width, height, x, y, side, side);
      if (this.chosen?.stage === stage && this.chosen.part === map) this.outline(context, x, y, side, side);
    }
  }

  drawAnswers(stage) {
    const { canvas, side, gap, width } = stage, { text, blue, ground } = this.colours;
    const context = blank(canvas, width, stage.high, window.devicePixelRatio || 1);
    context.textBaseline = "middle";
    for (let digit = 0; digit < 10; digit += 1) {
      const y = digit * (side + gap), share = this.answer && this.answer.digit !== null ? this.answer.probabilities[digit] : 0;
      const best = this.answer?.digit === digit;
      context.font = `${best ? 700 : 400} 15px system-ui, sans-serif`;
      context.fillStyle = css(text);
      context.fillText(String(digit), 2, y + side / 2 + 1);
      context.fillStyle = css(mixed(ground, text, 0.1));
      context.fillRect(18, y + 3, width - 20, side - 6);
      context.fillStyle = css(blue);
      context.fillRect(18, y + 3, (width - 20) * share, side - 6);
      if (this.chosen?.stage === stage && this.chosen.part === digit) this.outline(context, 0, y, width, side);
    }
  }

  outline(context, x, y, width, height) {
    context.strokeStyle = css(this.colours.text);
    context.lineWidth = 2;
    context.strokeRect(x + 1, y + 1, width - 2, height - 2);
  }

  // pointing

  point(event) {
    const stage = this.stages.find(({ canvas }) => canvas === event.target);
    if (!stage) return this.choosePart(null);
    const box = stage.canvas.getBoundingClientRect();
    const column = stage.answers ? 0 : Math.floor((event.clientX - box.left) / (stage.side + stage.gap));
    const row = Math.floor((event.clientY - box.top) / (stage.side + stage.gap));
    const part = column * stage.rows + row;
    const inside = row >= 0 && row < stage.rows && column >= 0 && part < stage.shape[0];
    this.choosePart(inside ? { stage, part } : null);
  }

  step(event) {                // the arrow keys, through the parts of a stage and on to the next one
    const moves = { ArrowUp: -1, ArrowDown: 1, ArrowLeft: -(this.chosen?.stage.rows ?? 0),
      ArrowRight: this.chosen?.stage.rows ?? 0 };
    if (event.key === "Escape") this.choosePart(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    let { stage, part } = this.chosen ?? { stage: this.stages[1], part: -moves[event.key] };
    part += moves[event.key];
    const number = this.stages.indexOf(stage);
    if (part < 0) {
      stage = this.stages[Math.max(0, number - 1)];
      part = stage.shape[0] - 1;
    } else if (part >= stage.shape[0]) {
      stage = this.stages[Math.min(this.stages.length - 1, number + 1)];
      part = 0;
    }
    stage.canvas.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.choosePart({ stage, part });
  }

  choosePart(chosen) {
    if (chosen?.stage === this.chosen?.stage && chosen?.part === this.chosen?.part) return;
    this.chosen = chosen;
    this.describe();
    this.show(this.answer);
  }

  describe() {
    const { about } = this, { stage, part } = this.chosen ?? {};
    about.textContent = !stage ? this.pointing
      : stage.answers ? `Blue ink speaks for ${part}, orange ink against it: the ink times the gradient of the logit.`
      : stage.filters?.channels === 1 ? `Filter ${part}. The paper shows where it responds, the small picture what it `
        + "looks for: ink where it is blue, paper where it is orange."
      : stage.filters ? `Filter ${part}. The paper shows where it responds, the small pictures what it looks for in each `
        + "map before it: much where they are blue, little where they are orange."
      : stage.layer ? `Number ${part} of ${stage.shape[0]}, made of all maps before it.`
      : "The drawing as the network gets it: as large, as thick and as central as MNIST's digits.";
    if (stage?.filters) about.prepend(this.filterPicture(stage.filters, part));
  }

  filterPicture({ weight, kernel, channels }, part) {
    const side = channels > 1 ? 5 : 9, canvas = document.createElement("canvas"), { ground, blue, orange } = this.colours;
    const own = weight.subarray(part * channels * kernel * kernel, (part + 1) * channels * kernel * kernel);
    const most = own.reduce((highest, value) => Math.max(highest, Math.abs(value)), 1e-6);
    canvas.className = "filter";
    const context = blank(canvas, channels * (kernel * side + 3) - 3, kernel * side, window.devicePixelRatio || 1);
    canvas.style.width = `${channels * (kernel * side + 3) - 3}px`;
    canvas.style.height = `${kernel * side}px`;
    own.forEach((value, at) => {
      const channel = Math.floor(at / kernel ** 2), row = Math.floor(at / kernel) % kernel, column = at % kernel;
      context.fillStyle = css(mixed(ground, value < 0 ? orange : blue, Math.abs(value) / most));
      context.fillRect(channel * (kernel * side + 3) + column * side, row * side, side, side);
    });
    return canvas;
  }

  // on the paper: where a map responds, or which ink speaks for a digit

  drawOverlay() {
    const { overlay, chosen, answer } = this, sheet = overlay.parentElement.classList;
    const shown = Boolean(chosen && answer?.frame);
    if (!shown && !sheet.contains("faint")) return;     // as in most frames: it is empty already
    const side = overlay.clientWidth, context = blank(overlay, side, side, window.devicePixelRatio || 1);
    sheet.toggle("faint", shown);                       // so that the colours stand out
    if (!shown) return;
    const { stage, part } = chosen, { left, top, scale } = answer.frame, unit = side / SIDE;
    const patch = (x, y, length, colour, strength) => {
      context.fillStyle = css(colour, strength);
      context.fillRect((left + x * scale) * unit, (top + y * scale) * unit, length * scale * unit, length * scale * unit);
    };
    if (stage.answers) {
      const gradient = this.reader.gradient(part).map((value, at) => value * answer.picture[at] / 255);
      const most = gradient.reduce((highest, value) => Math.max(highest, Math.abs(value)), 1e-9);
      gradient.forEach((value, at) => {
        if (!value) return;
        patch(at % MNIST_SIDE, Math.floor(at / MNIST_SIDE), 1, value < 0 ? this.colours.orange : this.colours.blue,
          Math.min(1, 0.15 + 0.85 * Math.abs(value) / most));
      });
    } else if (stage.filters) {
      const { start, step } = this.lookedAt(stage.at), [, height, width] = stage.shape;
      for (let at = 0; at < height * width; at += 1) {
        const value = stage.layer.output[part * height * width + at] / stage.most;
        if (value > 0.02) patch(start + (at % width) * step, start + Math.floor(at / width) * step, step, this.colours.blue,
          0.75 * Math.min(1, value));
      }
    }
  }

  // Where the cells of a layer lie in the 28 × 28 pixels: the corner of the middle of what the first one sees, and the
  // distance between two.
  lookedAt(last) {
    let centre = 0.5, step = 1;
    for (const { kernel, stride, padding } of this.reader.layers.slice(0, last + 1).filter((layer) => layer.kernel)) {
      centre += ((kernel - 1) / 2 - (padding ?? 0)) * step;
      step *= stride;
    }
    return { start: centre - step / 2, step };
  }
}

function blank(canvas, width, height, scale) {
  const context = canvas.getContext("2d"), size = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

function mixed(one, other, share) {
  return one.map((value, band) => value + (other[band] - value) * share);
}

function css(colour, opacity = 1) {
  return `rgb(${colour.map(Math.round).join(" ")} / ${opacity})`;
}
