// Reads a drawn digit in the browser and gives what mnist/predict.py gives. It needs no other file.
//
//   const reader = new DigitReader(network);      // what network_of in mnist/html.py returns
//   reader.readStrokes(strokes);                  // each a list of [x, y], 0 to 1
//   reader.read(ink, width, height);              // levels of ink, 0 to 255, row by row
//   reader.answer(picture);                       // 28 × 28 grey levels in MNIST's format, ink 255
//
// An answer holds digit (null where the drawing is not exactly one digit), confidence, probabilities, trusted,
// reason, and picture. After an answer, reader.layers[n].output holds what layer n has computed.

const MNIST_SIDE = 28;
const SIDE = 280;          // pixels of a drawing as it is read
const BRUSH = 20;          // pixels of it: about the stroke width of MNIST, for a digit that fills the paper

// layers: each computes `output` from an input, and the gradient of its input from the gradient of its output

class Conv2d {
  constructor({ outputs, kernel, stride, padding, weight, bias }, [channels, height, width]) {
    Object.assign(this, { channels, height, width, outputs, kernel, stride, padding, weight, bias });
    this.shape = [outputs, ...[height, width].map((side) => Math.floor((side + 2 * padding - kernel) / stride) + 1)];
    this.patch = new Float64Array(channels * kernel * kernel);
    this.output = new Float32Array(size(this.shape));
  }

  // copies what the filters see at one place into `patch`
  gather(input, y, x) {
    const { channels, height, width, kernel, patch } = this;
    const top = y * this.stride - this.padding, left = x * this.stride - this.padding;
    let at = 0;
    for (let channel = 0; channel < channels; channel += 1) {
      for (let row = top; row < top + kernel; row += 1) {
        const start = (channel * height + row) * width;
        for (let column = left; column < left + kernel; column += 1) {
          const inside = row >= 0 && row < height && column >= 0 && column < width;
          patch[at++] = inside ? input[start + column] : 0;
        }
      }
    }
  }

  forward(input) {
    const { patch, weight, output } = this, [outputs, rows, columns] = this.shape, length = patch.length;
    for (let y = 0, place = 0; y < rows; y += 1) {
      for (let x = 0; x < columns; x += 1, place += 1) {
        this.gather(input, y, x);
        for (let channel = 0; channel < outputs; channel += 1) {
          let sum = this.bias ? this.bias[channel] : 0;
          for (let at = 0, one = channel * length; at < length; at += 1, one += 1) sum += patch[at] * weight[one];
          output[channel * rows * columns + place] = sum;
        }
      }
    }
    return output;
  }

  backward(gradient) {
    const { channels, height, width, kernel, stride, padding, weight } = this, [outputs, rows, columns] = this.shape;
    const result = new Float64Array(channels * height * width), area = rows * columns;
    for (let channel = 0; channel < outputs; channel += 1) {
      for (let place = 0; place < area; place += 1) {
        const own = gradient[channel * area + place];
        if (own === 0) continue;
        const top = Math.floor(place / columns) * stride - padding, left = (place % columns) * stride - padding;
        let one = channel * channels * kernel * kernel;
        for (let plane = 0; plane < channels; plane += 1) {
          for (let row = top; row < top + kernel; row += 1) {
            for (let column = left; column < left + kernel; column += 1, one += 1) {
              if (row < 0 || row >= height || column < 0 || column >= width) continue;
              result[(plane * height + row) * width + column] += own * weight[one];
            }
          }
        }
      }
    }
    return result;
  }
}

class Linear {
  constructor({ outputs, weight, bias }, [inputs]) {
    Object.assign(this, { inputs, outputs, weight, bias, shape: [outputs], output: new Float32Array(outputs) });
  }

  forward(input) {
    for (let channel = 0; channel < this.outputs; channel += 1) {
      let sum = this.bias[channel];
      for (let at = 0; at < this.inputs; at += 1) sum += input[at] * this.weight[channel * this.inputs + at];
      this.output[channel] = sum;
    }
    return this.output;
  }

