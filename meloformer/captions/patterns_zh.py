"""Chinese sentence patterns: no spaces, full-width punctuation.

Groups hold patterns that say the same. An opening of any group may hold more units in `thing`.
"""

OPENINGS: dict[str, tuple[str, ...]] = {
    "open": (
        "{classifier}{thing}。",
        "请写{classifier}{thing}。",
        "我想要{classifier}{thing}。",
        "请创作{classifier}{thing}。",
        "这是{classifier}{thing}。",
        "给我来{classifier}{thing}。",
        "生成{classifier}{thing}。",
        "能不能做{classifier}{thing}？",
        "我在找{classifier}{thing}。",
        "我们需要{classifier}{thing}。",
        "想象{classifier}{thing}。",
        "听到的是{classifier}{thing}。",
    ),
    "open-key": (
        "{classifier}{key}的{thing}。",
        "请写{classifier}{key}的{thing}。",
        "{classifier}{thing}，{key}。",
        "用{key}写{classifier}{thing}。",
        "{classifier}以{key}写成的{thing}。",
        "{key}，{classifier}{thing}。",
        "{key}的{thing}。",
    ),
    "open-instruments": (
        "{classifier}由{instruments}演奏的{thing}。",
        "为{instruments}写{classifier}{thing}。",
        "请用{instruments}演奏{classifier}{thing}。",
        "{classifier}为{instruments}而作的{thing}。",
        "{classifier}{thing}，乐器是{instruments}。",
    ),
    "open-main": (
        "{classifier}以{main}为主的{thing}。",
        "{classifier}突出{main}的{thing}。",
        "我想在{classifier}{thing}里听到{main}。",
        "写{classifier}{thing}，以{main}为主。",
        "{classifier}围绕{main}展开的{thing}。",
    ),
    "open-bpm": (
        "{classifier}速度为{bpm}的{thing}。",
        "{classifier}{thing}，速度{bpm}。",
        "以{bpm}的速度写{classifier}{thing}。",
        "速度{bpm}，{classifier}{thing}。",
    ),
    "open-metre": (
        "{classifier}{metre}的{thing}。",
        "{classifier}{thing}，{metre}。",
        "用{metre}写{classifier}{thing}。",
        "请创作{classifier}{metre}的{thing}。",
    ),
    "open-scene": (
        "{classifier}适合{scene}的{thing}。",
        "为{scene}写{classifier}{thing}。",
        "{classifier}用于{scene}的{thing}。",
        "给{scene}配{classifier}{thing}。",
    ),
    "open-key-instruments": (
        "{classifier}由{instruments}演奏的{key}{thing}。",
        "为{instruments}写{classifier}{key}的{thing}。",
        "{classifier}{key}的{thing}，由{instruments}演奏。",
        "请用{instruments}演奏{classifier}{key}的{thing}。",
    ),
    "open-key-main": (
        "{classifier}以{main}为主的{key}{thing}。",
        "{classifier}{key}的{thing}，以{main}为主。",
        "写{classifier}{key}的{thing}，突出{main}。",
    ),
    "open-key-bpm": (
        "{classifier}{key}的{thing}，速度{bpm}。",
        "用{key}写{classifier}{thing}，速度为{bpm}。",
        "{classifier}{thing}，{key}，{bpm}。",
    ),
    "open-key-metre": (
        "{classifier}{key}、{metre}的{thing}。",
        "用{key}、{metre}写{classifier}{thing}。",
        "{classifier}{thing}，{key}，{metre}。",
    ),
    "open-exact": (
        "{classifier}{key}、{metre}的{thing}，速度{bpm}。",
        "{key}，{metre}，{bpm}：{classifier}{thing}。",
        "请写{classifier}{thing}，调性为{key}，拍号为{metre}，速度为{bpm}。",
        "以{bpm}的速度、{metre}和{key}写{classifier}{thing}。",
    ),
    "open-exact-instruments": (
        "{classifier}由{instruments}演奏的{thing}，{key}，{metre}，{bpm}。",
        "为{instruments}写{classifier}{thing}，{key}，{metre}，速度{bpm}。",
        "请写{classifier}{key}、{metre}的{thing}，速度{bpm}，乐器为{instruments}。",
        "{key}，{metre}，{bpm}，{instruments}：{classifier}{thing}。",
    ),
}

