import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { absorb, FADING, inWords, NOTHING, type Seen } from "../src/map/seen";
import { type SwarmMap, SwarmMapSchema } from "../src/swarm/wire/swarm_pb";
import { sinceWhen, whatIsMissing } from "../src/views/map";

type Server = [name: string, first: number, last: number, state?: string];

const map = (servers: Server[], nodes: string[] = ["n"]): SwarmMap =>
  create(SwarmMapSchema, {
    models: [{ key: "k", name: "/models/tiny", blocks: 6 }],
    servers: servers.map(([name, first, last, state = "online"]) => ({ peerId: `id-${name}`, name, state, contract: { model: "k", first, last } })),
    nodes: nodes.map((name) => ({ peerId: `id-${name}`, contract: { model: "k" }, name, edges: ["/x"] })),
  });

function after(...maps: [SwarmMap, number][]): Seen {
  return maps.reduce((seen, [each, now]) => absorb(seen, each, now), NOTHING);
}

const only = (seen: Seen) => [...seen.models.values()][0] as NonNullable<ReturnType<typeof seen.models.get>>;

describe("the map", () => {
  it("counts who serves each block, loading servers aside", () => {
    const { replicas, gaps } = only(after([map([["a", 0, 4], ["b", 2, 5], ["c", 5, 6, "joining"]]), 0]));
    expect(replicas).toEqual([1, 1, 2, 2, 1, 0]);
    expect(gaps).toEqual([{ first: 5, last: 6, since: 0 }]);
  });

  it("says in words what is missing and since when", () => {
    const whole = map([["a", 0, 3], ["b", 3, 6]]);
    const seen = only(after([whole, 0], [map([["a", 0, 3]]), 10_000], [map([["a", 0, 2]]), 30_000]));
    expect(whatIsMissing(seen)).toBe("Blocks 2–5 of tiny have no server; answers wait until somebody serves them");
    expect(sinceWhen(seen, 50_000)).toBe("(for 40 s)");
    expect(whatIsMissing(only(after([whole, 0])))).toBe("");
    expect(whatIsMissing(only(after([map([["a", 0, 6]], []), 0])))).toContain("Nobody answers queries for tiny");
  });

  it("tells who came, moved and left, but not who was there at first", () => {
    const seen = after([map([["a", 0, 3], ["b", 3, 6]]), 0], [map([["a", 1, 3], ["c", 3, 6]], ["n", "m"]), 1]);
    expect(seen.happenings.map((happening) => happening.words)).toEqual([
      "a moved to blocks 1–2",
      "c came with blocks 3–5",
      "b left blocks 3–5",
      "query node m came",
    ]);
    expect(after([map([["a", 0, 3]]), 0]).happenings).toEqual([]);
  });

  it("shows a server that left a little longer", () => {
    const both = map([["a", 0, 3], ["b", 3, 6]]);
    const one = map([["a", 0, 3]]);
    expect(only(after([both, 0], [one, 1_000])).servers.map(({ gone }) => gone)).toEqual([undefined, 1_000]);
    expect(only(after([both, 0], [one, 1_000], [one, 1_001 + FADING])).servers).toHaveLength(1);
    expect(only(after([both, 0], [one, 1_000], [both, 2_000])).servers.map(({ gone }) => gone)).toEqual([undefined, undefined]);
  });

  it("believes nothing that cannot be", () => {
    const odd = map([["a", 0, 7], ["b", 4, 4], ["c", 5, 3]]);
    expect(only(after([odd, 0])).servers).toEqual([]);
    odd.models[0] = { ...odd.models[0], blocks: 4_000_000_000 } as (typeof odd.models)[0];
    expect(after([odd, 0]).models.size).toBe(0);
  });

  it("has words for times", () => {
    expect([0, 40_000, 400_000, 40_000_000].map(inWords)).toEqual(["0 s", "40 s", "7 min", "11 h"]);
  });
});
