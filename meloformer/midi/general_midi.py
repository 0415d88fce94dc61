"""Names of the instruments and drums of General MIDI, as a legend writes them."""

from meloformer.midi.grid import DRUMS

# Programs 0..127, a line a family of eight. Source: General MIDI 1.
_PROGRAMS = """
Acoustic Grand Piano|Bright Acoustic Piano|Electric Grand Piano|Honky-tonk Piano|Electric Piano 1|Electric Piano 2|Harpsichord|Clavinet
Celesta|Glockenspiel|Music Box|Vibraphone|Marimba|Xylophone|Tubular Bells|Dulcimer
Drawbar Organ|Percussive Organ|Rock Organ|Church Organ|Reed Organ|Accordion|Harmonica|Tango Accordion
Nylon-string Guitar|Steel-string Guitar|Jazz Guitar|Clean Electric Guitar|Muted Electric Guitar|Overdriven Guitar|Distortion Guitar|Guitar Harmonics
Acoustic Bass|Fingered Electric Bass|Picked Electric Bass|Fretless Bass|Slap Bass 1|Slap Bass 2|Synth Bass 1|Synth Bass 2
Violin|Viola|Cello|Contrabass|Tremolo Strings|Pizzicato Strings|Orchestral Harp|Timpani
String Ensemble 1|String Ensemble 2|Synth Strings 1|Synth Strings 2|Choir Aahs|Voice Oohs|Synth Voice|Orchestra Hit
Trumpet|Trombone|Tuba|Muted Trumpet|French Horn|Brass Section|Synth Brass 1|Synth Brass 2
Soprano Sax|Alto Sax|Tenor Sax|Baritone Sax|Oboe|English Horn|Bassoon|Clarinet
Piccolo|Flute|Recorder|Pan Flute|Blown Bottle|Shakuhachi|Whistle|Ocarina
Square Lead|Sawtooth Lead|Calliope Lead|Chiff Lead|Charang Lead|Voice Lead|Fifths Lead|Bass and Lead
New Age Pad|Warm Pad|Polysynth Pad|Choir Pad|Bowed Pad|Metallic Pad|Halo Pad|Sweep Pad
Rain|Soundtrack|Crystal|Atmosphere|Brightness|Goblins|Echoes|Sci-fi
Sitar|Banjo|Shamisen|Koto|Kalimba|Bagpipe|Fiddle|Shanai
Tinkle Bell|Agogo|Steel Drums|Woodblock|Taiko Drum|Melodic Tom|Synth Drum|Reverse Cymbal
Guitar Fret Noise|Breath Noise|Seashore|Bird Tweet|Telephone Ring|Helicopter|Applause|Gunshot
"""  # noqa: E501
PROGRAMS = tuple(name for line in _PROGRAMS.split("\n") if line for name in line.split("|"))

_LOWEST_DRUM = 35
# Keys 35..81, shortened. Source: General MIDI 1, percussion key map.
_DRUM_KEYS = """
kick 2|kick|side stick|snare|clap|snare 2|low floor tom|closed hat|floor tom|pedal hat|low tom
open hat|mid tom 2|mid tom|crash|high tom|ride|china|ride bell|tambourine|splash|cowbell|crash 2
vibraslap
ride 2|high bongo|low bongo|mute conga|high conga|low conga|high timbale|low timbale|high agogo
low agogo|cabasa|maracas|short whistle|long whistle|short guiro|long guiro|claves|high block
low block|mute cuica|open cuica|mute triangle|triangle
"""
_DRUM_NAMES = tuple(name for line in _DRUM_KEYS.split("\n") if line for name in line.split("|"))


def instrument_name(index: int) -> str:
    """Name of an instrument of the grid: 0 drums, 1 + program otherwise.

    >>> instrument_name(0), instrument_name(41)
    ('Drums', 'Violin')
    """
    return "Drums" if index == DRUMS else PROGRAMS[index - 1]


def instrument_in_words(index: int) -> str:
    """The same with the number that flags take, for lines and titles.

    >>> instrument_in_words(0), instrument_in_words(41)
    ('drums', 'Violin (40)')
    """
    return "drums" if index == DRUMS else f"{PROGRAMS[index - 1]} ({index - 1})"


def drum_name(key: int) -> str:
    """Name of a key of the drum kit; its number where General MIDI has none.

    >>> drum_name(36), drum_name(81), drum_name(20)
    ('kick', 'triangle', '20')
    """
    place = key - _LOWEST_DRUM
    return _DRUM_NAMES[place] if 0 <= place < len(_DRUM_NAMES) else str(key)
