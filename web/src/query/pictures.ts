/** Pictures as they are sent: in the question itself, no larger than models look at. */

export interface Picture {
  name: string;
  /** A data URL. */
  url: string;
}

/** Pixels of the longer side. Towers look at fewer, or cut what is larger into tiles. */
export const LONGEST_SIDE = 1024;
/** A query's frame is 4 MiB, and every turn brings the pictures of those before it. */
export const MOST_CHARACTERS = 3_500_000;
const QUALITY = 0.9;

/** Width and height, whole, of a picture whose longer side is at most `most`. */
export function sizeWithin(width: number, height: number, most: number): [number, number] {
  const scale = Math.min(1, most / Math.max(width, height));
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

/** Whether a conversation with these pictures can be sent. */
export function fits(pictures: readonly Picture[]): boolean {
  return pictures.reduce((sum, { url }) => sum + url.length, 0) <= MOST_CHARACTERS;
}

/** A file of any format that the browser reads, made smaller. Throws RangeError, with words for the user. */
export async function pictureOf(file: File): Promise<Picture> {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new RangeError(`${file.name}: this is no picture that the browser can read`);
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = sizeWithin(bitmap.width, bitmap.height, LONGEST_SIDE);
  const context = canvas.getContext("2d");
  if (context === null) throw new RangeError("this browser cannot make pictures smaller");
  // JPEG knows no transparency: what is behind is white, as on a page.
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return { name: file.name, url: canvas.toDataURL("image/jpeg", QUALITY) };
}
