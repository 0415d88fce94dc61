// A small synthesiser: a timbre per family of General MIDI, drums of noise, no samples.

// Partials of the wave; attack and release in seconds; decay towards `sustain` with a time constant
// in seconds; cutoff in multiples of the pitch.
const TIMBRES = [
  { partials: [1, 0.45, 0.25, 0.14, 0.08, 0.05], attack: 0.004, decay: 0.55, sustain: 0, release: 0.18, cutoff: 9, level: 0.9 }, // piano
  { partials: [1, 0, 0.12, 0.3, 0, 0.05], attack: 0.002, decay: 0.4, sustain: 0, release: 0.4, cutoff: 14, level: 0.75 }, // tuned percussion
  { partials: [1, 0.7, 0.5, 0.3, 0.1, 0.25, 0, 0.15], attack: 0.015, decay: 1, sustain: 1, release: 0.08, cutoff: 10, level: 0.45 }, // organ
  { partials: [1, 0.6, 0.42, 0.28, 0.18, 0.1, 0.06], attack: 0.003, decay: 0.4, sustain: 0, release: 0.12, cutoff: 7, level: 0.85 }, // guitar
  { partials: [1, 0.5, 0.2, 0.1], attack: 0.006, decay: 0.7, sustain: 0.15, release: 0.1, cutoff: 6, level: 1.05 }, // bass
  { partials: [1, 0.6, 0.45, 0.33, 0.25, 0.18, 0.12], attack: 0.06, decay: 0.5, sustain: 0.8, release: 0.2, cutoff: 6, level: 0.55, vibrato: 5 }, // solo strings
  { partials: [1, 0.55, 0.4, 0.3, 0.2, 0.15, 0.1], attack: 0.11, decay: 0.6, sustain: 0.85, release: 0.35, cutoff: 5, level: 0.5, detune: 7 }, // ensemble
  { partials: [1, 0.8, 0.7, 0.5, 0.35, 0.22, 0.14], attack: 0.035, decay: 0.3, sustain: 0.75, release: 0.12, cutoff: 7, level: 0.5 }, // brass
  { partials: [1, 0.15, 0.6, 0.12, 0.35, 0.08, 0.16], attack: 0.03, decay: 0.4, sustain: 0.8, release: 0.1, cutoff: 8, level: 0.55 }, // reeds
  { partials: [1, 0.18, 0.07, 0.03], attack: 0.05, decay: 0.5, sustain: 0.85, release: 0.12, cutoff: 8, level: 0.75, vibrato: 4 }, // flutes
  { partials: [1, 0, 0.33, 0, 0.2, 0, 0.14, 0, 0.11], attack: 0.008, decay: 0.4, sustain: 0.7, release: 0.1, cutoff: 7, level: 0.42 }, // synth lead
  { partials: [1, 0.5, 0.3, 0.2, 0.12], attack: 0.25, decay: 1, sustain: 0.9, release: 0.6, cutoff: 4, level: 0.45, detune: 9 }, // synth pads
  { partials: [1, 0.3, 0.5, 0.1, 0.3], attack: 0.12, decay: 0.8, sustain: 0.5, release: 0.6, cutoff: 6, level: 0.42, detune: 12 }, // synth effects
  { partials: [1, 0.7, 0.35, 0.45, 0.2, 0.12], attack: 0.003, decay: 0.35, sustain: 0, release: 0.15, cutoff: 9, level: 0.75 }, // folk
  { partials: [1, 0.2, 0.4, 0.1], attack: 0.002, decay: 0.18, sustain: 0, release: 0.15, cutoff: 10, level: 0.8 }, // percussion
  { partials: [1, 0.9, 0.8, 0.7, 0.6], attack: 0.05, decay: 0.4, sustain: 0.3, release: 0.3, cutoff: 4, level: 0.3 }, // effects
];
const DRUMS = 0;
const FADE = 0.02;