TAILS: dict[str, tuple[str, ...]] = {
    "pace": (
        "速度{pace}。",
        "整体节奏{pace}。",
        "节奏{pace}。",
        "请保持{pace}的速度。",
    ),
    "bpm": (
        "速度为{bpm}。",
        "速度是{bpm}。",
        "速度：{bpm}。",
        "以{bpm}的速度进行。",
    ),
    "key": (
        "调性是{key}。",
        "主要在{key}上。",
        "调性：{key}。",
        "全曲以{key}为主。",
        "用{key}写成。",
    ),
    "metre": (
        "拍号是{metre}。",
        "采用{metre}。",
        "拍号：{metre}。",
        "按{metre}来数。",
    ),
    "instruments": (
        "乐器有{instruments}。",
        "由{instruments}演奏。",
        "编制为{instruments}。",
        "配器：{instruments}。",
        "可以听到{instruments}。",
    ),
    "main": (
        "以{main}为主。",
        "突出{main}。",
        "{main}最为突出。",
        "大部分音符由{main}演奏。",
    ),
    "families": (
        "音色来自{families}。",
        "用到了{families}。",
        "音色类别：{families}。",
        "以{families}的音色写成。",
    ),
    "drums": (
        "有鼓。",
        "鼓组负责打节拍。",
        "其中有鼓组。",
        "带鼓组伴奏。",
    ),
    "no_drums": (
        "没有鼓。",
        "不要鼓。",
        "不用鼓组。",
        "其中没有鼓组。",
    ),
    "length": (
        "长度为{length}。",
        "全曲{length}。",
        "长度：{length}。",
        "持续{length}。",
    ),
    "density": (
        "音符{density}。",
        "织体{density}。",
        "写法上音符{density}。",
        "总体上音符{density}。",
    ),
    "notes": (
        "{notes}。",
        "平均{notes}。",
        "大致{notes}。",
        "音符密度：{notes}。",
    ),
    "register": (
        "主要在{register}。",
        "音符多在{register}。",
        "音区以{register}为主。",
        "旋律与和声集中在{register}。",
    ),
    "dynamics": (
        "力度{dynamics}。",
        "演奏力度{dynamics}。",
        "总体力度{dynamics}。",
        "整体力度{dynamics}。",
    ),
    "chords": (
        "和弦进行是{chords}。",
        "常见的和弦进行为{chords}。",
        "和弦：{chords}。",
        "和声反复回到{chords}。",
    ),
    "texture": (
        "织体为{texture}。",
        "织体：{texture}。",
        "音乐由{texture}构成。",
        "听到的是{texture}。",
    ),
    "genre": (
        "风格是{genre}。",
        "风格：{genre}。",
        "属于{genre}风格。",
        "带有{genre}的味道。",
    ),
    "mood": (
        "情绪{mood}。",
        "气氛{mood}。",
        "给人{mood}的感觉。",
        "听起来{mood}。",
    ),
    "scene": (
        "适合{scene}。",
        "可以用在{scene}。",
        "用途：{scene}。",
        "很配{scene}。",
    ),
    "two": (
        "采用{metre}，速度{bpm}。",
        "调性是{key}，拍号是{metre}。",
        "以{bpm}的速度进行，{metre}。",
        "长度为{length}，调性为{key}。",
        "在{key}上，和弦进行是{chords}。",
        "速度为{bpm}，调性为{key}。",
    ),
}

KEYWORDS: dict[str, tuple[str, ...]] = {
    "keywords": (
        "{keywords}",
        "{keywords}。",
        "标签：{keywords}",
        "音乐，{keywords}",
    ),
}
