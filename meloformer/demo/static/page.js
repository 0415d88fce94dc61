// The page: wishes go out, bars come in, and are seen and heard at once.
import { Editing } from "./editing.js";
import { Picking } from "./picking.js";
import { Player } from "./player.js";
import { Refusal, asked, events, facts as askFacts } from "./requests.js";
import { Roll, colourOf } from "./roll.js";
import { fillChoices, onChosen, showChips, showTakes, showTracks } from "./panels.js";
import { Score } from "./score.js";
import { Synth } from "./synth.js";
import * as words from "./words.js";
import { word } from "./words.js";

const $ = (id) => document.getElementById(id);
const MAX_SEED = 2 ** 31;

let facts = null;
let chosen = []; // instruments that are wished for
let takes = []; // {score, midi, name, colours, title, earlier: [{score, midi}]}
let take = null; // the one that is heard
let muted = new Set();
let solo = null;
let said = () => ""; // the status, in whatever language
let failed = null; // the error, likewise
let asking = null; // {controller, name, isStopped}: what the server works at

const player = new Player(
  () => {
    const synth = new Synth();
    synth.volume = Number($("volume").value);
    return synth;
  },
  () => showPlaying(),
);
const roll = new Roll($("roll"));
new Picking($("roll"), roll, {
  onClick: (seconds) => player.seek(seconds),
  lineBar: () => player.score.barAt(player.now()),
});
const editing = new Editing(roll, player, {
  facts: () => facts,
  take: () => take,
  isBusy: () => Boolean(asking),
  wishes: drawOrKeep,
  ask: (path, body, onEvent) => askInLine(path, body, onEvent),
  writing: (name, status) => {
    asking.name = name;
    showState("writing");
    say(status);
  },
  scoreOf: (event) => Score.of(event.bars, facts.steps_per_quarter),
  adopt,
});

// ---- what is shown -------------------------------------------------------------------------

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

function showPlaying() {
  document.body.dataset.playing = player.mode;
  const has = Boolean(player.score?.bars.length);
  for (const id of ["play", "rewind"]) $(id).disabled = !has;
  if (player.mode === "stalled") say(() => word("status_stalled"));
}

function showState(state) {
  document.body.dataset.state = state;
  $("download").disabled = !take?.midi;
  $("empty").hidden = Boolean(take);
  editing.show();
}

function say(status) {
  said = status;
  $("status").textContent = said();
}

function complain(error) {
  failed = error;
  const isKnown = words.hasWord(`error_${error.code}`);
  $("error-line").textContent = isKnown ? word(`error_${error.code}`, error.values) : word("error_refused", { line: error.message });
  $("error").hidden = false;
}

function clearError() {
  failed = null;
  $("error").hidden = true;
}

function showTrackList() {
  const score = player.score;
  const silent = new Set((score?.instruments() ?? []).map(([i]) => i).filter((i) => (solo === null ? muted.has(i) : i !== solo)));
  roll.silent = silent;
  if (player.hasSynth) player.synth.silence(silent);
  showTracks($("tracks"), score, facts, { colours: roll.colours, muted, solo }, (i) => {
    if (!muted.delete(i)) muted.add(i);
    showTrackList();
  }, (i) => {
    solo = solo === i ? null : i;
    showTrackList();
  });
}

function showTakeList() {
  showTakes($("takes"), takes, take, (picked) => {
    if (asking) return;
    use(picked);
    player.play();
  });
}

function showWords() {
  words.fill();
  if (!facts) return;
  const parameters = new Intl.NumberFormat(words.current(), { notation: "compact", maximumFractionDigits: 1 }).format(facts.parameters);
  $("model").textContent = word("model", { parameters, layers: facts.layers });
  $("text-note").textContent = word(facts.bridge ? "text_note" : "text_off");
  $("bars").placeholder = facts.bridge ? word("bars_by_text") : "16";
  fillChoices(facts, { metre: $("metre"), key: $("key"), instrument: $("add-instrument") });
  showChosen();
  showTrackList();
  showTakeList();
  editing.show();
  say(said);
  if (failed) complain(failed);
}

function showChosen() {
  showChips($("chips"), chosen, facts, (name) => {
    chosen = chosen.filter((other) => other !== name);
    showChosen();
  });
  $("add-instrument").options[0].textContent = word(chosen.length ? "add_instrument" : "any_instrument");
}

