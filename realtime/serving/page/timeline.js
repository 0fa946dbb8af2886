/** The timeline: stretches of time in which each face shows one label. */

import {colorOf, fitted, inkOn} from "./drawing.js";

const GAP = 0.5; // seconds: a stretch goes on over a shorter gap
const LANES = 4; // faces shown, the newest ones

export class Timeline {
  #runs = []; // {id, label, start, end}, by start
  #last = new Map(); // face -> its newest run

  /** `keep` is the length of the history in seconds; Infinity: a video. */
  constructor(canvas, keep) {
    this.canvas = canvas;
    this.keep = keep;
    this.end = 0;
  }

  add(result) {
    this.end = Math.max(this.end, result.time);
    for (const face of result.faces.filter(face => face.id)) {
      const last = this.#last.get(face.id);
      if (last && last.label === face.label && result.time - last.end <= GAP) {
        last.end = result.time;
      } else {
        if (last && result.time - last.end <= GAP) last.end = result.time;
        const run = {id: face.id, label: face.label, start: result.time, end: result.time};
        this.#runs.push(run);
        this.#last.set(face.id, run);
      }
    }
    if (this.keep < Infinity) {
      this.#runs = this.#runs.filter(run => run.end > this.end - this.keep);
      for (const [id, run] of this.#last) if (run.end <= this.end - this.keep) this.#last.delete(id);
    }
  }

  get start() { return this.keep < Infinity ? this.end - this.keep : 0; }

  /** Draw the runs; `now` marks a time of a video, `length` is its length in seconds. */
  draw(now = null, length = 0) {
    const context = fitted(this.canvas), {width, height} = context.canvas;
    const end = Math.max(this.end, length, 1e-3), start = this.start;
    const ids = [...new Set(this.#runs.map(run => run.id))].sort((one, other) => one - other).slice(-LANES);
    const lane = height / Math.max(ids.length, 1), size = Math.min(lane * 0.55, 14 * (window.devicePixelRatio || 1) * Math.max(1, this.canvas.clientHeight / 72));
    const x = time => width * (time - start) / (end - start);
    context.clearRect(0, 0, width, height);
    context.textBaseline = "middle";
    context.strokeStyle = getComputedStyle(this.canvas).borderTopColor; // pale colours need an edge
    context.font = `600 ${size}px system-ui, sans-serif`;
    for (const run of this.#runs) {
      const place = ids.indexOf(run.id);
      if (place < 0) continue;
      const left = Math.max(0, x(run.start)), right = Math.max(x(run.end), left + 1), short = `${run.id} ${run.label.slice(0, 3)}`;
      context.fillStyle = colorOf(run.label);
      context.fillRect(left, place * lane + 1, right - left, lane - 2);
      context.strokeRect(left + 0.5, place * lane + 1.5, right - left - 1, lane - 3);
      context.fillStyle = inkOn(run.label);
      const fits = text => context.measureText(text).width + size < right - left;
      const text = [`${run.id} ${run.label}`, short].find(fits);
      if (text) context.fillText(text, left + size / 2, (place + 0.5) * lane);
    }
    if (now !== null) {
      context.fillStyle = getComputedStyle(this.canvas).color;
      context.fillRect(x(now) - 1, 0, 3 * (window.devicePixelRatio || 1), height);
    }
  }

  /** Return the time at a place of a pointer event. */
  timeAt(event, length) {
    const {left, width} = this.canvas.getBoundingClientRect();
    return this.start + (event.clientX - left) / width * (Math.max(this.end, length) - this.start);
  }
}
