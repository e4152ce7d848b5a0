/** Frames on a byte stream: an unsigned varint length, then as many bytes (as in docs/protocol.md). */

export const FRAME_LIMIT = 4 * 1024 * 1024

/** One frame as it travels. */
export function frame(body: Uint8Array): Uint8Array {
  const head: number[] = []
  let length = body.length
  while (length > 0x7f) {
    head.push((length & 0x7f) | 0x80)
    length >>>= 7
  }
  head.push(length)
  const whole = new Uint8Array(head.length + body.length)
  whole.set(head)
  whole.set(body, head.length)
  return whole
}

/** Cuts what comes in, in pieces of any size, into frames. Throws on a frame above the limit, or a length without end. */
export class Splitter {
  private held = new Uint8Array(0)

  constructor(private readonly limit = FRAME_LIMIT) {}

  add(piece: Uint8Array): Uint8Array[] {
    const held = new Uint8Array(this.held.length + piece.length)
    held.set(this.held)
    held.set(piece, this.held.length)
    const frames: Uint8Array[] = []
    let at = 0
    for (;;) {
      const head = readLength(held, at)
      if (head === undefined) break
      if (head.length > this.limit) throw new Error(`a frame of ${head.length} bytes is too large`)
      if (held.length < head.end + head.length) break
      frames.push(held.slice(head.end, head.end + head.length))
      at = head.end + head.length
    }
    this.held = held.slice(at)
    return frames
  }
}

function readLength(bytes: Uint8Array, at: number): { length: number; end: number } | undefined {
  let length = 0
  for (let index = 0; index < 5; index++) {
    const byte = bytes[at + index]
    if (byte === undefined) return undefined
    length += (byte & 0x7f) * 2 ** (7 * index)
    if (byte < 0x80) return { length, end: at + index + 1 }
  }
  throw new Error('the length of a frame has no end')
}
