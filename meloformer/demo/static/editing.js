// Bars of a piece are written anew, by all or by some, or new ones behind its end; each change can be undone.
import { Players } from "./players.js";
import { asked } from "./requests.js";
import { current, word } from "./words.js";

const $ = (id) => document.getElementById(id);

/** "bars 5–8" in words; the page counts from 1, all else from 0. */
const barWords = ([first, last]) => (last - first === 1 ? word("one_bar", { bar: first + 1 }) : word("some_bars", { first: first + 1, last }));

/** Sentences, one after the other; those that are false are left out. */
const together = (sentences) => sentences.filter(Boolean).join(current() === "zh" ? "" : " ");

export class Editing {
  #notices = []; // what the server said of the last change, as codes

  /**
   * page: what the page does for it: facts(), take(), isBusy(), wishes() for seed and temperature,
   * ask(path, body, onEvent), named(name), say(status), adopt(version).
   */
  constructor(roll, player, page) {
    Object.assign(this, { roll, player, page });
    const onChoice = () => {
      this.#notices = [];
      this.show();
    };
    roll.onPick = onChoice;
    this.players = new Players(page, onChoice);
    $("rewrite").addEventListener("click", () => this.#change(this.#bars, this.players.names));
    $("unpick").addEventListener("click", () => roll.pick(null));
    $("go-on").addEventListener("click", () => this.#goOn());
    $("undo").addEventListener("click", () => this.undo());
  }

  /** Bars to be written anew: those that are chosen; all of them where some play and others are kept. */
  get #bars() {
    const take = this.page.take();
    return this.roll.picked ?? (take?.midi && this.players.names ? [0, take.score.bars.length] : null);
  }

  /** Bring the buttons up to date. */
  show() {
    const take = this.page.take(), { picked } = this.roll, bars = this.#bars;
    const canChange = Boolean(take?.midi) && !this.page.isBusy();
    $("edit").hidden = !take;
    this.players.show(canChange);
    $("rewrite").textContent = bars ? word("rewrite", { bars: this.#inWords(bars) }) : word("rewrite_none");
    $("rewrite").disabled = !canChange || !bars || this.#isTooLong(bars) || !this.players.written.length;
    $("unpick").hidden = !picked;
    for (const id of ["go-on", "more"]) $(id).disabled = !canChange;
    $("undo").disabled = !canChange || !take.earlier.length;
    $("edit-note").textContent = this.#note(take, bars);
  }

  #note(take, bars) {
    const isNearest = this.#notices.includes("nearest"), isInParts = this.#notices.includes("in_parts");
    const said = [isInParts && word("notice_in_parts"), isNearest && word("notice_nearest")];
    if (!bars) return together(said) || word("pick_how");
    if (!this.players.written.length) return word("nobody");
    if (this.#isTooLong(bars)) return word("error_too_many_bars", { most: this.page.facts().max_bars });
    const hasMore = bars[1] < take.score.bars.length;
    const isBlind = this.#notices.includes("no_fill") || (hasMore && !this.page.facts().fills);
    const values = { bars: this.#inWords(bars), names: this.players.words };
    return together([
      this.players.names ? word("picked_players", values) : word("picked", values),
      isBlind && word("notice_no_fill"),
      ...said,
    ]);
  }

  #inWords(bars) {
    return this.roll.picked ? barWords(bars) : word("all_bars");
  }

  #isTooLong(bars) {
    return bars[1] - bars[0] > this.page.facts().max_bars;
  }

  undo() {
    const take = this.page.take();
    if (this.page.isBusy() || !take?.earlier.length) return;
    this.#notices = [];
    this.page.adopt(take.earlier.pop());
  }

  #goOn() {
    const take = this.page.take();
    const most = this.page.facts().max_bars;
    const more = Math.round(Math.max(1, Math.min(Number($("more").value) || 1, most)));
    $("more").value = more;
    const end = take.score.bars.length;
    this.#change([end, end + more], null);
  }

  /** Ask for bars; instruments: names of those that are written, null for all. */
  async #change(bars, instruments) {
    const take = this.page.take();
    if (!bars || this.page.isBusy() || !take?.midi) return;
    const before = { score: take.score, midi: take.midi };
    const isNew = bars[0] === before.score.bars.length;
    const heard = [];
    let isDone = false;
    this.player.synth.context.resume(); // while the click still counts
    this.#notices = [];
    this.roll.pending = bars;
    this.roll.pendingPlayers = instruments && new Set(this.players.written);
    if (isNew) this.roll.reveal(bars[0]);
    const status = () => word(isNew ? "status_going_on" : "status_rewriting", { bars: barWords(bars) });
    await this.page.ask("api/change", asked({ midi: take.midi, first: bars[0], last: bars[1], instruments, ...this.page.wishes() }), (event) => {
      if (event.event === "begin") this.page.writing(event.name, status);
      else if (event.event === "notice") heard.push(event.code);
      else if (event.event === "piece") {
        take.earlier.push(before);
        this.page.adopt({ score: this.page.scoreOf(event), midi: event.midi });
        isDone = true;
      }
    });
    this.roll.pending = null;
    if (isDone && isNew) this.roll.pick([bars[0], take.score.bars.length]);
    this.#notices = heard;
    this.show();
    // The button that was pressed has gone meanwhile: keys go to the music, space plays it.
    if (document.activeElement === document.body) $("roll").focus({ preventScroll: true });
    if (isDone && this.player.mode === "stopped") {
      this.player.seek(take.score.bars[Math.min(bars[0], take.score.bars.length - 1)].start);
      this.roll.follow();
      this.player.play();
    }
  }
}