  backward(gradient) {
    return Float64Array.from({ length: this.inputs }, (_, at) =>
      gradient.reduce((sum, own, channel) => sum + own * this.weight[channel * this.inputs + at], 0));
  }
}

class MaxPool2d {
  constructor({ kernel, stride }, [channels, height, width]) {
    Object.assign(this, { kernel, stride, channels, height, width });
    this.shape = [channels, ...[height, width].map((side) => Math.floor((side - kernel) / stride) + 1)];
    this.output = new Float32Array(size(this.shape));
    this.from = new Int32Array(this.output.length);  // where each maximum was
  }

  forward(input) {
    const { kernel, stride, height, width } = this, [channels, rows, columns] = this.shape;
    for (let channel = 0, place = 0; channel < channels; channel += 1) {
      for (let y = 0; y < rows; y += 1) {
        for (let x = 0; x < columns; x += 1, place += 1) {
          let best = (channel * height + y * stride) * width + x * stride;
          for (let row = 0; row < kernel; row += 1) {
            for (let column = 0; column < kernel; column += 1) {
              const at = (channel * height + y * stride + row) * width + x * stride + column;
              if (input[at] > input[best]) best = at;
            }
          }
          this.from[place] = best;
          this.output[place] = input[best];
        }
      }
    }
    return this.output;
  }

  backward(gradient) {
    const result = new Float64Array(this.channels * this.height * this.width);
    gradient.forEach((own, place) => { result[this.from[place]] += own; });
    return result;
  }
}

class ReLU {
  constructor(_, shape) {
    this.shape = shape;
    this.output = new Float32Array(size(shape));
  }

  forward(input) {
    for (let at = 0; at < input.length; at += 1) this.output[at] = input[at] > 0 ? input[at] : 0;
    return this.output;
  }

  backward(gradient) {
    return Float64Array.from(gradient, (own, at) => (this.output[at] > 0 ? own : 0));
  }
}

class BatchNorm2d {                          // with its mean and variance fixed: a line for each channel
  constructor({ scale, shift }, shape) {
    Object.assign(this, { scale, shift, shape, area: shape[1] * shape[2], output: new Float32Array(size(shape)) });
  }

  forward(input) {
    const { area, scale, shift } = this;
    for (let at = 0; at < input.length; at += 1) {
      const channel = Math.floor(at / area);
      this.output[at] = input[at] * scale[channel] + shift[channel];
    }
    return this.output;
  }

  backward(gradient) {
    return Float64Array.from(gradient, (own, at) => own * this.scale[Math.floor(at / this.area)]);
  }
}

class AdaptiveAvgPool2d {                    // to one value for each channel
  constructor(_, [channels, height, width]) {
    Object.assign(this, { area: height * width, shape: [channels, 1, 1], output: new Float32Array(channels) });
  }

  forward(input) {
    for (let channel = 0; channel < this.output.length; channel += 1) {
      let sum = 0;
      for (let at = 0; at < this.area; at += 1) sum += input[channel * this.area + at];
      this.output[channel] = sum / this.area;
    }
    return this.output;
  }

  backward(gradient) {
    return Float64Array.from({ length: gradient.length * this.area },
      (_, at) => gradient[Math.floor(at / this.area)] / this.area);
  }
}

class Flatten {
  constructor(_, shape) {
    this.shape = [size(shape)];
  }

  forward(input) {
    this.output = input;
    return input;
  }

  backward(gradient) {
    return gradient;
  }
}

class Dropout extends Flatten {              // does nothing once a network is trained
  constructor(_, shape) {
    super(_, shape);
    this.shape = shape;
  }
}

const LAYERS = { Conv2d, Linear, MaxPool2d, ReLU, BatchNorm2d, AdaptiveAvgPool2d, Flatten, Dropout,
  Dropout2d: Dropout };

function size(shape) {
  return shape.reduce((product, side) => product * side, 1);
}

function floats(base64) {
  return new Float32Array(Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer);
}

