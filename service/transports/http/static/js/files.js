/** Images out of a drop or a paste, folders included. */

const IMAGE = /\.(png|jpe?g|webp|bmp|gif|tiff?)$/i;

/**
 * All files of a drop or a paste. Of folders, the images; of what was dropped itself, whatever it is: the server says
 * what it cannot read.
 *
 * @param {DataTransfer} transfer
 * @returns {Promise<File[]>}
 */
export async function filesOf(transfer) {
  // Entries have to be asked for at once: the list is empty after the event.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  if (!entries.some((entry) => entry?.isDirectory)) return [...transfer.files];
  const found = await Promise.all(entries.map((entry) => (entry ? walk(entry, true) : [])));
  return found.flat();
}

/** @param {FileSystemEntry} entry @param {boolean} [outermost] @returns {Promise<File[]>} */
async function walk(entry, outermost = false) {
  if (entry.isFile) {
    if (!outermost && !IMAGE.test(entry.name)) return [];
    return [await new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject))];
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  /** @type {File[]} */
  const found = [];
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return found;
    for (const each of some) found.push(...(await walk(each)));
  }
}

/**
 * Take what is dropped on an element.
 *
 * @param {HTMLElement} element gets the class `over` while something hovers over it
 * @param {(files: File[]) => void} onFiles
 */
export function takeDrops(element, onFiles) {
  let depth = 0; // events come for children too
  const over = (/** @type {number} */ by) => {
    depth = Math.max(0, depth + by);
    element.classList.toggle("over", depth > 0);
  };
  element.addEventListener("dragenter", (event) => {
    event.preventDefault();
    over(1);
  });
  element.addEventListener("dragleave", () => over(-1));
  element.addEventListener("dragover", (event) => event.preventDefault());
  element.addEventListener("drop", () => over(-depth), { capture: true }); // also where a child takes it
  element.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    const files = event.dataTransfer ? await filesOf(event.dataTransfer) : [];
    if (files.length) onFiles(files);
  });
}

/**
 * Take images that are pasted anywhere but into a field.
 *
 * @param {(files: File[]) => void} onFiles
 * @param {() => boolean} wanted
 */
export function takePastes(onFiles, wanted) {
  document.addEventListener("paste", async (event) => {
    if (!wanted() || !event.clipboardData?.files.length) return;
    event.preventDefault();
    onFiles(await filesOf(event.clipboardData));
  });
}
