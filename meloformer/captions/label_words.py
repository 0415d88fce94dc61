"""Genres, moods and scenes that have a name in both languages, and how to find them in a label."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from meloformer.midi.instrument_names import Name


@dataclass(frozen=True)
class Genre(Name):
    """A genre; `is_form` where a piece is one ("a waltz") and not of one ("a rock piece")."""

    is_form: bool = False


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for pair in text.split("|"):
        english, chinese = pair.split("=")
        yield english, chinese


def _forms(text: str) -> list[Genre]:
    return [Genre(*pair, is_form=True) for pair in _pairs(text)]


def _genres(text: str) -> list[Genre]:
    return [Genre(*pair) for pair in _pairs(text)]


def _names(text: str) -> list[Name]:
    return [Name(*pair) for pair in _pairs(text)]


GENRES = {
    genre.en: genre
    for genre in (
        *_genres("rock=摇滚|pop=流行|jazz=爵士|blues=布鲁斯|funk=放克|soul=灵魂乐|R&B=节奏布鲁斯"),
        *_genres("disco=迪斯科|house=浩室|techno=高科技舞曲|trance=迷幻舞曲|hip-hop=嘻哈"),
        *_genres(
            "dance=舞曲|electronic=电子|ambient=氛围|swing=摇摆乐|bebop=比博普|big band=大乐队"
        ),
        *_genres("Latin=拉丁|Afro-Cuban=非洲古巴|bossa nova=波萨诺瓦|samba=桑巴|salsa=萨尔萨"),
        *_genres("rumba=伦巴|cha-cha=恰恰|mambo=曼波|merengue=梅伦格|calypso=卡利普索|reggae=雷鬼"),
        *_genres("ska=斯卡|country=乡村|bluegrass=蓝草|folk=民谣|gospel=福音|metal=金属|punk=朋克"),
        *_genres("dixieland=迪克西兰|ragtime=拉格泰姆|boogie-woogie=布吉伍吉|doo-wop=嘟喔普"),
        *_genres("fusion=融合爵士|classical=古典|baroque=巴洛克|new age=新世纪|klezmer=克莱兹默"),
        *_genres("Broadway=百老汇|flamenco=弗拉门戈|gypsy jazz=吉普赛爵士|game=游戏|film=电影"),
        *_forms("waltz=圆舞曲|march=进行曲|polka=波尔卡|tango=探戈|ballad=抒情曲|hymn=赞美诗"),
        *_forms("foxtrot=狐步舞曲|bolero=波莱罗|beguine=贝津舞曲|fanfare=号角曲|lullaby=摇篮曲"),
        *_forms("minuet=小步舞曲|gavotte=加沃特舞曲|jig=吉格舞曲|reel=里尔舞曲|hornpipe=号笛舞曲"),
        *_forms("chorale=众赞歌|string quartet=弦乐四重奏|charleston=查尔斯顿舞曲"),
        *_forms(
            "twist=扭摆舞曲|jive=牛仔舞曲|quickstep=快步舞曲|serenade=小夜曲|show tune=音乐剧歌曲"
        ),
    )
}
MOODS = {
    mood.en: mood
    for mood in (
        *_names("happy=快乐|cheerful=欢快|sad=悲伤|melancholic=忧郁|calm=平静|peaceful=宁静"),
        *_names("dark=阴暗|gloomy=阴森|tense=紧张|menacing=凶险|epic=宏大|romantic=浪漫"),
        *_names("dramatic=富有戏剧性|mysterious=神秘|aggressive=激烈|energetic=充满活力"),
        *_names("relaxing=放松|dreamy=梦幻|playful=俏皮|solemn=庄严|majestic=雄伟|cosy=温馨"),
        *_names("triumphant=激昂|adventurous=富有冒险精神|uneasy=不安|hopeful=充满希望"),
        *_names("tender=温柔|nostalgic=怀旧|joyful=喜悦|angry=愤怒|gentle=轻柔|mellow=柔和"),
    )
}
SCENES = {
    scene.en: scene
    for scene in (
        *_names("a battle scene=战斗场景|the end of a battle=战斗结束|a boss fight=首领战"),
        *_names("a scene in a church=教堂场景|a scene at an inn=旅店场景|a castle scene=城堡场景"),
        *_names("a walk through a dungeon=地下城探险|a journey across open fields=野外旅程"),
        *_names("a scene full of mystery=神秘场景|the ending of a story=故事结尾"),
        *_names("the opening of a story=故事开场|a game-over screen=游戏结束画面"),
        *_names("a moment of triumph=胜利时刻|the discovery of an item=获得道具的时刻"),
        *_names("a funny scene=搞笑场景|a moment of doubt=疑惑时刻|a town scene=城镇场景"),
    )
}

_FORM_WORDS = tuple(word for g in GENRES.values() if g.is_form for word in (g.en, g.zh))

# Words of a label -> (kind, name) that they stand for, where they are not the name itself.
_OTHER_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "battle": (("scene", "a battle scene"), ("mood", "tense")),
    "end of battle": (("scene", "the end of a battle"), ("mood", "triumphant")),
    "boss": (("scene", "a boss fight"), ("mood", "menacing")),
    "church": (("scene", "a scene in a church"), ("mood", "solemn")),
    "inn": (("scene", "a scene at an inn"), ("mood", "cosy")),
    "castle": (("scene", "a castle scene"), ("mood", "majestic")),
    "dungeon": (("scene", "a walk through a dungeon"), ("mood", "gloomy")),
    "field": (("scene", "a journey across open fields"), ("mood", "adventurous")),
    "mystery": (("scene", "a scene full of mystery"), ("mood", "mysterious")),
    "ending": (("scene", "the ending of a story"),),
    "opening": (("scene", "the opening of a story"),),
    "game over": (("scene", "a game-over screen"), ("mood", "sad")),
    "fanfare": (("scene", "a moment of triumph"), ("mood", "triumphant")),
    "item": (("scene", "the discovery of an item"),),
    "joke": (("scene", "a funny scene"), ("mood", "playful")),
    "doubt": (("scene", "a moment of doubt"), ("mood", "uneasy")),
    "town": (("scene", "a town scene"),),
    "r b": (("genre", "R&B"),),
    "rb": (("genre", "R&B"),),
    "big band": (("genre", "big band"), ("genre", "swing")),
    "bossa": (("genre", "bossa nova"),),
    "boogie": (("genre", "boogie-woogie"),),
    "electro": (("genre", "electronic"),),
    "rhumba": (("genre", "rumba"),),
    "fox trot": (("genre", "foxtrot"),),
    "blue grass": (("genre", "bluegrass"),),
    "dixie": (("genre", "dixieland"),),
    "boggie": (("genre", "boogie-woogie"),),
    "motown": (("genre", "soul"),),
    "rave": (("genre", "techno"),),
    "trip hop": (("genre", "electronic"),),
    "cuban": (("genre", "Afro-Cuban"),),
    "bach": (("genre", "chorale"),),
    "quartet": (("genre", "string quartet"),),
    "vehicle": (("scene", "a journey across open fields"),),
    "sorrow": (("mood", "melancholic"),),
    "sorrowful": (("mood", "melancholic"),),
    "relaxed": (("mood", "relaxing"),),
}
_TABLES: dict[str, Mapping[str, Name]] = {"genre": GENRES, "mood": MOODS, "scene": SCENES}


def _plain(text: str) -> str:
    """Lower-case words with a space between: `60sRockSus` -> `s rock sus`."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    return " ".join(re.findall(r"[a-z]+", apart.lower()))


