/** Icons, drawn with a stroke on a grid of 24. */

import { svg } from "./dom.js";

/** @type {Record<string, string>} */
const PATHS = {
  upload: "M12 16V4m0 0L7 9m5-5 5 5M4 16v3a1 1 0 0 0 1 1h14a1 1 0 0 0 1-1v-3",
  camera: "M4 8h3l2-3h6l2 3h3v11H4Zm8 2.500a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7Z",
  pen: "m4 20 1-5L16 4l4 4L9 19Zm9.5-13.5 4 4",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13m-7 4v5m4-5v5",
  plus: "M12 5v14M5 12h14",
  check: "m5 13 4.5 4.500L19 7",
  warning: "M12 4 2.5 20h19ZM12 10v4.500m0 2.500v.5",
  cross: "m6 6 12 12M18 6 6 18",
  undo: "M9 6 4 11l5 5M4 11h9.500a5.5 5.5 0 0 1 0 11H11",
  back: "M11 5 4 12l7 7M4 12h16",
  turn: "M5 9a8 8 0 0 1 14 1m0-5v5h-5M19 15a8 8 0 0 1-14-1m0 5v-5h5",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8Zm0-6v2m0 16v2M2 12h2m16 0h2M5 5l1.4 1.400m11.2 11.200L19 19M5 19l1.4-1.400M17.6 6.4 19 5",
  moon: "M20 14.500A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.500Z",
  auto: "M12 3a9 9 0 1 0 0 18Zm0 0a9 9 0 0 1 0 18",
  archive: "M4 4h16v5H4Zm1 5v11h14V9m-9 4h4",
};

/** An icon that only decorates. @param {keyof typeof PATHS} name */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: PATHS[name] }));
}