class DigitReader {
  // Throws an Error, a sentence, for a network with a layer that is not known here.
  constructor(network) {
    this.network = network;
    const values = this.values = floats(network.values);
    let shape = [1, MNIST_SIDE, MNIST_SIDE], start = 0;
    this.layers = network.layers.map(({ kind, lengths, ...settings }) => {
      if (!LAYERS[kind]) throw new Error(`this page cannot compute a layer of the kind ${kind}`);
      for (const [name, length] of Object.entries(lengths)) {
        settings[name] = values.subarray(start, start + length);
        start += length;
      }
      const layer = new LAYERS[kind](settings, shape);
      layer.kind = kind;
      shape = layer.shape;
      return layer;
    });
    if (start !== values.length) throw new Error("the network in this page is incomplete");
    this.input = new Float32Array(MNIST_SIDE * MNIST_SIDE);
  }

  // Take other weights for the same layers. Returns false, and changes nothing, where they are for others.
  renew(network) {
    const shapes = ({ layers }) => JSON.stringify(layers);
    if (shapes(network) !== shapes(this.network)) return false;
    this.values.set(floats(network.values));  // the layers' weights are parts of it
    this.network = network;
    return true;
  }

  logits(picture) {
    const { mean, std } = this.network;
    for (let at = 0; at < this.input.length; at += 1) this.input[at] = (picture[at] / 255 - mean) / std;
    return this.layers.reduce((values, layer) => layer.forward(values), this.input);
  }

  probabilities(picture) {
    return softmax(this.logits(picture), this.network.temperature);
  }

  // What mnist.predict says of a picture (784) in MNIST's format.
  answer(picture) {
    const { ood, words, minConfidence, temperature } = this.network;
    const logits = this.logits(picture), probabilities = softmax(logits, temperature);
    const digit = probabilities.indexOf(Math.max(...probabilities)), confidence = probabilities[digit];
    let reason = "";
    if (ood && this.oodScore(logits) > ood.threshold) reason = words.outOfDistribution;
    else if (confidence < minConfidence) {
      const second = [...probabilities.keys()].sort((one, other) => probabilities[other] - probabilities[one])[1];
      reason = words.lowConfidence.replace("{}", second);
    }
    return { digit, confidence, probabilities, picture, reason, trusted: !reason };
  }

  oodScore(logits) {
    const { weights } = this.network.ood;
    const first = this.layers.findIndex((layer) => layer.kind === "Linear");
    const features = this.layers[first - 1].output, highest = Math.max(...logits);
    const total = logits.reduce((sum, logit) => sum + Math.exp(logit - highest), 0);
    return features.reduce((sum, feature, at) => sum + feature * weights[at], 0)
      + (highest + Math.log(total)) * weights[features.length] + highest * weights[features.length + 1];
  }

  // The gradient (784) of a digit's logit with respect to each pixel's ink, 0 to 1, at the last picture.
  gradient(digit) {
    const last = this.layers.at(-1).shape[0];
    const start = Float64Array.from({ length: last }, (_, at) => Number(at === digit));
    return this.layers.reduceRight((gradient, layer) => layer.backward(gradient), start)
      .map((value) => value / this.network.std);
  }

  readStrokes(strokes) {
    if (!this.context) {
      const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
      this.context = canvas.getContext("2d", { willReadFrequently: true });
    }
    paintStrokes(this.context, strokes, SIDE, "#000");
    const { data } = this.context.getImageData(0, 0, SIDE, SIDE), ink = new Uint8Array(SIDE * SIDE);
    for (let at = 0; at < ink.length; at += 1) ink[at] = data[4 * at + 3];
    return this.read(ink, SIDE, SIDE);
  }

  // What mnist.predict says of a drawing: levels of ink (height × width), 0 to 255, ink on bare paper. The answer
  // also holds `frame`: pixel (x, y) of the picture lies at left + scale · x, top + scale · y in the drawing.
  read(ink, width, height) {
    const found = prepare(ink, width, height, this.network.rules), { words, rules } = this.network;
    const pieces = found.pieces, none = (reason) => ({ digit: null, confidence: 0, reason, trusted: false,
      probabilities: new Float64Array(10).fill(0.1), picture: found.picture });
    if (found.crowd) return none(words.crowded.replace("{}", found.crowd));
    if (!pieces.length) return none(words.blank);
    if (pieces.length > 1) return none(words.several.replace("{}", pieces.length));
    const [left, top, right, bottom] = pieces[0];
    if (right - left > rules.maxAspectRatio * (bottom - top)) return none(words.wide);
    return { ...this.answer(found.picture), frame: found.frame };
  }
}

