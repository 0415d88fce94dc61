// Whole bars are chosen in the piano roll: by dragging, with mouse or finger, or by keys.

const MOVED = 5; // pixels, from which on a click is a drag
const EDGE = 28; // pixels, within which the roll moves on under a drag
const PACE = 14; // pixels of a move
const TICK = 40; // milliseconds

const range = (a, b) => [Math.min(a, b), Math.max(a, b) + 1];

export class Picking {
  #drag = null; // {bar, x, nowX, hasMoved}
  #anchor = 0; // bars between which Shift and the arrows choose
  #head = 0;
  #timer = 0;

  /** onClick gets a time in seconds of the music; lineBar says where the line stands. */
  constructor(canvas, roll, { onClick, lineBar }) {
    this.roll = roll;
    this.onClick = onClick;
    this.lineBar = lineBar;
    canvas.addEventListener("pointerdown", (event) => this.#press(canvas, event));
    canvas.addEventListener("pointermove", (event) => this.#move(event.clientX));
    canvas.addEventListener("pointerup", (event) => this.#release(event));
    canvas.addEventListener("pointercancel", () => this.#end());
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  get #bars() {
    return this.roll.score?.bars.length ?? 0;
  }

  #press(canvas, event) {
    if (!this.#bars || event.button || !event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    this.#drag = { bar: this.roll.barAt(event.clientX), x: event.clientX, nowX: event.clientX, hasMoved: false };
  }

  #move(x) {
    const drag = this.#drag;
    if (!drag || !this.#bars) return;
    drag.nowX = x;
    if (!drag.hasMoved && Math.abs(x - drag.x) <= MOVED) return;
    if (!drag.hasMoved) {
      drag.hasMoved = true;
      this.roll.isDragged = true;
      this.#timer = setInterval(() => this.#atEdge(), TICK);
    }
    this.#anchor = drag.bar;
    this.#head = this.roll.barAt(x);
    this.roll.pick(range(this.#anchor, this.#head));
  }

  #atEdge() {
    const side = this.roll.edgeOf(this.#drag.nowX, EDGE);
    if (!side) return;
    this.roll.scroll(side * PACE);
    this.#move(this.#drag.nowX);
  }

  #release(event) {
    const drag = this.#drag;
    this.#end();
    if (!drag || drag.hasMoved || !this.#bars) return;
    if (event.shiftKey && this.roll.picked) {
      this.#head = drag.bar;
      return this.roll.pick(range(this.#anchor, this.#head));
    }
    const [first, last] = this.roll.picked ?? [0, 0];
    if (drag.bar < first || drag.bar >= last) this.roll.pick(null);
    this.onClick(this.roll.timeAt(drag.x));
  }

  #end() {
    clearInterval(this.#timer);
    this.#drag = null;
    this.roll.isDragged = false;
  }

  #key(event) {
    if (event.key === "Escape") return this.roll.pick(null);
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !this.#bars) return;
    event.preventDefault();
    const within = (bar) => Math.max(0, Math.min(bar, this.#bars - 1));
    if (!event.shiftKey) return this.onClick(this.roll.score.bars[within(this.lineBar() + move)].start);
    // The first stroke chooses the bar of the line, each further one a bar more or less.
    const { picked } = this.roll;
    if (!picked) this.#anchor = this.#head = within(this.lineBar());
    else {
      // Chosen by somebody else: it grows and shrinks at its end.
      if (String(picked) !== String(range(this.#anchor, this.#head))) [this.#anchor, this.#head] = [picked[0], picked[1] - 1];
      this.#head = within(this.#head + move);
    }
    this.roll.pick(range(this.#anchor, this.#head));
    this.roll.reveal(this.#head);
  }
}
