import { expect, test } from 'vitest'

import { frame, Splitter } from '../src/frames'

test('frames come out as they went in, however they are cut', () => {
  const bodies = [0, 1, 127, 128, 300, 20_000].map((length) => Uint8Array.from({ length }, (_, index) => index % 251))
  const stream = Uint8Array.from(bodies.flatMap((body) => [...frame(body)]))
  for (const size of [1, 2, 7, 1000, stream.length]) {
    const splitter = new Splitter()
    const out: Uint8Array[] = []
    for (let at = 0; at < stream.length; at += size) out.push(...splitter.add(stream.slice(at, at + size)))
    expect(out.map((body) => [...body])).toEqual(bodies.map((body) => [...body]))
  }
})

test('a frame above the limit, or a length without end, is refused', () => {
  expect(() => new Splitter(10).add(frame(new Uint8Array(11)))).toThrow('too large')
  expect(() => new Splitter().add(new Uint8Array(6).fill(0xff))).toThrow('no end')
})