// Strokes on a canvas of that width, on a transparent background.
function paintStrokes(context, strokes, width, colour) {
  context.clearRect(0, 0, width, width);
  context.strokeStyle = colour;
  context.lineWidth = BRUSH * width / SIDE;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(stroke[0][0] * width, stroke[0][1] * width);
    context.lineTo(stroke[0][0] * width + 0.01, stroke[0][1] * width);  // otherwise a dot leaves no ink
    for (const [x, y] of stroke) context.lineTo(x * width, y * width);
    context.stroke();
  }
}

function softmax(logits, temperature) {
  const highest = Math.max(...logits);
  const powers = Float64Array.from(logits, (logit) => Math.exp((logit - highest) / temperature));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

// from a drawing to MNIST's format: the steps of mnist/picture.py, for ink on bare paper

function prepare(ink, width, height, rules) {
  const empty = { pieces: [], picture: null };
  const cut = around(ink, width, height, rules);
  if (!cut) return empty;
  const { left, top, wide, high } = cut, mask = new Uint8Array(wide * high);
  for (let y = 0; y < high; y += 1) {
    for (let x = 0; x < wide; x += 1) mask[y * wide + x] = Number(ink[(top + y) * width + left + x] > rules.threshold);
  }
  const { parts, boxes } = labelled(mask, wide, high);
  const kept = withoutSpecks(boxes, wide, high, rules);
  if (kept.length > rules.maxParts) return { ...empty, crowd: kept.length };
  const found = grouped(boxes, kept, wide, high);
  if (!found.length) return empty;
  const tallest = Math.max(...found.map(({ box }) => box[3] - box[1]));
  const pieces = found.filter(({ box }) => box[3] - box[1] > rules.minDigit * tallest);
  const all = union(pieces.map(({ box }) => box)), side = [all[2] - all[0], all[3] - all[1]];
  const chosen = new Set(pieces.flatMap(({ members }) => members)), strokes = new Uint8Array(side[0] * side[1]);
  for (let y = 0; y < side[1]; y += 1) {
    for (let x = 0; x < side[0]; x += 1) {
      const part = parts[(all[1] + y) * wide + all[0] + x];
      strokes[y * side[0] + x] = Number(part > 0 && chosen.has(part - 1));
    }
  }
  const { picture, frame } = fitted(strokes, ...side, rules);
  frame.left += left + all[0];
  frame.top += top + all[1];
  return { pieces: pieces.map(({ box }) => box), picture, frame };
}

// The part of a drawing that holds the ink and the paper that reading needs around it; null without ink.
function around(ink, width, height, { margin, minSide }) {
  let left = width, top = height, right = 0, bottom = 0;
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 1) {
      if (!ink[at]) continue;
      left = Math.min(left, x);
      right = Math.max(right, x + 1);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y + 1);
    }
  }
  if (right <= left) return null;
  const [[start, wide], [begin, high]] = [[left, right, width], [top, bottom, height]].map(([low, end, most]) => {
    const length = Math.min(Math.max(end - low + 2 * margin, minSide), most);
    return [Math.min(Math.max(Math.floor((low + end - length) / 2), 0), most - length), length];
  });
  return { left: start, top: begin, wide, high };
}

