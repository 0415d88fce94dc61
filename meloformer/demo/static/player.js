// Plays a score that may still be growing: notes are given to the synthesiser a little ahead.

const AHEAD = 0.25; // seconds
const AHEAD_HIDDEN = 1.6; // a page that is not seen is woken once a second
const TICK = 40; // milliseconds
const LEAD = 0.08; // seconds from the decision to the sound

export class Player {
  #synth = null;
  #timer = 0;
  #next = 0; // index of the next note to hand on
  #anchor = { context: 0, music: 0 };
  #needed = 1; // bars ahead that end a stall; doubles with each

  /** makeSynth is called at the first sound: browsers want a click before. */
  constructor(makeSynth, onChange) {
    this.makeSynth = makeSynth;
    this.onChange = onChange;
    this.onFirstNote = null;
    this.score = null;
    this.mode = "stopped"; // or playing, stalled
    this.position = 0; // seconds, while it does not play
  }

  get synth() {
    this.#synth ??= this.makeSynth();
    return this.#synth;
  }

  get hasSynth() {
    return this.#synth !== null;
  }

  /** Another piece, from its start. */
  load(score) {
    this.pause();
    this.score = score;
    this.position = 0;
    this.#needed = 1;
    this.onChange();
  }

  /** The same piece, better known: what was said of it bar by bar, as a whole. */
  swap(score) {
    const now = this.now();
    this.score = score;
    if (this.mode === "playing") this.#next = score.noteAt(this.#handed());
    else this.position = Math.min(now, score.seconds);
    if (this.mode === "stalled") this.#go();
    this.onChange();
  }

  now() {
    if (this.mode !== "playing") return this.position;
    const now = this.#anchor.music + this.synth.context.currentTime - this.#anchor.context;
    return Math.max(this.#anchor.music, Math.min(now, this.score.seconds));
  }

  async play() {
    if (!this.score || this.mode === "playing") return;
    const context = this.synth.context;
    if (context.state !== "running") await context.resume();
    if (this.score.complete && this.position >= this.score.seconds - 0.01) this.position = 0;
    this.#go();
  }

  pause() {
    this.position = this.now();
    this.#halt("stopped");
  }

  seek(seconds) {
    const was = this.mode;
    if (was === "playing") this.#halt("stopped");
    this.position = Math.max(0, Math.min(seconds, this.score?.seconds ?? 0));
    if (was !== "stopped") this.#go();
    else this.onChange();
  }

  /** A bar has come. */
  grew() {
    if (this.mode !== "stalled") return;
    const ahead = this.score.bars.length - this.score.barAt(this.position);
    const last = this.score.bars.length >= this.score.expected;
    if (last || ahead >= this.#needed) this.#go();
  }

  #go() {
    if (!this.score.complete && this.position >= this.score.seconds - 0.01) return this.#halt("stalled");
    this.#anchor = { context: this.synth.context.currentTime + LEAD, music: this.position };
    this.#next = this.score.noteAt(this.position);
    this.mode = "playing";
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#tick(), TICK);
    this.#tick();
    this.onChange();
  }

  #halt(mode) {
    clearInterval(this.#timer);
    if (this.mode === "playing" && mode === "stopped") this.synth.hush();
    this.mode = mode;
    this.onChange();
  }

  /** Time of the music up to which notes have been handed on. */
  #handed() {
    const ahead = document.hidden ? AHEAD_HIDDEN : AHEAD;
    return this.#anchor.music + this.synth.context.currentTime - this.#anchor.context + ahead;
  }

  #tick() {
    const { notes } = this.score;
    const until = this.#handed();
    for (; this.#next < notes.length && notes[this.#next].start < until; this.#next++) {
      const note = notes[this.#next];
      const at = Math.max(note.start - this.#anchor.music + this.#anchor.context, this.synth.context.currentTime);
      this.synth.note(note.instrument, note.pitch, note.velocity, at, at + note.end - note.start);
      if (this.onFirstNote) {
        this.onFirstNote(at - this.synth.context.currentTime);
        this.onFirstNote = null;
      }
    }
    const now = this.#anchor.music + this.synth.context.currentTime - this.#anchor.context;
    if (now < this.score.seconds) return;
    this.position = this.score.seconds;
    if (this.score.complete) {
      this.mode = "ended"; // the last notes may die away
      return this.#halt("stopped");
    }
    // The music has caught up with the writing: wait for more each time it does.
    this.#halt("stalled");
    this.#needed = Math.min(this.#needed * 2, 8);
  }
}
