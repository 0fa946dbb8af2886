/** Draw boxes, labels and probability bars. Labels are written out and unsure boxes have corners only, so colour is not needed. */

/** CSS colours by label, which the server sends. */
export const colors = {};

export const colorOf = label => colors[label] ?? colors.unsure;

/** Return the colour of letters on a label's colour, as the window chooses it. */
export function inkOn(label) {
  const [red, green, blue] = colorOf(label).match(/\w\w/g).map(part => parseInt(part, 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 100 ? "#000" : "#fff";
}

/** The face that is spoken about: the largest one that is not tentative. */
export function mainFace(faces) {
  const area = face => face.box[2] * face.box[3];
  return faces.filter(face => !face.tentative).reduce((best, face) => !best || area(face) > area(best) ? face : best, null);
}

export function nameOf(face) {
  const id = face.id ? `${face.id} ` : "";
  return face.unsure ? `${id}unsure` : `${id}${face.label} ${Math.round(100 * face.probability)} %`;
}

/** Draw the faces of a result onto a context whose canvas shows the whole frame; `labels` are the emotions in class order. */
export function drawFaces(context, result, labels) {
  const {width, height} = context.canvas;
  const scale = Math.min(width / result.size[0], height / result.size[1]);
  const left = (width - scale * result.size[0]) / 2, top = (height - scale * result.size[1]) / 2;
  const unit = Math.max(1, height / 480); // lines and letters grow with the canvas
  const faces = [...result.faces].sort((one, other) => one.box[3] - other.box[3]);
  context.clearRect(0, 0, width, height);
  for (const face of faces) {
    const [x, y, across, down] = face.box.map(side => side * scale);
    const box = [left + x, top + y, across, down];
    drawBox(context, face, box, unit);
    if (face.tentative) continue;
    drawTag(context, face, box, unit);
    if (faces.length <= 4) drawBars(context, face, box, unit, labels, face === faces.at(-1));
  }
}

function drawBox(context, face, [x, y, width, height], unit) {
  const arms = face.unsure ? [width / 4, height / 4] : [width / 2, height / 2];
  context.beginPath();
  for (const [cornerX, cornerY, right, down] of [[x, y, 1, 1], [x + width, y, -1, 1], [x, y + height, 1, -1], [x + width, y + height, -1, -1]]) {
    context.moveTo(cornerX + right * arms[0], cornerY);
    context.lineTo(cornerX, cornerY);
    context.lineTo(cornerX, cornerY + down * arms[1]);
  }
  for (const [color, line] of [["#000", 5], [face.tentative ? "#a0a0a0" : face.unsure ? "#fff" : colorOf(face.label), face.tentative ? 1 : 2.5]]) {
    context.strokeStyle = color;
    context.lineWidth = line * unit;
    context.stroke();
  }
}

function drawTag(context, face, [x, y, width, height], unit) {
  const size = 16 * unit, text = nameOf(face), canvas = context.canvas;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const tag = context.measureText(text).width + 0.8 * size;
  const left = Math.max(0, Math.min(x, canvas.width - tag));
  const above = y - 1.5 * size;
  const top = Math.max(0, above >= 0 ? above : Math.min(y + height, canvas.height - 1.5 * size));
  context.fillStyle = colorOf(face.label);
  context.fillRect(left, top, tag, 1.5 * size);
  context.fillStyle = inkOn(face.label);
  context.textBaseline = "middle";
  context.fillText(text, left + 0.4 * size, top + 0.8 * size);
}

/** Draw the bars beside a face where there is room; those of the largest face go to a corner otherwise. */
function drawBars(context, face, [x, y, width], unit, labels, isMain) {
  const size = 11 * unit, row = 1.35 * size, canvas = context.canvas;
  context.font = `${size}px system-ui, sans-serif`;
  const names = Math.max(...labels.map(label => context.measureText(label).width));
  const bar = 5 * size, panel = names + bar + 1.2 * size, height = row * labels.length + 0.6 * size;
  let left = x + width + 6 * unit;
  if (left + panel > canvas.width) left = x - 6 * unit - panel;
  let top = Math.max(0, Math.min(y, canvas.height - height));
  if (left < 0) {
    if (!isMain) return;
    [left, top] = [0, canvas.height - height];
  }
  context.fillStyle = "rgb(0 0 0 / 75%)";
  context.fillRect(left, top, panel, height);
  labels.forEach((label, place) => {
    const middle = top + 0.3 * size + row * (place + 0.5), start = left + names + 0.8 * size;
    context.fillStyle = "#fff";
    context.textBaseline = "middle";
    context.fillText(label, left + 0.4 * size, middle);
    context.fillStyle = colorOf(label);
    context.fillRect(start, middle - 0.4 * size, Math.max(1, bar * face.probabilities[place]), 0.8 * size);
  });
}

/** Give a canvas the pixels of its place on the screen, and return its context. */
export function fitted(canvas) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * scale)), height = Math.max(1, Math.round(canvas.clientHeight * scale));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  return canvas.getContext("2d");
}
