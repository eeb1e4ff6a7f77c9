// A digit of each kind to watch being written: for each stroke the points, in hundredths of the paper, that a smooth
// line goes through. A point that is named twice is a corner.

const EXAMPLES = [
  [[50, 18, 35, 26, 28, 50, 35, 75, 50, 83, 65, 74, 72, 50, 65, 26, 50, 18]],
  [[45, 27, 53, 17, 53, 17, 52, 50, 49, 84]],
  [[31, 33, 40, 20, 57, 18, 68, 30, 61, 48, 44, 66, 30, 80, 30, 80, 50, 78, 73, 81]],
  [[32, 24, 47, 17, 63, 24, 62, 39, 46, 48, 46, 48, 64, 54, 70, 69, 56, 82, 32, 77]],
  [[42, 17, 36, 38, 29, 57, 29, 57, 52, 56, 75, 55], [61, 38, 60, 60, 57, 84]],
  [[67, 20, 40, 20, 40, 20, 36, 46, 36, 46, 53, 43, 68, 54, 66, 73, 50, 83, 31, 76]],
  [[61, 17, 45, 31, 35, 54, 37, 75, 51, 83, 65, 73, 63, 58, 50, 53, 37, 63]],
  [[28, 22, 50, 23, 71, 21, 71, 21, 58, 48, 46, 84]],
  [[64, 27, 51, 17, 37, 26, 43, 42, 60, 57, 66, 72, 51, 83, 36, 73, 42, 58, 58, 43, 65, 28]],
  [[65, 33, 53, 19, 37, 28, 37, 44, 51, 50, 65, 37, 66, 27, 63, 58, 56, 84]],
];
const STEPS = 12;          // points of the drawn line between two that are named

// The points [x, y], 0 to 1, of a Catmull-Rom curve through the named ones.
function smooth(named) {
  const at = (index) => {
    const known = 2 * Math.min(Math.max(index, 0), named.length / 2 - 1);
    return [named[known] / 100, named[known + 1] / 100];
  };
  const points = [];
  for (let index = 0; index < named.length / 2 - 1; index += 1) {
    const [before, from, to, after] = [at(index - 1), at(index), at(index + 1), at(index + 2)];
    for (let step = 0; step < STEPS; step += 1) {
      const share = step / STEPS;
      points.push([0, 1].map((axis) => from[axis] + share / 2 * (to[axis] - before[axis]
        + share * (2 * before[axis] - 5 * from[axis] + 4 * to[axis] - after[axis]
        + share * (3 * (from[axis] - to[axis]) + after[axis] - before[axis])))));
    }
  }
  return [...points, at(named.length / 2 - 1)];
}
