// The lists beside the music: what may be wished for, the tracks, the pieces of this visit.
import { keyWord, ofPair, word } from "./words.js";

const COMMON_METRES = ["2/4", "3/4", "4/4", "5/4", "6/8", "9/8", "12/8"];

/** An element with a class, text and children. */
export function make(tag, { className, text, ...more } = {}, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(more)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const option = (value, text) => make("option", { value, text });

/** Fill a list of choices anew and keep what was chosen. */
function choices(select, children) {
  const chosen = select.value;
  select.replaceChildren(...children);
  select.value = chosen;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

export function fillChoices(facts, { metre, key, instrument }) {
  const group = (label, values) => make("optgroup", { label }, ...values.map((value) => option(value, value)));
  const others = facts.metres.filter((each) => !COMMON_METRES.includes(each));
  choices(metre, [option("", word("free")), group(word("common_metres"), COMMON_METRES), group(word("all_metres"), others)]);
  choices(key, [option("", word("free")), ...facts.keys.map((each) => option(each, keyWord(each)))]);
  choices(instrument, instrumentChoices(facts, "any_instrument", () => true));
}

/** Options for all instruments that are offered, by family, behind one for none. */
export function instrumentChoices(facts, none, isOffered) {
  const options = (instruments) => instruments.filter(isOffered).map((i) => option(i ? String(i - 1) : "drums", ofPair(facts.instruments[i])));
  const families = facts.families.map((pair, family) => {
    const eight = options(Array.from({ length: 8 }, (_, i) => 1 + 8 * family + i));
    return eight.length ? [make("optgroup", { label: ofPair(pair) }, ...eight)] : [];
  });
  return [option("", word(none)), ...options([0]), ...families.flat()];
}

/** Call `act` with what is chosen in a list, which then goes back to none: by mouse at once, by keys with Enter or on leaving it. */
export function onChosen(select, act) {
  let isByKeys = false; // arrows and letters go through a closed list, one choice after the other
  const choose = () => {
    const { value } = select;
    select.value = "";
    if (value) act(value);
  };
  select.addEventListener("pointerdown", () => (isByKeys = false));
  select.addEventListener("keydown", (event) => {
    isByKeys = event.key !== "Enter";
    if (isByKeys || !select.value) return;
    event.preventDefault();
    choose();
  });
  select.addEventListener("change", () => isByKeys || choose());
  select.addEventListener("blur", choose);
}

/** The name of an instrument as the server is asked for it: "drums" or a program. */
export const gridIndex = (name) => (name === "drums" ? 0 : Number(name) + 1);

export function showChips(chips, names, facts, onRemove) {
  chips.replaceChildren(
    ...names.map((name) => {
      const said = ofPair(facts.instruments[gridIndex(name)]);
      const button = make("button", { type: "button", text: "×", "aria-label": word("remove_instrument", { name: said }) });
      button.addEventListener("click", () => onRemove(name));
      return make("span", { className: "chip" }, make("span", { text: said }), button);
    }),
  );
}

export function showTracks(list, score, facts, { colours, muted, solo }, onMute, onSolo) {
  const rows = (score?.instruments() ?? []).map(([instrument, count]) => {
    const name = ofPair(facts.instruments[instrument]);
    const dot = make("i", { className: "dot" });
    dot.style.background = colours.get(instrument);
    const toggle = (letter, label, pressed, act) => {
      const button = make("button", { type: "button", text: word(letter), "aria-label": word(label, { name }), title: word(label, { name }), "aria-pressed": String(pressed) });
      button.addEventListener("click", () => act(instrument));
      return button;
    };
    return make("li", { "data-instrument": String(instrument) }, dot, make("span", { className: "name", text: name }),
      make("span", { className: "dim count", text: word("notes", { n: count }) }),
      toggle("mute_letter", "mute", muted.has(instrument), onMute), toggle("solo_letter", "solo", solo === instrument, onSolo));
  });
  list.replaceChildren(...(rows.length ? rows : [make("li", { className: "dim none", text: word("no_tracks") })]));
}

export function showTakes(list, takes, current, onPick) {
  const rows = takes.map((take) => {
    const { bars } = take.score;
    const picture = make("canvas", { width: "300", height: "80" });
    drawSmall(picture, take);
    const note = word("take_note", { bars: bars.length, tempo: Math.round(bars[0].tempo), metre: bars[0].metre.join("/") });
    const button = make("button", { type: "button", "aria-pressed": String(take === current) }, picture,
      make("b", { text: take.title() }), make("span", { className: "dim", text: note }));
    button.addEventListener("click", () => onPick(take));
    return make("li", {}, button);
  });
  list.replaceChildren(...(rows.length ? rows : [make("li", { className: "dim none", text: word("no_takes") })]));
}

function drawSmall(canvas, { score, colours }) {
  const context = canvas.getContext("2d");
  const heard = score.notes.map((note) => note.pitch);
  const low = Math.min(...heard.slice(0, 20000)) - 1, high = Math.max(...heard.slice(0, 20000)) + 1;
  for (const note of score.notes) {
    const x = (note.startStep / score.steps) * canvas.width;
    const wide = Math.max(((note.endStep - note.startStep) / score.steps) * canvas.width - 1, 1.5);
    context.fillStyle = colours.get(note.instrument);
    context.fillRect(x, canvas.height * (1 - (note.pitch - low) / (high - low)) - 2, wide, 3);
  }
}
