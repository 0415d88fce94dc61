// The keyboard beside the piano roll, and the drums below it.

export const GUTTER = 46; // its width
export const LANE = 74; // height of the drums
export const BLACK = new Set([1, 3, 6, 8, 10]);
export const DRUMS = 0;

/** Draw it left of a roll; frame: where pitches lie; keys that sound have the colour of their track. */
export function drawKeys(context, { height, low, high, bottom, row, hasDrums }, { score, silent, colours }, step, isPlaying) {
  const sounding = new Map();
  if (isPlaying) {
    for (const note of score.notes) {
      if (note.startStep > step) break;
      if (note.endStep > step && note.instrument !== DRUMS && !silent.has(note.instrument)) {
        sounding.set(note.pitch, colours.get(note.instrument));
      }
    }
  }
  context.fillStyle = "#0d1020";
  context.fillRect(0, 0, GUTTER, height);
  for (let pitch = low; pitch <= high; pitch++) {
    const y = bottom - (pitch - low + 1) * row;
    const tone = ((pitch % 12) + 12) % 12;
    const isBlack = BLACK.has(tone);
    context.fillStyle = sounding.get(pitch) ?? (isBlack ? "#20263f" : "#c9cfe6");
    if (!isBlack) context.fillRect(0, y, GUTTER - 2, row);
    else {
      // A black key lies over the border of two white ones.
      context.fillRect(0, y, GUTTER * 0.6, row);
      context.fillStyle = "#c9cfe6";
      context.fillRect(GUTTER * 0.6, y, GUTTER * 0.4 - 2, row);
    }
    if (isBlack || tone === 0 || tone === 5) {
      context.fillStyle = "#8d95b5";
      const from = isBlack ? GUTTER * 0.6 : 0;
      context.fillRect(from, isBlack ? y + row / 2 : y + row - 0.5, GUTTER - 2 - from, 0.75);
    }
    if (tone === 0 && row >= 6) {
      context.fillStyle = "#3a4266";
      context.font = `600 ${Math.min(10, row)}px system-ui, sans-serif`;
      context.textBaseline = "middle";
      context.textAlign = "right";
      context.fillText(`C${pitch / 12 - 1}`, GUTTER - 5, y + row / 2 + 0.5);
      context.textAlign = "left";
    }
  }
  if (hasDrums) {
    context.fillStyle = colours.get(DRUMS) ?? "#9aa3c0";
    for (const [dx, dy] of [[0, 0], [7, -8], [-7, -8]]) {
      context.beginPath();
      context.arc(GUTTER / 2 + dx, bottom + LANE / 2 + 5 + dy, 4, 0, 7);
      context.globalAlpha = dy ? 0.45 : 0.8;
      context.fill();
    }
    context.globalAlpha = 1;
  }
}