def _meanings() -> dict[str, tuple[tuple[str, str], ...]]:
    found = {
        spelling: ((kind, name),)
        for kind in ("genre", "mood")
        for name in _TABLES[kind]
        for spelling in (_plain(name), _plain(name).replace(" ", ""))
    }
    return found | _OTHER_WORDS


_MEANINGS = _meanings()
# The longest first: the end of a battle is no battle.
_ANY_MEANING = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, _MEANINGS), key=len, reverse=True)) + r")s?\b"
)


def labels_in(text: str) -> dict[str, list[str]]:
    """Genres, moods and scenes that a folder name, a file name or a label speaks of.

    >>> labels_in("JazzWaltz1")
    {'genre': ['jazz', 'waltz']}
    >>> labels_in("JEnd of Battle 1")
    {'scene': ['the end of a battle'], 'mood': ['triumphant']}
    """
    found: dict[str, list[str]] = {}
    for match in _ANY_MEANING.finditer(_plain(text)):
        for kind, name in _MEANINGS[match.group(1)]:
            if name not in found.setdefault(kind, []):
                found[kind].append(name)
    return found


def label_in_language(kind: str, label: str, language: str) -> str | None:
    """A label as a sentence of a language can hold it; None where it cannot.

    Args:
        kind: `genre`, `mood` or `scene`.
        label: a name of the tables, or a user's own word in either language.
        language: `en` or `zh`.
    """
    name = _TABLES[kind].get(label)
    if name is not None:
        return name.in_language(language)
    return label if is_chinese(label) == (language == "zh") else None


def genre_words(labels: Sequence[str], language: str) -> list[str]:
    """What the genres of a piece may be called; a genre and a form also together.

    >>> genre_words(["jazz", "waltz"], "en")
    ['jazz', 'waltz', 'jazz waltz']
    """
    words = [word for name in labels if (word := label_in_language("genre", name, language))]
    forms = [name for name in labels if name in GENRES and GENRES[name].is_form]
    styles = [name for name in labels if name in GENRES and not GENRES[name].is_form]
    if len(forms) == len(styles) == 1:
        pair = [GENRES[name].in_language(language) for name in (*styles, *forms)]
        words.append(("" if language == "zh" else " ").join(pair))
    return words


def is_form(word: str) -> bool:
    """Whether a genre's word, in either language, says what a piece is and not of what kind.

    >>> is_form("jazz waltz"), is_form("jazz"), is_form("爵士圆舞曲"), is_form("迷幻舞曲")
    (True, False, True, True)
    """
    # A Chinese genre that ends so is called a piece already.
    return word.endswith((*_FORM_WORDS, "曲"))


def is_chinese(text: str) -> bool:
    """Whether a text holds a Chinese character.

    >>> is_chinese("E小调"), is_chinese("E minor")
    (True, False)
    """
    return re.search(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]", text) is not None
