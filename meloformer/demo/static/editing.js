// Bars of a piece are written anew, or new ones behind its end; each change can be undone.
import { asked } from "./requests.js";
import { word } from "./words.js";

const $ = (id) => document.getElementById(id);

/** "bars 5–8" in words; the page counts from 1, all else from 0. */
const barWords = ([first, last]) => (last - first === 1 ? word("one_bar", { bar: first + 1 }) : word("some_bars", { first: first + 1, last }));

export class Editing {
  #notices = []; // what the server said of the last change, as codes

  /**
   * page: what the page does for it: facts(), take(), isBusy(), wishes() for seed and temperature,
   * ask(path, body, onEvent), named(name), say(status), adopt(version).
   */
  constructor(roll, player, page) {
    Object.assign(this, { roll, player, page });
    roll.onPick = () => {
      this.#notices = [];
      this.show();
    };
    $("rewrite").addEventListener("click", () => this.#change(roll.picked));
    $("unpick").addEventListener("click", () => roll.pick(null));
    $("go-on").addEventListener("click", () => this.#goOn());
    $("undo").addEventListener("click", () => this.undo());
  }

  /** Bring the row of buttons up to date. */
  show() {
    const take = this.page.take(), { picked } = this.roll;
    const canChange = Boolean(take?.midi) && !this.page.isBusy();
    $("edit").hidden = !take;
    $("rewrite").textContent = picked ? word("rewrite", { bars: barWords(picked) }) : word("rewrite_none");
    $("rewrite").disabled = !canChange || !picked;
    $("unpick").hidden = !picked;
    for (const id of ["go-on", "more"]) $(id).disabled = !canChange;
    $("undo").disabled = !canChange || !take.earlier.length;
    $("edit-note").textContent = this.#note(take, picked);
  }

  #note(take, picked) {
    if (!picked) return word(this.#notices.includes("nearest") ? "notice_nearest" : "pick_how");
    const hasMore = take && picked[1] < take.score.bars.length;
    const isBlind = this.#notices.includes("no_fill") || (hasMore && !this.page.facts()?.fills);
    return [
      word("picked", { bars: barWords(picked) }),
      isBlind && word("notice_no_fill"),
      this.#notices.includes("nearest") && word("notice_nearest"),
    ].filter(Boolean).join(" ");
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
    this.#change([end, end + more]);
  }

  async #change(bars) {
    const take = this.page.take();
    if (!bars || this.page.isBusy() || !take?.midi) return;
    const before = { score: take.score, midi: take.midi };
    const isNew = bars[0] === before.score.bars.length;
    const heard = [];
    let isDone = false;
    this.player.synth.context.resume(); // while the click still counts
    this.#notices = [];
    this.roll.pending = bars;
    if (isNew) this.roll.reveal(bars[0]);
    const status = () => word(isNew ? "status_going_on" : "status_rewriting", { bars: barWords(bars) });
    await this.page.ask("api/change", asked({ midi: take.midi, first: bars[0], last: bars[1], ...this.page.wishes() }), (event) => {
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
