"""Chinese words for the units of a caption, and the finish of a sentence."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from meloformer.captions.label_words import genre_words, is_form, label_in_language
from meloformer.captions.phrases_en import chord_signs
from meloformer.captions.units import families_of
from meloformer.captions.word_bins import brief_bin, density_word_bin, pace_bin
from meloformer.midi.instrument_names import FAMILIES, instrument

LIST_COMMA = "，"

_PACE = (
    ("非常缓慢", "极慢"),
    ("缓慢", "很慢"),
    ("舒缓", "从容"),
    ("适中", "中等"),
    ("轻快", "较快"),
    ("很快", "偏快"),
    ("极快", "非常快"),
)
_PACE_OF_A_PIECE = (
    ("非常缓慢", "极慢"),
    ("缓慢", "慢速"),
    ("舒缓", "从容"),
    ("中速", "速度适中"),
    ("轻快", "稍快"),
    ("快速", "急促"),
    ("极快", "飞快"),
)
_BRIEF = (("短小", "简短"), ("长度适中",), ("篇幅较长", "较长"))
_DENSITY = (("稀疏", "稀少"), ("疏密适中", "不疏不密"), ("密集", "繁密"))
_DENSITY_OF_A_PIECE = (("音符稀疏",), (), ("音符密集", "织体繁密"))
_DYNAMICS = {"soft": ("轻柔", "较弱"), "moderate": ("适中", "中等"), "loud": ("强劲", "较强")}
_DYNAMICS_OF_A_PIECE = {"soft": ("安静", "轻声"), "moderate": (), "loud": ("响亮", "强劲有力")}
_REGISTER = {"low": "低音区", "middle": "中音区", "high": "高音区"}
_TEXTURE = {
    "percussion": ("打击乐",),
    "monophonic": ("单声部旋律", "一条没有伴奏的旋律"),
    "thin": ("两三个稀薄的声部", "少数几条旋律线"),
    "chordal": ("成块的和弦", "丰满的和弦"),
    "polyphonic": ("多个独立的声部", "相互交织的声部"),
    "layered": ("层层叠加的声部", "丰富的多层音响"),
}
_NOUNS = (("一首", "乐曲"), ("一首", "曲子"), ("一段", "音乐"))
_TONICS = {
    "C#": ("升C", "降D"),
    "Eb": ("降E", "升D"),
    "F#": ("升F", "降G"),
    "Ab": ("降A", "升G"),
    "Bb": ("降B", "升A"),
}
# Spellings that nobody uses: seven or more sharps or flats.
_UNUSUAL = {"升C大调", "升D大调", "升G大调", "升A大调", "降D小调", "降G小调", "升A小调", "降A小调"}
_DIGITS = "零一二三四五六七八九"


def key_phrase(name: str, random: random.Random) -> str:
    """`Eb minor` as `降E小调` or `升D小调`."""
    tonic, mode = name.split()
    ending = "大调" if mode == "major" else "小调"
    keys = [tonic + ending for tonic in _TONICS.get(tonic, (tonic,))]
    return random.choice([key for key in keys if key not in _UNUSUAL])


def metre_phrase(metre: str, random: random.Random) -> str:
    """`3/4` as `3/4拍` or `四三拍`."""
    numerator, denominator = map(int, metre.split("/"))
    if max(numerator, denominator) < len(_DIGITS) and random.random() < 0.3:
        return f"{_DIGITS[denominator]}{_DIGITS[numerator]}拍"
    return f"{metre}拍"


def length_phrase(attributes: Mapping[str, Any], random: random.Random) -> str:
    """`16小节`, or the seconds where they are known."""
    bars, seconds = attributes["bars"], attributes.get("seconds")
    if seconds is None or random.random() < 0.5:
        return f"{bars}小节"
    if seconds < 90:
        return f"{max(round(seconds / 5) * 5, 5)}秒左右"
    minutes, half = divmod(round(seconds / 30), 2)
    # 两, not 二, counts things.
    number = {2: "两"}.get(minutes, str(minutes))
    return f"{number}分{'半' if half else ''}钟左右"


def joined(names: Sequence[str]) -> str:
    """`甲`, `甲和乙`, `甲、乙和丙`."""
    return names[0] if len(names) == 1 else f"{'、'.join(names[:-1])}和{names[-1]}"


def phrase(unit: str, attributes: Mapping[str, Any], random: random.Random) -> str:
    """Words for the slot of a unit that the attributes know."""
    labels = attributes.get("labels") or {}
    match unit:
        case "pace":
            return random.choice(_PACE[pace_bin(attributes["tempo_bpm"])])
        case "bpm":
            bpm = round(attributes["tempo_bpm"])
            return random.choice((f"每分钟{bpm}拍", f"{bpm}BPM", f"{bpm}BPM左右"))
        case "key":
            return key_phrase(attributes["key"], random)
        case "metre":
            return metre_phrase(attributes["metre"], random)
        case "instruments":
            return joined([instrument(index).zh for index in attributes["instruments"]])
        case "main":
            return joined([instrument(index).zh for index in attributes["main_instruments"]])
        case "families":
            return joined([FAMILIES[index].zh for index in families_of(attributes)])
        case "length":
            return length_phrase(attributes, random)
        case "density":
            return random.choice(_DENSITY[density_word_bin(attributes["density"])])
        case "notes":
            return f"每个四分音符有{max(round(attributes['density']), 1)}个音"
        case "register":
            return _REGISTER[attributes["register"]]
        case "dynamics":
            return random.choice(_DYNAMICS[attributes["dynamics"]])
        case "chords":
            return random.choice(("、", "-")).join(chord_signs(attributes))
        case "texture":
            return random.choice(_TEXTURE[attributes["texture"]])
        case "genre":
            return random.choice(genre_words(labels["genre"], "zh"))
        case "mood" | "scene":
            known = [label_in_language(unit, label, "zh") for label in labels[unit]]
            return random.choice([label for label in known if label is not None])
    raise AssertionError(f"no Chinese words for {unit}")


def adjective(unit: str, attributes: Mapping[str, Any], random: random.Random) -> str | None:
    """A word that stands before the noun; None where this value has none."""
    words: tuple[str, ...] = ()
    match unit:
        case "pace":
            words = _PACE_OF_A_PIECE[pace_bin(attributes["tempo_bpm"])]
        case "brief":
            words = _BRIEF[brief_bin(attributes)]
        case "density":
            words = _DENSITY_OF_A_PIECE[density_word_bin(attributes["density"])]
        case "dynamics":
            words = _DYNAMICS_OF_A_PIECE[attributes["dynamics"]]
        case "mood":
            return phrase(unit, attributes, random)
    return random.choice(words) if words else None


def thing(adjectives: Sequence[str], genre: str | None, random: random.Random) -> dict[str, str]:
    """The slots `classifier` and `thing`: adjectives, genre and noun."""
    classifier, noun = random.choice(_NOUNS)
    if genre is not None:
        if genre.endswith("乐"):  # 灵魂乐乐曲 would say it twice
            classifier, noun = "一首", "作品"
        classifier, noun = ("一首", genre) if is_form(genre) else (classifier, genre + noun)
    before = f"{'、'.join(adjectives)}的" if adjectives else ""
    # 快速摇滚乐曲 beside 快速的摇滚乐曲.
    if genre is not None and len(before) == 3 and random.random() < 0.5:
        before = before[:-1]
    return {"classifier": classifier, "thing": before + noun}


def keyword(unit: str, attributes: Mapping[str, Any], random: random.Random) -> str:
    """Words for a unit in a list of keywords."""
    if unit in ("drums", "no_drums"):
        return "有鼓" if unit == "drums" else "无鼓"
    if unit in ("instruments", "main"):
        indices = attributes["instruments" if unit == "instruments" else "main_instruments"]
        return LIST_COMMA.join(instrument(index).zh for index in indices)
    if unit in ("pace", "brief"):
        word = adjective(unit, attributes, random)
        assert word is not None
        return word
    words = phrase(unit, attributes, random)
    return {
        "chords": f"和弦{words}",
        "dynamics": f"力度{words}",
        "density": f"音符{words}",
    }.get(unit, words)


def finish(text: str) -> str:
    """No space between sentences, and one 的 where two would follow each other closely.

    >>> finish("一首B小调的极快的曲子。 没有鼓。")
    '一首B小调极快的曲子。没有鼓。'
    """
    text = re.sub(r"(?<=[。？]) ", "", text)
    return re.sub(r"([调拍])的([^\W的]{2,5}的)", r"\1\2", text)