function colourTracks(colours, score) {
  for (const [instrument] of score.instruments()) {
    if (!colours.has(instrument)) colours.set(instrument, colourOf(colours.size));
  }
}

let drawn = 0; // when, in milliseconds

function frame(at) {
  requestAnimationFrame(frame);
  // Drawing takes from the cores that the model writes on: not oftener than is seen.
  const rest = roll.isDragged ? 0 : player.mode !== "playing" ? 120 : asking ? 30 : 0;
  if (at - drawn < rest) return;
  drawn = at;
  const now = player.now();
  roll.draw(now, player.mode === "playing");
  $("now").textContent = clock(now);
  $("whole").textContent = `/ ${clock(player.score?.seconds ?? 0)}`;
}

// ---- pieces --------------------------------------------------------------------------------

/** Let a piece be the one that is seen and heard. */
function use(next) {
  take = next;
  muted = new Set();
  solo = null;
  player.load(next.score);
  roll.colours = next.colours;
  colourTracks(next.colours, next.score);
  roll.load(next.score);
  showTrackList();
  showTakeList();
  const { bars, notes, complete } = next.score;
  if (complete) say(() => word("status_done", { bars: bars.length, notes: notes.length }));
  showState(document.body.dataset.state);
}

function finish(event, title) {
  take.title = title;
  takes = [take, ...takes.filter((other) => other !== take)];
  adopt({ score: Score.of(event.bars, facts.steps_per_quarter), midi: event.midi });
}

/** Let the piece be another version of itself. */
function adopt({ score, midi }) {
  take.score = score;
  take.midi = midi;
  colourTracks(take.colours, score);
  player.swap(score);
  roll.swap(score);
  showTrackList();
  showTakeList();
  editing.show();
  say(() => word("status_done", { bars: score.bars.length, notes: score.notes.length }));
}

/** Ask the server, and tell each event; whatever is refused is shown. */
async function ask(path, body, onEvent) {
  clearError();
  asking = { controller: new AbortController(), name: null };
  showState("asking");
  try {
    for await (const event of events(path, body, asking.controller.signal)) onEvent(event);
  } catch (error) {
    const isWanted = error.name === "AbortError" || (asking.isStopped && error.code === "not_rewritten");
    if (!isWanted) complain(error instanceof Refusal ? error : new Refusal({ code: "connection" }));
    abandon();
  }
  asking = null;
  showState(take ? "ready" : "idle");
}

/** The same of what others may wait for, too. */
function askInLine(path, body, onEvent) {
  say(() => word("status_joining"));
  return ask(path, body, (event) => {
    if (event.event !== "waiting") return onEvent(event);
    showState("waiting");
    say(() => word("status_waiting", event));
  });
}

/** Nothing more will come of the piece that was begun. */
function abandon() {
  if (take?.score.complete) return say(() => word("status_done", { bars: take.score.bars.length, notes: take.score.notes.length }));
  player.pause();
  if (takes.length) return use(takes[0]);
  take = null;
  player.load(null);
  roll.load(null);
  showTrackList();
  say(() => "");
}

const ofNumber = (id) => ($(id).value.trim() === "" ? null : Number($(id).value));

/** What each writing goes by: a seed, a new one if so wished, and the temperature. */
function drawOrKeep() {
  if ($("new-seed").checked) drawSeed();
  return { temperature: Number($("temperature").value), seed: ofNumber("seed") ?? 0 };
}

async function write() {
  performance.clearMarks("click");
  performance.mark("click");
  player.pause();
  player.synth.context.resume(); // while the click still counts
  player.onFirstNote = (ahead) => performance.measure("click-to-first-note", { start: "click", end: performance.now() + 1000 * ahead });
  const wish = {
    text: facts.bridge ? $("text").value : null,
    strict: facts.strict ? $("strict").checked : null,
    bars: ofNumber("bars"),
    tempo: ofNumber("tempo"),
    time_signature: $("metre").value || null,
    key: $("key").value || null,
    instruments: chosen,
    ...drawOrKeep(),
  };
  await askInLine("api/write", asked(wish), (event) => {
    if (event.event === "begin") begin(event);
    else if (event.event === "bar") grow(event);
    else if (event.event === "piece") finish(event, () => word("take_title", { seed: event.seed }));
  });
}

