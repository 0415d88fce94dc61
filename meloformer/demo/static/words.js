// Every word of the page, in both languages; names of instruments come with the facts.
const WORDS = await (await fetch("words.json")).json();
const KEPT = "meloformer.language";

let language = kept() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

function kept() {
  try {
    const found = localStorage.getItem(KEPT);
    return found === "en" || found === "zh" ? found : null;
  } catch {
    return null; // a browser that keeps nothing
  }
}

export const current = () => language;

/** A word, with what stands in braces filled in: {bars} a value, {bars|bar|bars} a noun for one or for more. */
export function word(name, values = {}) {
  const text = WORDS[name]?.[language] ?? name;
  return text.replace(/\{(\w+)(?:\|(\w+)\|(\w+))?\}/g, (_, key, one, more) =>
    one === undefined ? String(values[key] ?? "") : values[key] === 1 ? one : more);
}

export const hasWord = (name) => name in WORDS;

/** One of a pair [English, Chinese] that the server has sent. */
export const ofPair = (pair) => pair[language === "zh" ? 1 : 0];

/** "Eb minor", as the server says it, in words. */
export function keyWord(key) {
  const [tonic, mode] = key.split(" ");
  const sign = { b: "flat", "#": "sharp" }[tonic[1]];
  const note = sign ? word(sign, { note: tonic[0] }) : tonic;
  return word(mode === "minor" ? "minor" : "major", { note });
}

export function choose(next) {
  language = next;
  try {
    localStorage.setItem(KEPT, next);
  } catch {
    // chosen for this visit alone
  }
}

/** Fill in all elements that name a word. */
export function fill() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = word("title");
  for (const each of document.querySelectorAll("[data-word]")) each.textContent = word(each.dataset.word);
  for (const each of document.querySelectorAll("[data-title]")) each.title = word(each.dataset.title);
  for (const each of document.querySelectorAll("[data-placeholder]")) each.placeholder = word(each.dataset.placeholder);
  for (const each of document.querySelectorAll("[data-label]")) each.setAttribute("aria-label", word(each.dataset.label));
  for (const each of document.querySelectorAll("[data-language]")) {
    each.setAttribute("aria-pressed", String(each.dataset.language === language));
  }
}
