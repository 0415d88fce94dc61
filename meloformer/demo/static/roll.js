// The piano roll: time to the right, pitch up, drums in a lane of their own, a line that follows,
// bars that are chosen.
import { BLACK, DRUMS, GUTTER, LANE, drawKeys } from "./keyboard.js";

const RULER = 28; // bar numbers
const LEAST_PITCHES = 25;
const FOLLOW_AT = 0.35; // of the width

// Hues far apart, for the tracks in their order.
const COLOURS = ["#6cc4ff", "#ffb454", "#ff7a90", "#8be28b", "#c49bff", "#4fe0d0", "#f7e06a", "#ff9ee0", "#9fb4ff", "#d7a97c"];

// Chosen bars: no colour of a track, nor of the line.
const PICKED = "#c9d2ff", PICKED_INK = "#141930";

const pulse = (strength) => `rgba(255, 180, 84, ${strength * (1 + 0.7 * Math.sin(performance.now() / 220))})`;

export const colourOf = (order) => COLOURS[order % COLOURS.length];

export class Roll {
  #canvas;
  #context;
  #left = 0; // quarters
  #follows = true;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.onPick = () => {};
    this.picked = null; // [first, last): bars
    this.pending = null; // likewise: those that are being written, maybe behind the end
    this.pendingPlayers = null; // a set of who is written there; null for all
    this.isDragged = false;
    this.score = null;
    this.colours = new Map(); // instrument -> colour
    this.silent = new Set();
    this.perQuarter = 44; // pixels
    this.#listen();
    new ResizeObserver(() => this.#fit()).observe(canvas);
    this.#fit();
  }

  load(score) {
    this.score = score;
    this.toStart();
    this.pending = null;
    this.pick(null);
  }

  toStart() {
    this.#left = 0;
    this.#follows = true;
  }

  /** The same piece in another version; what is chosen stays where it can. */
  swap(score) {
    this.score = score;
    this.#bound();
    if (this.picked?.[1] > score.bars.length) this.pick(null);
  }

  /** Choose bars, [first, last), or null for none. */
  pick(bars) {
    this.picked = bars;
    this.onPick(bars);
  }

