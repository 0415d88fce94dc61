"""What people call the instruments of General MIDI, in English and in Chinese.

Names are meant to stand in a sentence ("for acoustic guitar and strings"), so they are shorter
than those of the standard.
"""

from dataclasses import dataclass

from meloformer.midi.grid import DRUMS

PROGRAMS_PER_FAMILY = 8


@dataclass(frozen=True)
class Name:
    """One thing in both languages."""

    en: str
    zh: str

    def in_language(self, language: str) -> str:
        """The name in `en` or `zh`."""
        return self.zh if language == "zh" else self.en


DRUM_KIT = Name("drums", "鼓组")

# Families of eight programs, in their order. Source: General MIDI 1.
FAMILIES = (
    Name("piano", "钢琴"),
    Name("tuned percussion", "有音高的打击乐器"),
    Name("organ", "风琴"),
    Name("guitar", "吉他"),
    Name("bass", "贝斯"),
    Name("solo strings", "弦乐独奏乐器"),
    Name("string and choir ensemble", "弦乐与合唱"),
    Name("brass", "铜管乐器"),
    Name("reeds", "簧管乐器"),
    Name("flutes and pipes", "笛类乐器"),
    Name("synth lead", "合成主音"),
    Name("synth pads", "合成铺底音色"),
    Name("synth effects", "合成音效"),
    Name("folk instruments", "民族乐器"),
    Name("percussion", "打击乐器"),
    Name("sound effects", "音效"),
)

# Programs 0..127, a line a family. Source: General MIDI 1.
_PROGRAMS_EN = """
piano|bright piano|electric grand piano|honky-tonk piano|electric piano|FM electric piano|harpsichord|clavinet
celesta|glockenspiel|music box|vibraphone|marimba|xylophone|tubular bells|dulcimer
drawbar organ|percussive organ|rock organ|church organ|reed organ|accordion|harmonica|bandoneon
nylon-string guitar|steel-string guitar|jazz guitar|clean electric guitar|muted electric guitar|overdriven guitar|distorted guitar|guitar harmonics
acoustic bass|fingered electric bass|picked electric bass|fretless bass|slap bass|second slap bass|synth bass|second synth bass
violin|viola|cello|double bass|tremolo strings|pizzicato strings|harp|timpani
strings|slow strings|synth strings|second synth strings|choir|voices|synth voice|orchestra hits
trumpet|trombone|tuba|muted trumpet|French horn|brass section|synth brass|second synth brass
soprano saxophone|alto saxophone|tenor saxophone|baritone saxophone|oboe|English horn|bassoon|clarinet
piccolo|flute|recorder|pan flute|blown bottle|shakuhachi|whistle|ocarina
square-wave synth lead|sawtooth synth lead|calliope synth lead|chiff synth lead|charang synth lead|voice synth lead|fifths synth lead|low synth lead
new-age pad|warm pad|polysynth pad|choir pad|bowed pad|metallic pad|halo pad|sweep pad
rain effect|soundtrack effect|crystal effect|atmosphere effect|brightness effect|goblins effect|echoes effect|sci-fi effect
sitar|banjo|shamisen|koto|kalimba|bagpipe|fiddle|shanai
tinkle bell|agogo|steel drums|woodblock|taiko drum|melodic toms|synth drum|reversed cymbal
guitar fret noise|breath noise|seashore|birdsong|telephone ring|helicopter|applause|gunshot
"""  # noqa: E501
_PROGRAMS_ZH = """
钢琴|明亮钢琴|电子大钢琴|酒吧钢琴|电钢琴|调频电钢琴|羽管键琴|击弦古钢琴
钢片琴|钟琴|八音盒|颤音琴|马林巴|木琴|管钟|扬琴
拉杆风琴|敲击风琴|摇滚风琴|教堂管风琴|簧风琴|手风琴|口琴|班多钮手风琴
尼龙弦吉他|钢弦吉他|爵士吉他|清音电吉他|闷音电吉他|过载吉他|失真吉他|吉他泛音
原声贝斯|指弹电贝斯|拨片电贝斯|无品贝斯|击弦贝斯|第二击弦贝斯|合成贝斯|第二合成贝斯
小提琴|中提琴|大提琴|低音提琴|颤音弦乐|拨奏弦乐|竖琴|定音鼓
弦乐合奏|慢速弦乐|合成弦乐|第二合成弦乐|合唱|人声|合成人声|管弦乐齐奏
小号|长号|大号|弱音小号|圆号|铜管组|合成铜管|第二合成铜管
高音萨克斯|中音萨克斯|次中音萨克斯|上低音萨克斯|双簧管|英国管|大管|单簧管
短笛|长笛|竖笛|排箫|吹瓶|尺八|口哨|陶笛
方波主音|锯齿波主音|汽笛风琴主音|吹管主音|恰朗戈主音|人声主音|五度主音|低音主音
新世纪铺底|温暖铺底|复合铺底|合唱铺底|弓弦铺底|金属铺底|光环铺底|扫频铺底
雨声效果|电影配乐效果|水晶效果|大气效果|明亮效果|妖精效果|回声效果|科幻效果
西塔琴|班卓琴|三味线|日本筝|卡林巴|风笛|民间提琴|唢呐
铃铛|阿哥哥铃|钢鼓|木鱼|太鼓|旋律通鼓|合成鼓|反向镲
吉他品丝噪声|呼吸声|海浪声|鸟鸣|电话铃声|直升机声|掌声|枪声
"""


def _names() -> tuple[Name, ...]:
    english, chinese = (
        [name for line in text.split() for name in line.split("|")]
        if text is _PROGRAMS_ZH
        else [name for line in text.strip().splitlines() for name in line.split("|")]
        for text in (_PROGRAMS_EN, _PROGRAMS_ZH)
    )
    return tuple(Name(*pair) for pair in zip(english, chinese, strict=True))


PROGRAMS = _names()


def instrument(index: int) -> Name:
    """Name of an instrument of the grid: 0 drums, 1 + program otherwise.

    >>> instrument(0).en, instrument(41).en
    ('drums', 'violin')
    """
    return DRUM_KIT if index == DRUMS else PROGRAMS[index - 1]


def family(index: int) -> int | None:
    """Family 0..15 of an instrument of the grid; None for the drum kit.

    >>> family(41), family(0)
    (5, None)
    """
    return None if index == DRUMS else (index - 1) // PROGRAMS_PER_FAMILY
