import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { FinishedSchema } from "../src/swarm/wire/swarm_pb";
import { ticks } from "../src/views/map";
import { layOut } from "../src/views/route";
import { duration, rowsOf } from "../src/views/trace";

const stop = (label: string) => ({ label, detail: "blocks 0–3", hue: "", kind: "hop" as const, blocks: 4 });
const stops = (number: number) => Array.from({ length: number }, (_, index) => stop(`s${index}`));

describe("the numbers below the blocks", () => {
  it("are those of all blocks where there is room, and of some where there is none", () => {
    expect(ticks(6)).toEqual([0, 1, 2, 3, 4, 5]);
    expect(ticks(30)).toEqual([0, 5, 10, 15, 20, 25]);
    expect(ticks(126)).toEqual([0, 20, 40, 60, 80, 100, 120]);
  });

  it("never touch each other on a narrow page", () => {
    const [width, digit] = [270, 6.5];
    for (let blocks = 1; blocks <= 1024; blocks++) {
      const shown = ticks(blocks), longest = String(shown.at(-1)).length * digit;
      expect(shown.every((block) => block < blocks)).toBe(true);
      for (const [index, block] of shown.slice(1).entries()) {
        expect(((block - (shown[index] as number)) * width) / blocks).toBeGreaterThan(longest);
      }
    }
  });
});

describe("a route", () => {
  it("lies where there is room, and stands where there is none", () => {
    expect(layOut(stops(4), 800).upright).toBe(false);
    expect(layOut(stops(4), 320).upright).toBe(true);
    expect(layOut(stops(20), 800).upright).toBe(true);
  });

  it("stays inside, without overlaps", () => {
    for (const [number, width] of [[1, 300], [2, 300], [4, 700], [4, 320], [12, 900]] as const) {
      const { boxes, height } = layOut(stops(number), width);
      for (const box of boxes) {
        expect(box.x).toBeGreaterThanOrEqual(0);
        expect(box.x + box.width).toBeLessThanOrEqual(width);
        expect(box.y + box.height).toBeLessThanOrEqual(height);
      }
      for (const [index, box] of boxes.slice(1).entries()) {
        const before = boxes[index];
        expect(box.x >= (before?.x ?? 0) + (before?.width ?? 0) || box.y >= (before?.y ?? 0) + (before?.height ?? 0)).toBe(true);
      }
    }
  });
});

describe("a trace", () => {
  it("is drawn in shares of the whole, in order", () => {
    const finished = create(FinishedSchema, {
      seconds: 4,
      trace: [
        { name: "compute decode", peerId: "p", start: 2, seconds: 2, count: 10 },
        { name: "compute prefill", start: 0, seconds: 1, count: 0 },
        { name: "queue decode", peerId: "p", start: 2, seconds: 0, count: 10 },
      ],
    });
    const hops = [{ peerId: "p", name: "alice", first: 0, last: 4 }] as never;
    expect(rowsOf(finished, hops).map(({ name, who, start, length, time, steps }) => [name, who, start, length, time + steps])).toEqual([
      ["compute prefill", "query node", 0, 0.25, "1.00 s"],
      ["compute decode", "alice, blocks 0–3", 0.5, 0.5, "2.00 s in 10 steps"],
    ]);
  });

  it("has words for times", () => {
    expect([0.00001, 0.0123, 2.5, 25].map(duration)).toEqual(["10 µs", "12 ms", "2.50 s", "25.0 s"]);
  });
});
