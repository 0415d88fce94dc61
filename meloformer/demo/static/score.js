// A piece as the page holds it: bars on a time line that grows while they are written.

const ALL_NOTES = (a, b) => a.start - b.start;

export class Score {
  constructor(stepsPerQuarter) {
    this.stepsPerQuarter = stepsPerQuarter;
    this.bars = []; // {metre, tempo, steps, startStep, start, secondsPerStep}
    this.notes = []; // by onset: {bar, instrument, pitch, velocity, startStep, endStep, start, end}
    this.steps = 0;
    this.seconds = 0;
    this.expected = 0; // bars that it will have
    this.complete = false;
  }

  static of(records, stepsPerQuarter) {
    const score = new Score(stepsPerQuarter);
    for (const record of records) score.add(record);
    // Only now is it known when a note ends that sounds into later bars.
    for (const note of score.notes) note.end = score.timeOf(note.endStep);
    score.expected = records.length;
    score.complete = true;
    return score;
  }

  add(record) {
    const secondsPerStep = 60 / (record.tempo * this.stepsPerQuarter);
    const bar = { ...record, startStep: this.steps, start: this.seconds, secondsPerStep };
    const fresh = record.notes.map(([instrument, onset, pitch, duration, velocity]) => ({
      bar: this.bars.length, instrument, pitch, velocity,
      startStep: bar.startStep + onset,
      endStep: bar.startStep + onset + duration,
      start: bar.start + onset * secondsPerStep,
      end: bar.start + (onset + duration) * secondsPerStep,
    }));
    this.bars.push(bar);
    this.notes.push(...fresh.sort(ALL_NOTES));
    this.steps += record.steps;
    this.seconds += record.steps * secondsPerStep;
    this.expected = Math.max(this.expected, this.bars.length);
    return fresh.length;
  }

  /** Seconds from the start; behind the last bar its tempo goes on. */
  timeOf(step) {
    const bar = this.bars[this.#barWhere((one) => one.startStep <= step)];
    return bar ? bar.start + (step - bar.startStep) * bar.secondsPerStep : 0;
  }

  stepAt(seconds) {
    const bar = this.bars[this.barAt(seconds)];
    return bar ? bar.startStep + (seconds - bar.start) / bar.secondsPerStep : 0;
  }

  barAt(seconds) {
    return this.#barWhere((one) => one.start <= seconds + 1e-9);
  }

  barOfStep(step) {
    return this.#barWhere((one) => one.startStep <= step);
  }

  /** First note that begins at or after a time. */
  noteAt(seconds) {
    let low = 0, high = this.notes.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.notes[middle].start < seconds - 1e-9) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Instruments that play, in the order of the grid, with the number of their notes. */
  instruments() {
    const counts = new Map();
    for (const note of this.notes) counts.set(note.instrument, (counts.get(note.instrument) ?? 0) + 1);
    return [...counts].sort((a, b) => a[0] - b[0]);
  }

  #barWhere(begins) {
    let low = 0, high = this.bars.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (begins(this.bars[middle])) low = middle + 1;
      else high = middle;
    }
    return Math.max(low - 1, 0);
  }
}