// The connected parts of a mask, numbered from 1, and their boxes [left, top, right, bottom].
function labelled(mask, width, height) {
  const parts = new Int32Array(mask.length), boxes = [], stack = new Int32Array(mask.length);
  for (let start = 0; start < mask.length; start += 1) {
    if (!mask[start] || parts[start]) continue;
    const box = [width, height, 0, 0], number = boxes.push(box);
    let waiting = 0;
    stack[waiting++] = start;
    parts[start] = number;
    while (waiting) {
      const at = stack[--waiting], x = at % width, y = (at - x) / width;
      box[0] = Math.min(box[0], x);
      box[1] = Math.min(box[1], y);
      box[2] = Math.max(box[2], x + 1);
      box[3] = Math.max(box[3], y + 1);
      for (let row = Math.max(0, y - 1); row <= Math.min(height - 1, y + 1); row += 1) {
        for (let column = Math.max(0, x - 1); column <= Math.min(width - 1, x + 1); column += 1) {
          const next = row * width + column;
          if (!mask[next] || parts[next]) continue;
          parts[next] = number;
          stack[waiting++] = next;
        }
      }
    }
  }
  return { parts, boxes };
}

const longer = ([left, top, right, bottom]) => Math.max(right - left, bottom - top);
const union = (boxes) => [Math.min(...boxes.map((box) => box[0])), Math.min(...boxes.map((box) => box[1])),
  Math.max(...boxes.map((box) => box[2])), Math.max(...boxes.map((box) => box[3]))];

function cutOff(box, width, height) {        // whether it touches the edge
  const margin = 0.005 * Math.max(width, height);
  return Math.min(box[0], box[1]) <= margin || box[2] >= width - margin || box[3] >= height - margin;
}

function spans(box, width, height) {         // whether it touches the edge and runs along a whole side
  return cutOff(box, width, height) && (box[2] - box[0] > 0.95 * width || box[3] - box[1] > 0.95 * height);
}

function withoutSpecks(boxes, width, height, { speck }) {
  const inside = boxes.filter((box) => !cutOff(box, width, height));
  const longest = Math.max(0, ...(inside.length ? inside : boxes).map(longer));
  return boxes.map((box, index) => index).filter((index) => longer(boxes[index]) > speck * longest);
}

// Groups of parts that belong to one digit each.
function grouped(boxes, kept, width, height) {
  const within = kept.filter((index) => !spans(boxes[index], width, height));
  const groups = (within.length ? within : kept).map((index) => ({ members: [index], box: boxes[index] }));
  for (let merged = true; merged;) {
    merged = false;
    search: for (let one = 0; one < groups.length; one += 1) {
      for (let other = one + 1; other < groups.length; other += 1) {
        if (!belong(groups[one].box, groups[other].box)) continue;
        groups[one].members.push(...groups[other].members);
        groups[one].box = union([groups[one].box, groups[other].box]);
        groups.splice(other, 1);
        merged = true;
        break search;
      }
    }
  }
  return groups;
}

function belong(one, other) {
  const across = Math.min(one[2], other[2]) - Math.max(one[0], other[0]);
  const along = Math.min(one[3], other[3]) - Math.max(one[1], other[1]);
  const [smaller, larger] = [longer(one), longer(other)].sort((first, second) => first - second);
  if (smaller < 0.6 * larger) return across > -0.15 * larger && along > -0.15 * larger;
  return across > 0.4 * Math.min(one[2] - one[0], other[2] - other[0]) && along > -0.08 * larger;
}

// The square of each pixel's distance to the nearest pixel that is `target`
// (Felzenszwalb & Huttenlocher 2012, Distance Transforms of Sampled Functions).
function squaredDistances(mask, width, height, target) {
  const far = width + height, columns = new Float64Array(mask.length), result = new Float64Array(mask.length);
  for (let x = 0; x < width; x += 1) {
    for (let y = 0, away = far; y < height; y += 1) {
      const at = y * width + x;
      away = mask[at] === target ? 0 : away + 1;
      columns[at] = away;
    }
    for (let y = height - 1, away = far; y >= 0; y -= 1) {
      const at = y * width + x;
      away = mask[at] === target ? 0 : away + 1;
      columns[at] = Math.min(columns[at], away);
    }
  }
  const lowest = new Int32Array(width), bounds = new Float64Array(width + 1);
  for (let y = 0; y < height; y += 1) {
    const row = y * width, level = (x) => columns[row + x] ** 2 + x * x;
    let last = 0;
    lowest[0] = 0;
    bounds[0] = -Infinity;
    bounds[1] = Infinity;
    for (let x = 1; x < width; x += 1) {
      let meet = (level(x) - level(lowest[last])) / (2 * (x - lowest[last]));
      while (meet <= bounds[last]) {
        last -= 1;
        meet = (level(x) - level(lowest[last])) / (2 * (x - lowest[last]));
      }
      last += 1;
      lowest[last] = x;
      bounds[last] = meet;
      bounds[last + 1] = Infinity;
    }
    for (let x = 0, piece = 0; x < width; x += 1) {
      while (bounds[piece + 1] < x) piece += 1;
      result[row + x] = (x - lowest[piece]) ** 2 + columns[row + lowest[piece]] ** 2;
    }
  }
  return result;
}