export class Synth {
  #waves = new Map();
  #buses = new Map();
  #voices = new Set();
  #silent = new Set();

  constructor() {
    this.context = new AudioContext({ latencyHint: "interactive" });
    const context = this.context;
    this.master = context.createGain();
    const limiter = context.createDynamicsCompressor();
    limiter.threshold.value = -14;
    limiter.ratio.value = 6;
    this.master.connect(limiter).connect(context.destination);
    this.room = context.createConvolver();
    this.room.buffer = this.#roomSound(1.4);
    const wet = context.createGain();
    wet.gain.value = 0.2;
    this.room.connect(wet).connect(this.master);
    this.noise = this.#noise(1);
  }

  set volume(value) {
    this.master.gain.setTargetAtTime(value * value * 0.9, this.context.currentTime, FADE);
  }

  /** Instruments that are not to be heard, at once. */
  silence(instruments) {
    this.#silent = new Set(instruments);
    for (const [instrument, bus] of this.#buses) {
      bus.gain.setTargetAtTime(this.#silent.has(instrument) ? 0 : 1, this.context.currentTime, FADE);
    }
  }

  /** Play a note, times in seconds of the context. */
  note(instrument, pitch, velocity, at, until) {
    const bus = this.#bus(instrument);
    const loudness = (velocity / 127) ** 1.6;
    if (instrument === DRUMS) this.#drum(bus, pitch, loudness, at);
    else this.#tone(bus, TIMBRES[(instrument - 1) >> 3], pitch, loudness, at, until);
  }

  /** End what sounds and what was to sound. */
  hush() {
    const now = this.context.currentTime;
    for (const { gain, sources } of this.#voices) {
      gain.gain.cancelScheduledValues(now);
      gain.gain.setTargetAtTime(0, now, FADE);
      for (const source of sources) source.stop(now + 8 * FADE);
    }
    this.#voices.clear();
  }

  #bus(instrument) {
    let bus = this.#buses.get(instrument);
    if (!bus) {
      bus = this.context.createGain();
      bus.gain.value = this.#silent.has(instrument) ? 0 : 1;
      const place = this.context.createStereoPanner();
      place.pan.value = instrument === DRUMS ? 0 : (((instrument * 37) % 11) / 10 - 0.5) * 0.7;
      bus.connect(place).connect(this.master);
      place.connect(this.room);
      this.#buses.set(instrument, bus);
    }
    return bus;
  }