  /** Let a bar be seen; a piece that plays takes the view again when it is followed. */
  reveal(bar) {
    const { bars, steps, stepsPerQuarter } = this.score;
    const at = (bars[bar]?.startStep ?? steps) / stepsPerQuarter;
    const until = at + (bars[bar]?.steps ?? bars.at(-1).steps) / stepsPerQuarter;
    if (at >= this.#left && until <= this.#left + this.#width() / this.perQuarter) return;
    this.#follows = false;
    this.#left = at - this.#width() / 4 / this.perQuarter;
    this.#bound();
  }

  /** Move the view by pixels. */
  scroll(pixels) {
    this.#follows = false;
    this.#left += pixels / this.perQuarter;
    this.#bound();
  }

  barAt(clientX) {
    return this.score.barOfStep(this.#stepAt(clientX));
  }

  timeAt(clientX) {
    return this.score.timeOf(this.#stepAt(clientX));
  }

  /** -1 or 1 within some pixels of the left or right edge, else 0. */
  edgeOf(clientX, pixels) {
    const { left, right } = this.#canvas.getBoundingClientRect();
    return clientX < left + GUTTER + pixels ? -1 : clientX > right - pixels ? 1 : 0;
  }

  follow() {
    this.#follows = true;
  }

  zoom(factor) {
    const middle = this.#left + this.#width() / 2 / this.perQuarter;
    this.perQuarter = Math.max(6, Math.min(160, this.perQuarter * factor));
    this.#left = middle - this.#width() / 2 / this.perQuarter;
    this.#bound();
  }

  /** Draw the moment, in seconds of the music. */
  draw(now, isPlaying) {
    const { score } = this;
    const context = this.#context;
    const width = this.#canvas.clientWidth, height = this.#canvas.clientHeight;
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.fillStyle = "#12162a";
    context.fillRect(0, 0, width, height);
    if (!score || !score.expected) return;
    const step = score.stepAt(now);
    if (isPlaying && this.#follows && !this.isDragged) {
      const wanted = step / score.stepsPerQuarter - (this.#width() * FOLLOW_AT) / this.perQuarter;
      this.#left += (wanted - this.#left) * (Math.abs(wanted - this.#left) > 8 ? 1 : 0.2);
      this.#bound();
    }
    const frame = this.#frame(width, height);
    context.save();
    context.beginPath();
    context.rect(GUTTER, 0, width - GUTTER, height);
    context.clip();
    this.#drawGround(frame);
    this.#drawNotes(frame, step, isPlaying);
    this.#drawLine(frame, step);
    context.restore();
    drawKeys(context, frame, this, step, isPlaying);
  }

  // What one picture is drawn with: where pitches and times lie.
  #frame(width, height) {
    const pitches = this.score.notes.filter((note) => note.instrument !== DRUMS).map((note) => note.pitch);
    const hasDrums = pitches.length < this.score.notes.length;
    let low = pitches.reduce((a, b) => Math.min(a, b), 127) - 2;
    let high = pitches.reduce((a, b) => Math.max(a, b), 0) + 2;
    if (!pitches.length) [low, high] = [54, 78];
    const more = Math.max(0, LEAST_PITCHES - (high - low + 1));
    low -= more >> 1;
    high += (more + 1) >> 1;
    const bottom = height - (hasDrums ? LANE : 0);
    return { width, height, low, high, bottom, hasDrums, row: (bottom - RULER) / (high - low + 1) };
  }

  #x(step) {
    return GUTTER + (step / this.score.stepsPerQuarter - this.#left) * this.perQuarter;
  }

  #drawGround({ width, height, low, high, bottom, hasDrums, row }) {
    const context = this.#context, { score } = this;
    for (let pitch = low; pitch <= high; pitch++) {
      const y = bottom - (pitch - low + 1) * row;
      context.fillStyle = BLACK.has(((pitch % 12) + 12) % 12) ? "#141930" : "#191f39";
      context.fillRect(GUTTER, y, width, row);
      if (((pitch % 12) + 12) % 12 === 0) {
        context.fillStyle = "#2b3358";
        context.fillRect(GUTTER, y + row - 1, width, 1);
      }
    }
    if (hasDrums) {
      context.fillStyle = "#0f1325";
      context.fillRect(GUTTER, bottom, width, LANE);
      context.fillStyle = "#39426d";
      context.fillRect(GUTTER, bottom, width, 1);
    }
    context.fillStyle = "#171c34";
    context.fillRect(GUTTER, 0, width, RULER);
    this.#drawPicked(height);
    this.#drawBars(height);
    if (this.#numBars() > score.bars.length) this.#drawUnwritten(height);
    this.#drawPending(height);
  }

  #drawBars(height) {
    const context = this.#context, { score } = this;
    const barWidth = (score.bars[0]?.steps ?? 96) / score.stepsPerQuarter * this.perQuarter;
    const every = [1, 2, 4, 8, 16, 32].find((n) => barWidth * n > 34) ?? 64;
    context.font = "600 11px system-ui, sans-serif";
    context.textBaseline = "middle";
    for (let bar = 0; bar < score.bars.length; bar++) {
      const { startStep, steps, metre } = score.bars[bar];
      const x = Math.round(this.#x(startStep));
      if (x > this.#canvas.clientWidth || this.#x(startStep + steps) < GUTTER) continue;
      context.fillStyle = "#39426d";
      context.fillRect(x, bar % every ? RULER - 5 : 0, 1, height);
      const beat = (4 / metre[1]) * score.stepsPerQuarter;
      if (beat / score.stepsPerQuarter * this.perQuarter > 14) {
        context.fillStyle = "#242b4b";
        for (let at = beat; at < steps; at += beat) context.fillRect(Math.round(this.#x(startStep + at)), RULER, 1, height);
      }
      if (bar % every === 0) {
        context.fillStyle = this.#isPicked(bar) ? PICKED_INK : "#98a2c8";
        context.fillText(String(bar + 1), x + 6, RULER / 2 + 1);
      }
    }
  }

  #drawUnwritten(height) {
    const context = this.#context, { score } = this;
    const last = score.bars.at(-1);
    const steps = last?.steps ?? 4 * score.stepsPerQuarter;
    for (let bar = score.bars.length; bar < this.#numBars(); bar++) {
      const from = this.#x(score.steps + (bar - score.bars.length) * steps);
      const wide = (steps / score.stepsPerQuarter) * this.perQuarter;
      if (from > this.#canvas.clientWidth) break;
      const isNext = bar === score.bars.length && !score.complete;
      context.fillStyle = isNext ? pulse(0.07) : "rgba(255, 255, 255, 0.018)";
      context.fillRect(from + 2, RULER + 2, wide - 4, height - RULER - 4);
      context.fillStyle = "#5b6590";
      context.fillText(String(bar + 1), from + 6, RULER / 2 + 1);
    }
  }

  #drawPicked(height) {
    if (!this.picked) return;
    const context = this.#context;
    const [from, until] = this.#edges(this.picked);
    context.fillStyle = "rgba(201, 210, 255, 0.15)";
    context.fillRect(from, RULER, until - from, height);
    context.fillStyle = PICKED;
    context.fillRect(from, 0, until - from, RULER);
    for (const x of [from, until - 2]) context.fillRect(x, 0, 2, height);
  }

  #drawPending(height) {
    if (!this.pending) return;
    const [from, until] = this.#edges(this.pending);
    this.#context.fillStyle = pulse(0.14);
    this.#context.fillRect(from, RULER, until - from, height);
  }

  #isPicked(bar) {
    return this.picked !== null && bar >= this.picked[0] && bar < this.picked[1];
  }

  // Where bars begin and end, in pixels; behind the last one they are as long as it is.
  #edges(bars) {
    const { bars: known, steps } = this.score;
    return bars.map((bar) => {
      const beyond = Math.max(0, bar - known.length) * known.at(-1).steps;
      return Math.round(this.#x((known[bar]?.startStep ?? steps) + beyond));
    });
  }

  // Written and to be written.
  #numBars() {
    return Math.max(this.score.expected, this.pending?.[1] ?? 0);
  }

  #drawNotes({ bottom, low, row, width }, step, isPlaying) {
    const context = this.#context;
    for (const note of this.score.notes) {
      const x = this.#x(note.startStep);
      if (x > width) break;
      const until = this.#x(note.endStep);
      if (until < GUTTER) continue;
      const isNow = isPlaying && note.startStep <= step && step < note.endStep;
      const isGoing = this.pending && note.bar >= this.pending[0] && note.bar < this.pending[1] && (this.pendingPlayers?.has(note.instrument) ?? true);
      context.globalAlpha = this.silent.has(note.instrument) || isGoing ? 0.14 : 0.5 + 0.5 * (note.velocity / 127);
      context.fillStyle = isNow && !this.silent.has(note.instrument) ? "#ffffff" : this.colours.get(note.instrument);
      if (note.instrument === DRUMS) {
        // Low keys are kicks, high ones cymbals: the lane shows them as a drummer's staff does.
        const y = bottom + LANE - 9 - ((Math.min(Math.max(note.pitch, 33), 60) - 33) / 27) * (LANE - 20);
        const size = isNow ? 5 : 3.6;
        context.beginPath();
        context.moveTo(x, y - size);
        context.lineTo(x + size, y);
        context.lineTo(x, y + size);
        context.lineTo(x - size, y);
        context.fill();
        continue;
      }
      const high = Math.max(row - 1, 2);
      context.beginPath();
      context.roundRect(x + 0.5, bottom - (note.pitch - low + 1) * row + 0.5, Math.max(until - x - 1.5, 2), high, Math.min(3, high / 2));
      context.fill();
    }
    context.globalAlpha = 1;
  }

  #drawLine({ height }, step) {
    const context = this.#context;
    const x = Math.round(this.#x(step));
    context.fillStyle = "rgba(255, 180, 84, 0.18)";
    context.fillRect(x - 3, 0, 7, height);
    context.fillStyle = "#ffb454";
    context.fillRect(x, 0, 1.5, height);
    context.beginPath();
    context.moveTo(x - 6, 0);
    context.lineTo(x + 7, 0);
    context.lineTo(x + 0.75, 9);
    context.fill();
  }

  #width() {
    return Math.max(this.#canvas.clientWidth - GUTTER, 1);
  }

  #bound() {
    if (!this.score) return;
    const last = this.score.bars.at(-1);
    const unwritten = (this.#numBars() - this.score.bars.length) * (last?.steps ?? 96);
    const quarters = (this.score.steps + unwritten) / this.score.stepsPerQuarter;
    this.#left = Math.max(0, Math.min(this.#left, quarters - (this.#width() * 0.9) / this.perQuarter));
  }

  #fit() {
    const { clientWidth, clientHeight } = this.#canvas;
    this.#canvas.width = Math.round(clientWidth * devicePixelRatio);
    this.#canvas.height = Math.round(clientHeight * devicePixelRatio);
    this.#bound();
  }

  #stepAt(clientX) {
    const x = clientX - this.#canvas.getBoundingClientRect().left;
    return Math.max(0, ((x - GUTTER) / this.perQuarter + this.#left) * this.score.stepsPerQuarter);
  }

  #listen() {
    const canvas = this.#canvas;
    canvas.addEventListener("wheel", (event) => {
      if (!this.score) return;
      if (event.ctrlKey) {
        event.preventDefault();
        return this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
      }
      const sideways = event.shiftKey ? event.deltaY : event.deltaX;
      if (!sideways) return;
      event.preventDefault();
      this.scroll(sideways);
    }, { passive: false });
  }
}
