// Who is written anew: each instrument of a piece may be kept, and others may join it.
import { gridIndex, instrumentChoices, make, onChosen } from "./panels.js";
import { current, ofPair, word } from "./words.js";

const $ = (id) => document.getElementById(id);
const MOST_NAMED = 2; // more are counted

const nameOf = (instrument) => (instrument === 0 ? "drums" : String(instrument - 1));

export class Players {
  #choices = new WeakMap(); // of each piece of the visit: {kept, joining}, sets of instruments

  /** page: take() and facts(), as for Editing; onChange is called when somebody is chosen or let go. */
  constructor(page, onChange) {
    this.page = page;
    this.onChange = onChange;
    $("players-all").addEventListener("click", () => this.#all());
    onChosen($("add-player"), (name) => this.#join(gridIndex(name)));
  }

  /** Instruments that are written, ascending: those of the piece that are not kept, and who joins. */
  get written() {
    const { kept, joining } = this.#choice;
    return [...new Set([...this.#playing, ...joining])].filter((i) => !kept.has(i)).sort((a, b) => a - b);
  }

  /** The same as the server is asked for them; null where everybody plays anew and nobody joins. */
  get names() {
    const { written } = this;
    return String(written) === String(this.#playing) ? null : written.map(nameOf);
  }

  /** In words, for a line. */
  get words() {
    const { written } = this;
    if (written.length > MOST_NAMED) return word("some_instruments", { n: written.length });
    return new Intl.ListFormat(current()).format(written.map((i) => this.#called(i)));
  }

  /** Bring the row up to date. */
  show(canChange) {
    const take = this.page.take(), { fills } = this.page.facts() ?? {};
    $("players").hidden = !take?.midi;
    if (!take?.midi) return;
    const written = new Set(this.written), playing = new Set(this.#playing);
    const shown = [...new Set([...playing, ...written])].sort((a, b) => a - b);
    const held = document.activeElement?.dataset.player;
    $("player-chips").replaceChildren(...shown.map((i) => this.#chip(i, take.colours.get(i), written.has(i), playing.has(i), canChange && fills)));
    // The chip that was pressed is another one now, or none at all.
    if (held) ($("player-chips").querySelector(`[data-player="${held}"]`) ?? $("add-player")).focus();
    $("player-tools").hidden = !fills;
    $("players-all").textContent = word(written.size === shown.length ? "players_none" : "players_all");
    $("players-all").disabled = $("add-player").disabled = !canChange;
    $("players-fixed").hidden = fills;
    $("add-player").replaceChildren(...instrumentChoices(this.page.facts(), "add_player", (i) => !shown.includes(i)));
  }

  #chip(instrument, colour, isWritten, isPlaying, canChange) {
    const dot = make("i", { className: "dot" });
    if (colour) dot.style.color = colour;
    const chip = make("button", {
      type: "button", className: isPlaying ? "player" : "player joining", "data-player": String(instrument), "aria-pressed": String(isWritten),
      title: word(isPlaying ? (isWritten ? "player_keep" : "player_write") : "player_leave", { name: this.#called(instrument) }),
    }, dot, make("span", { className: "name", text: this.#called(instrument) }));
    chip.disabled = !canChange;
    chip.addEventListener("click", () => this.#toggle(instrument, isPlaying));
    return chip;
  }

  #toggle(instrument, isPlaying) {
    const { kept, joining } = this.#choice;
    if (!isPlaying) {
      joining.delete(instrument);
      // Others were kept for its sake.
      if (!this.written.length) kept.clear();
    } else if (!kept.delete(instrument)) kept.add(instrument);
    this.onChange();
  }

  #join(instrument) {
    const { kept, joining } = this.#choice;
    // Who adds to a whole piece does not want it to be another one.
    if (!this.names) for (const i of this.#playing) kept.add(i);
    kept.delete(instrument);
    joining.add(instrument);
    this.onChange();
  }

  #all() {
    const { kept, joining } = this.#choice;
    const isWhole = this.#playing.every((i) => !kept.has(i));
    kept.clear();
    if (isWhole) {
      joining.clear();
      for (const i of this.#playing) kept.add(i);
    }
    this.onChange();
  }

  get #choice() {
    const take = this.page.take();
    if (!this.#choices.has(take)) this.#choices.set(take, { kept: new Set(), joining: new Set() });
    return this.#choices.get(take);
  }

  get #playing() {
    return this.page.take().score.instruments().map(([instrument]) => instrument);
  }

  #called(instrument) {
    return ofPair(this.page.facts().instruments[instrument]);
  }
}
