/** Frames on a byte stream: an unsigned varint length, then as many bytes; as swarm/wire/framing.py has them. */

const MAX_LENGTH_BYTES = 5;

export class BadFrame extends Error {
  override name = "BadFrame";
}

/** `body` behind its length. */
export function encodeFrame(body: Uint8Array): Uint8Array {
  const length: number[] = [];
  let rest = body.length;
  while (rest > 0x7f) {
    length.push((rest & 0x7f) | 0x80);
    rest >>>= 7;
  }
  length.push(rest);
  const frame = new Uint8Array(length.length + body.length);
  frame.set(length);
  frame.set(body, length.length);
  return frame;
}

/** Cuts bytes that come in pieces into frames. Holds no more than one frame of `limit` bytes and one piece. */
export class FrameReader {
  #pending = new Uint8Array(0);

  constructor(readonly limit: number) {}

  /** The frames that end in `piece`. Throws BadFrame for a length that is too large or none. */
  push(piece: Uint8Array): Uint8Array[] {
    this.#pending = joined(this.#pending, piece);
    const frames: Uint8Array[] = [];
    let start = 0;
    for (;;) {
      const header = readLength(this.#pending, start);
      if (header === undefined) break;
      if (header.length > this.limit) throw new BadFrame(`a frame of ${header.length} bytes`);
      if (this.#pending.length < header.end + header.length) break;
      start = header.end + header.length;
      frames.push(this.#pending.slice(header.end, start));
    }
    this.#pending = this.#pending.slice(start);
    return frames;
  }
}

function joined(one: Uint8Array, other: Uint8Array): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(one.length + other.length);
  all.set(one);
  all.set(other, one.length);
  return all;
}

/** The length that begins at `start`, and where it ends; undefined: not all of it has come. */
function readLength(bytes: Uint8Array, start: number): { length: number; end: number } | undefined {
  let length = 0;
  for (let index = 0; index < MAX_LENGTH_BYTES; index++) {
    const byte = bytes[start + index];
    if (byte === undefined) return undefined;
    length += (byte & 0x7f) * 2 ** (7 * index);
    if (byte < 0x80) {
      if (index > 0 && byte === 0) throw new BadFrame("a length that is not written in its shortest form");
      return { length, end: start + index + 1 };
    }
  }
  throw new BadFrame("a length that has no end");
}
