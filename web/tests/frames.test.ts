import { describe, expect, it } from "vitest";
import { BadFrame, encodeFrame, FrameReader } from "../src/wire/frames";

const bytes = (length: number): Uint8Array => Uint8Array.from({ length }, (_, index) => index % 251);

describe("frames", () => {
  it("come out as they went in, however they are cut", () => {
    const bodies = [0, 1, 127, 128, 300, 20_000].map(bytes);
    const stream = Uint8Array.from(bodies.flatMap((body) => [...encodeFrame(body)]));
    for (const size of [1, 2, 7, 129, 4096, stream.length]) {
      const reader = new FrameReader(1 << 20);
      const frames: Uint8Array[] = [];
      for (let at = 0; at < stream.length; at += size) frames.push(...reader.push(stream.slice(at, at + size)));
      expect(frames).toEqual(bodies);
    }
  });

  it("are refused when they are too long, before their bodies come", () => {
    expect(() => new FrameReader(100).push(encodeFrame(bytes(101)).slice(0, 1))).toThrow(BadFrame);
  });

  it("have lengths in the shortest form, and with an end", () => {
    expect(() => new FrameReader(100).push(Uint8Array.of(0x85, 0x00))).toThrow(BadFrame);
    expect(() => new FrameReader(100).push(Uint8Array.of(0x80, 0x80, 0x80, 0x80, 0x80))).toThrow(BadFrame);
    expect(() => new FrameReader(100).push(Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0x7f))).toThrow(BadFrame);
  });
});
