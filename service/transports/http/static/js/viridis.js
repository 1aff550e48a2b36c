/** The colour map viridis: uniform to the eye, in grey and to the colour-blind too. */

// Every fifteenth colour of Matplotlib's table (public domain, CC0), RGB; what lies between is off by five of 255 at most.
const STOPS = [
  [68, 1, 84], [71, 22, 105], [71, 42, 121], [67, 60, 132], [60, 77, 138], [53, 93, 140],
  [46, 108, 142], [40, 122, 142], [35, 137, 141], [30, 151, 138], [32, 165, 133], [46, 178, 124],
  [69, 191, 111], [100, 203, 93], [136, 213, 71], [175, 220, 46], [215, 226, 25], [253, 231, 36],
];

/** 256 colours, RGB one after the other. */
export const VIRIDIS = new Uint8ClampedArray(256 * 3);

for (let step = 0; step < 256; step += 1) {
  const place = (step / 255) * (STOPS.length - 1);
  const low = Math.min(Math.floor(place), STOPS.length - 2);
  for (let channel = 0; channel < 3; channel += 1) {
    const [from, to] = [STOPS[low][channel], STOPS[low + 1][channel]];
    VIRIDIS[step * 3 + channel] = from + (to - from) * (place - low);
  }
}