// Which pixels thinning removes, by their eight neighbours (Zhang & Suen 1984): 1 in the first half of a round, 2 in
// the second, 3 in both. Neighbours are bits, clockwise from the upper left.
const THINNING = Uint8Array.from({ length: 256 }, (_, bits) => {
  const [northWest, north, northEast, east, southEast, south, southWest, west] =
    Array.from({ length: 8 }, (_, bit) => (bits >> bit) & 1);
  const ring = [north, northEast, east, southEast, south, southWest, west, northWest];
  const count = ring.reduce((sum, one) => sum + one, 0);
  const starts = ring.filter((one, at) => !one && ring[(at + 1) % 8]).length;
  if (count < 2 || count > 6 || starts !== 1) return 0;
  return Number(!(north && east && south) && !(east && south && west))
    + 2 * Number(!(north && east && west) && !(north && south && west));
});

// The pixels of the centre line of strokes, as places in the mask padded by one pixel.
function centreLine(strokes, width, height) {
  const ink = pad(strokes, width, height, 1), row = width + 2, line = new Int32Array(ink.length);
  const gone = new Int32Array(ink.length);
  let count = 0;
  for (let at = 0; at < ink.length; at += 1) if (ink[at]) line[count++] = at;
  for (let removed = true; removed;) {
    removed = false;
    for (const half of [1, 2]) {
      let kept = 0, lost = 0;
      for (let index = 0; index < count; index += 1) {
        const at = line[index];
        const bits = ink[at - row - 1] | ink[at - row] << 1 | ink[at - row + 1] << 2 | ink[at + 1] << 3
          | ink[at + row + 1] << 4 | ink[at + row] << 5 | ink[at + row - 1] << 6 | ink[at - 1] << 7;
        if (THINNING[bits] & half) gone[lost++] = at;
        else line[kept++] = at;
      }
      for (let index = 0; index < lost; index += 1) ink[gone[index]] = 0;
      count = kept;
      removed ||= lost > 0;
    }
  }
  return line.subarray(0, count);
}

function pad(mask, width, height, margin) {
  const across = width + 2 * margin, result = new Uint8Array(across * (height + 2 * margin));
  for (let y = 0; y < height; y += 1) {
    result.set(mask.subarray(y * width, (y + 1) * width), (y + margin) * across + margin);
  }
  return result;
}

function fitted(strokes, width, height, rules) {
  const usual = ofUsualWidth(strokes, width, height, rules);
  const { picture, left, top, scale } = framed(usual.strokes, usual.width, usual.height, rules);
  return { picture, frame: { scale, left: usual.left - left * scale, top: usual.top - top * scale } };
}