  #keep(gain, sources) {
    const voice = { gain, sources };
    this.#voices.add(voice);
    sources[0].onended = () => {
      this.#voices.delete(voice);
      gain.disconnect();
    };
  }

  #tone(bus, timbre, pitch, loudness, at, until) {
    const context = this.context;
    const hertz = 440 * 2 ** ((pitch - 69) / 12);
    const gain = context.createGain();
    const filter = context.createBiquadFilter();
    filter.type = "lowpass";
    filter.frequency.value = Math.min(hertz * timbre.cutoff * (0.5 + loudness / 2) + 400, 16000);
    // High notes are heard as louder.
    const peak = timbre.level * loudness * 0.3 * Math.min(1.3, (330 / hertz) ** 0.25);
    const end = Math.max(until, at + timbre.attack + 0.03);
    gain.gain.setValueAtTime(0, at);
    gain.gain.linearRampToValueAtTime(peak, at + timbre.attack);
    gain.gain.setTargetAtTime(peak * timbre.sustain, at + timbre.attack, timbre.decay);
    gain.gain.setTargetAtTime(0, end, timbre.release / 3);
    const sources = (timbre.detune ? [-timbre.detune, timbre.detune] : [0]).map((cents) => {
      const source = context.createOscillator();
      source.setPeriodicWave(this.#wave(timbre));
      source.frequency.value = hertz;
      source.detune.value = cents;
      source.connect(filter);
      source.start(at);
      source.stop(end + timbre.release * 2);
      return source;
    });
    if (timbre.vibrato && end - at > 0.35) this.#tremble(sources, timbre.vibrato, at + 0.25, end);
    filter.connect(gain).connect(bus);
    this.#keep(gain, sources);
  }

  #tremble(sources, cents, from, until) {
    const slow = this.context.createOscillator();
    const depth = this.context.createGain();
    slow.frequency.value = 5.2;
    depth.gain.value = cents;
    slow.connect(depth);
    for (const source of sources) depth.connect(source.detune);
    slow.start(from);
    slow.stop(until);
  }

  #drum(bus, key, loudness, at) {
    if (key <= 36) this.#skin(bus, 130, 42, 0.16, loudness * 1.1, at); // kicks
    else if ([37, 75, 76, 77].includes(key)) this.#skin(bus, 1500, 900, 0.03, loudness * 0.4, at);
    else if ([38, 39, 40].includes(key)) {
      this.#skin(bus, 240, 160, 0.09, loudness * 0.5, at);
      this.#hiss(bus, 1400, 0.16, loudness * 0.55, at);
    } else if ([41, 43, 45, 47, 48, 50].includes(key)) {
      const hertz = 75 + (key - 41) * 14;
      this.#skin(bus, hertz * 1.6, hertz, 0.22, loudness * 0.8, at);
    } else if ([42, 44].includes(key)) this.#hiss(bus, 7500, 0.05, loudness * 0.35, at);
    else if (key === 46) this.#hiss(bus, 7000, 0.3, loudness * 0.32, at);
    else if ([49, 52, 55, 57].includes(key)) this.#hiss(bus, 4200, 1.1, loudness * 0.4, at);
    else if ([51, 53, 59].includes(key)) this.#hiss(bus, 6200, 0.5, loudness * 0.25, at);
    else this.#hiss(bus, 3200, 0.1, loudness * 0.3, at);
  }

  #skin(bus, from, to, seconds, level, at) {
    const source = this.context.createOscillator();
    source.frequency.setValueAtTime(from, at);
    source.frequency.exponentialRampToValueAtTime(to, at + seconds / 2);
    this.#struck(bus, source, source, seconds, level, at);
  }

  #hiss(bus, hertz, seconds, level, at) {
    const source = this.context.createBufferSource();
    source.buffer = this.noise;
    source.loop = true;
    const filter = this.context.createBiquadFilter();
    filter.type = "highpass";
    filter.frequency.value = hertz;
    this.#struck(bus, source, source.connect(filter), seconds, level, at);
  }

  #struck(bus, source, out, seconds, level, at) {
    const gain = this.context.createGain();
    gain.gain.setValueAtTime(level * 0.6, at);
    gain.gain.setTargetAtTime(0, at + 0.002, seconds / 2.5);
    out.connect(gain).connect(bus);
    source.start(at);
    source.stop(at + seconds * 3);
    this.#keep(gain, [source]);
  }

  #wave(timbre) {
    let wave = this.#waves.get(timbre);
    if (!wave) {
      const sine = new Float32Array([0, ...timbre.partials]);
      wave = this.context.createPeriodicWave(new Float32Array(sine.length), sine);
      this.#waves.set(timbre, wave);
    }
    return wave;
  }

  #noise(seconds) {
    const rate = this.context.sampleRate;
    const buffer = this.context.createBuffer(1, seconds * rate, rate);
    const samples = buffer.getChannelData(0);
    for (let i = 0; i < samples.length; i++) samples[i] = Math.random() * 2 - 1;
    return buffer;
  }

  #roomSound(seconds) {
    const rate = this.context.sampleRate;
    const buffer = this.context.createBuffer(2, seconds * rate, rate);
    for (const channel of [0, 1]) {
      const samples = buffer.getChannelData(channel);
      for (let i = 0; i < samples.length; i++) {
        samples[i] = (Math.random() * 2 - 1) * Math.exp((-5 * i) / samples.length) * 0.4;
      }
    }
    return buffer;
  }
}