function begin(event) {
  asking.name = event.name;
  const score = new Score(facts.steps_per_quarter);
  score.expected = event.bars;
  use({ score, midi: null, name: `meloformer-${event.seed}.mid`, colours: new Map(), title: () => "", earlier: [] });
  showState("writing");
  say(() => word("status_thinking", { bars: event.bars }));
}

function grow(event) {
  const { score } = take;
  score.add(event);
  colourTracks(take.colours, score);
  showTrackList();
  showPlaying();
  say(() => word("status_writing", { bar: score.bars.length, bars: score.expected }));
  if (score.bars.length === 1) player.play();
  else player.grew();
}

async function openFile(file) {
  if (asking || !file) return;
  if (file.size > facts.max_upload_bytes) return complain(new Refusal({ code: "too_large", values: { most: facts.max_upload_bytes } }));
  player.pause();
  say(() => word("status_reading"));
  await ask("api/open", file, (event) => {
    if (event.event !== "piece") return;
    const score = Score.of(event.bars, facts.steps_per_quarter);
    use({ score, midi: null, name: `${file.name.replace(/\.midi?$/i, "")}-meloformer.mid`, colours: new Map(), title: () => "", earlier: [] });
    finish(event, () => file.name);
    player.play();
  });
}

async function stop() {
  const stopped = asking; // another one may have begun when the server answers
  if (stopped) stopped.isStopped = true;
  if (!stopped?.name) return stopped?.controller.abort();
  try {
    for await (const _ of events("api/stop", asked({ name: stopped.name }))); // the piece ends with its last bar
  } catch (error) {
    // It has ended by itself: the piece is on its way.
    if (error.code !== "nothing_to_stop") stopped.controller.abort();
  }
}

function download() {
  const bytes = Uint8Array.from(atob(take.midi), (letter) => letter.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "audio/midi" }));
  link.download = take.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function drawSeed() {
  $("seed").value = Math.floor(Math.random() * MAX_SEED);
}

// ---- what a user does ----------------------------------------------------------------------

const toggle = () => (player.mode === "stopped" ? (roll.follow(), player.play()) : player.pause());

function listen() {
  $("wishes").addEventListener("submit", (event) => {
    event.preventDefault();
    if (asking) stop();
    else write();
  });
  $("halt").addEventListener("click", stop);
  $("play").addEventListener("click", toggle);
  $("rewind").addEventListener("click", () => (roll.toStart(), player.seek(0)));
  $("download").addEventListener("click", download);
  $("volume").addEventListener("input", () => player.hasSynth && (player.synth.volume = Number($("volume").value)));
  $("temperature").addEventListener("input", () => ($("temperature-value").value = Number($("temperature").value).toFixed(2)));
  $("dice").addEventListener("click", () => (drawSeed(), ($("new-seed").checked = false)));
  $("seed").addEventListener("input", () => ($("new-seed").checked = false));
  $("zoom-in").addEventListener("click", () => roll.zoom(1.3));
  $("zoom-out").addEventListener("click", () => roll.zoom(1 / 1.3));
  $("error-close").addEventListener("click", clearError);
  onChosen($("add-instrument"), (name) => {
    if (!chosen.includes(name)) chosen.push(name);
    showChosen();
  });
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => (words.choose(button.dataset.language), showWords()));
  }
  $("open").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", ({ target }) => (openFile(target.files[0]), (target.value = "")));
  document.addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("dropping")));
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    openFile(event.dataTransfer.files[0]);
  });
  document.addEventListener("keydown", (event) => {
    const isText = event.target.closest("input:not([type=range], [type=checkbox]), textarea");
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !isText) return (event.preventDefault(), editing.undo());
    if (event.target.closest("input:not([type=range]), textarea, select, button")) return;
    if (event.code === "Space") (event.preventDefault(), toggle());
  });
}

async function start() {
  listen();
  showWords();
  drawSeed();
  requestAnimationFrame(frame);
  try {
    facts = await askFacts();
  } catch (error) {
    return complain(error);
  }
  $("text").disabled = !facts.bridge;
  $("text").maxLength = facts.max_text;
  $("strict-row").hidden = !facts.strict;
  $("bars").max = $("more").max = facts.max_bars;
  $("more").value = Math.min(8, facts.max_bars);
  [$("tempo").min, $("tempo").max] = facts.tempo;
  $("temperature-value").value = Number($("temperature").value).toFixed(2);
  showWords();
  showState("idle");
  document.body.dataset.ready = "yes";
}

start();