// Strokes as thick as MNIST's, and where their corner lies relative to the former one.
function ofUsualWidth(strokes, width, height, { digitSide, strokeWidths }) {
  const same = { strokes, width, height, left: 0, top: 0 };
  const depth = squaredDistances(pad(strokes, width, height, 1), width + 2, height + 2, 0);
  const line = centreLine(strokes, width, height);
  const pen = 2 * median(Float64Array.from(line, (at) => Math.sqrt(depth[at]))), side = Math.max(width, height);
  const wanted = Math.min(Math.max(pen * digitSide / side, strokeWidths[0]), strokeWidths[1]);
  const growth = (wanted * side - digitSide * pen) / (2 * (digitSide - wanted));
  if (!(Math.abs(growth) >= 0.5)) return same;
  if (growth > 0) {
    const margin = Math.ceil(growth), size = [width + 2 * margin, height + 2 * margin];
    const away = squaredDistances(pad(strokes, width, height, margin), ...size, 1);
    return { strokes: Uint8Array.from(away, (square) => Number(Math.sqrt(square) <= growth)),
      width: size[0], height: size[1], left: -margin, top: -margin };
  }
  const middle = new Uint8Array(depth.length);
  for (const at of line) middle[at] = 1;
  const near = squaredDistances(middle, width + 2, height + 2, 1);
  const thinner = Uint8Array.from(depth, (square, at) => Number(isInside(at, width, height)
    && (Math.sqrt(square) > -growth || Math.sqrt(near[at]) <= pen / 2 + growth)));  // otherwise thin parts would vanish
  return cropped(thinner, width + 2, height + 2) ?? same;
}

function isInside(at, width, height) {       // of a mask padded by one pixel
  const x = at % (width + 2), y = Math.floor(at / (width + 2));
  return x > 0 && x <= width && y > 0 && y <= height;
}

function cropped(padded, width, height) {
  const box = [width, height, 0, 0];
  padded.forEach((ink, at) => {
    if (!ink) return;
    const x = at % width, y = Math.floor(at / width);
    box[0] = Math.min(box[0], x);
    box[1] = Math.min(box[1], y);
    box[2] = Math.max(box[2], x + 1);
    box[3] = Math.max(box[3], y + 1);
  });
  if (box[2] <= box[0]) return null;
  const [left, top, right, bottom] = box, strokes = new Uint8Array((right - left) * (bottom - top));
  for (let y = top; y < bottom; y += 1) {
    strokes.set(padded.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  }
  return { strokes, width: right - left, height: bottom - top, left: left - 1, top: top - 1 };
}

function median(values) {
  const sorted = values.sort(), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function rint(value) {                       // to the nearest whole number, and from the middle to the even one
  const below = Math.floor(value), rest = value - below;
  return below + Number(rest > 0.5 || rest === 0.5 && below % 2 !== 0);
}

// The digit, 20 pixels long, with its centre of mass in the middle of 28 × 28.
function framed(strokes, width, height, { digitSide }) {
  const scale = Math.max(width, height) / digitSide;
  const wide = Math.max(1, rint(width / scale)), high = Math.max(1, rint(height / scale));
  const rows = averaged(strokes, width, height, wide), small = averaged(rows, height, wide, high);
  const highest = small.reduce((most, value) => Math.max(most, value), 0);
  const factor = Math.fround(255 / highest), levels = small.map((value) => rint(Math.fround(value * factor)));
  let mass = 0, x = 0, y = 0;
  levels.forEach((level, at) => {
    mass += level;
    x += level * (at % wide);
    y += level * Math.floor(at / wide);
  });
  const [left, top] = [[x, wide], [y, high]].map(([moment, side]) =>
    Math.min(Math.max(rint(MNIST_SIDE / 2 - moment / mass), 0), MNIST_SIDE - side));
  const picture = new Uint8Array(MNIST_SIDE * MNIST_SIDE);
  levels.forEach((level, at) => {
    picture[(top + Math.floor(at / wide)) * MNIST_SIDE + left + at % wide] = level;
  });
  return { picture, left, top, scale };
}

// Averages along the rows of (height × width), to `length` columns, as Pillow's box filter; the result is transposed:
// (length × height).
function averaged(values, width, height, length) {
  const scale = width / length, support = Math.max(scale, 1) / 2, result = new Float32Array(length * height);
  for (let to = 0; to < length; to += 1) {
    const centre = (to + 0.5) * scale, first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(width, Math.trunc(centre + support + 0.5)), columns = [];
    for (let from = first; from < end; from += 1) {
      const away = (from - centre + 0.5) / Math.max(scale, 1);
      if (away > -0.5 && away <= 0.5) columns.push(from);
    }
    for (let row = 0; row < height; row += 1) {
      let sum = 0;
      for (const column of columns) sum += values[row * width + column] / columns.length;
      result[to * height + row] = sum;
    }
  }
  return result;
}
