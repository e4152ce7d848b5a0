import { create, fromBinary } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { encodeQuery } from "../src/query/run";
import { type Asked, begin, type Command, type Event, isOver, PATIENCE, type Session, speed, step } from "../src/query/session";
import { ContractSchema, Failure_Code, type QueryNode, QueryNodeSchema, type QueryReply, QueryReplySchema, QuerySchema } from "../src/swarm/wire/swarm_pb";

const ASKED: Asked = {
  id: new Uint8Array(16).fill(7),
  model: "key",
  prompt: { case: "text", value: "Once" },
  seed: 42n,
  temperature: 0,
  maxTokens: 100,
  trace: true,
};
const node = (name: string, running = 0): QueryNode => create(QueryNodeSchema, { peerId: `peer-${name}`, name, running, capacity: 4 });
const NODES = [node("one"), node("two", 1), node("three", 2)];

const accepted = (): QueryReply => create(QueryReplySchema, { kind: { case: "accepted", value: { promptTokens: 3 } } });
const delta = (tokens: number[], text: string, sentBytes: number): QueryReply =>
  create(QueryReplySchema, { kind: { case: "delta", value: { tokens, text, sentBytes } } });
const failure = (code: Failure_Code, retryAfter = 0): QueryReply =>
  create(QueryReplySchema, { kind: { case: "failure", value: { code, message: "no", retryAfter } } });
const finished = (): QueryReply => create(QueryReplySchema, { kind: { case: "finished", value: { seconds: 1 } } });
const route = (...hops: [name: string, first: number, last: number][]): QueryReply => {
  const value = { hops: hops.map(([name, first, last]) => ({ peerId: `peer-${name}`, name, first, last })) };
  return create(QueryReplySchema, { kind: { case: "route", value } });
};
const waiting = (): QueryReply => create(QueryReplySchema, { kind: { case: "waiting", value: { first: 2, last: 5, since: 4 } } });

/** A session that is told one thing after the other. */
class Told {
  session: Session;
  commands: Command[];
  now = 1_000;

  constructor(nodes: readonly QueryNode[] = NODES) {
    [this.session, this.commands] = begin(ASKED, nodes, {}, this.now);
  }

  tell(event: Event, later = 10): this {
    this.now += later;
    [this.session, this.commands] = step(this.session, event, this.now);
    return this;
  }

  hear(...replies: QueryReply[]): this {
    for (const reply of replies) this.tell({ type: "reply", attempt: this.session.attempt, reply });
    return this;
  }

  get asked(): string | undefined {
    return this.commands.flatMap((command) => (command.type === "ask" ? [command.node.name] : []))[0];
  }
}

describe("a query", () => {
  it("is asked of the node with the most room, and answered", () => {
    const told = new Told();
    expect(told.asked).toBe("one");
    told.hear(accepted(), delta([1, 2], "Up", 2), delta([], "", 2), delta([3], "on", 4), finished());
    expect(told.session).toMatchObject({ phase: "finished", text: "Upon", generated: [1, 2, 3], sentBytes: 4, notes: [] });
    expect(told.commands).toEqual([{ type: "drop" }]);
  });

  it("goes on with another node with what it has when its node dies", () => {
    const told = new Told().hear(accepted(), delta([1, 2], "Up", 2)).tell({ type: "broke", attempt: 1, why: "went away" });
    expect(told.asked).toBe("two");
    expect(told.session.notes.map((note) => note.words)).toEqual(["one went away, going on with two"]);
    const query = fromBinary(QuerySchema, encodeQuery(told.session));
    expect(query).toMatchObject({ id: ASKED.id, model: "key", generated: [1, 2], sentBytes: 2, trace: true });
    expect(query.prompt).toEqual(ASKED.prompt);
    expect(query.sampling).toMatchObject({ seed: 42n, temperature: 0, maxTokens: 100 });
    expect(told.hear(accepted(), delta([3], "on", 4), finished()).session.text).toBe("Upon");
  });

  it("goes on only with nodes that compute as the first did, and says so", () => {
    const computing = (name: string, dtype: string, quantization = "none"): QueryNode =>
      ({ ...node(name), contract: create(ContractSchema, { dtype, quantization }) });
    const float = (name: string): QueryNode => computing(name, "float32");
    const others = [computing("half", "bfloat16"), computing("int", "float32", "int8"), { ...float("wire"), codec: "int8" }];
    const told = new Told([float("one"), ...others]).hear(accepted(), delta([1], "a", 1));
    told.tell({ type: "broke", attempt: 1, why: "went away" }).tell({ type: "nodes", nodes: others }).tell({ type: "tick" }, 60_000);
    expect(told.session).toMatchObject({ phase: "choosing", trouble: "no query node that computes alike (float32) is known; waiting" });
    told.tell({ type: "nodes", nodes: [...others, float("two")] });
    expect(told.asked).toBe("two");
  });

  it("does not listen to a node that it has left", () => {
    const told = new Told().hear(delta([1], "a", 1)).tell({ type: "broke", attempt: 1, why: "went away" });
    told.tell({ type: "reply", attempt: 1, reply: delta([9], "zzz", 9) }).tell({ type: "broke", attempt: 1, why: "again" });
    expect(told.session).toMatchObject({ text: "a", attempt: 2, generated: [1] });
  });

  it("leaves a node that falls silent, and not one that gives signs of life", () => {
    const told = new Told().hear(accepted(), delta([1], "a", 1));
    for (let beat = 0; beat < 20; beat++) told.hear(delta([], "", 1)).tell({ type: "tick" }, PATIENCE.silence - 100);
    expect(told.session.attempt).toBe(1);
    expect(told.tell({ type: "tick" }, PATIENCE.silence + 1).asked).toBe("two");
    expect(told.session.notes.at(-1)?.words).toBe("one went silent, going on with two");
  });

  it("tries another node when one waits for blocks for long, then has more patience", () => {
    const told = new Told().hear(accepted(), waiting());
    expect(told.session).toMatchObject({ phase: "waiting", trouble: "blocks 2–4 have no server; waiting" });
    expect(told.session.missingSince).toBe(told.now - 4_000);
    const wait = (ms: number): void => {
      for (let passed = 0; passed < ms; passed += 1_000) told.hear(delta([], "", 0)).tell({ type: "tick" }, 990);
    };
    wait(PATIENCE.waiting - 2_000);
    expect(told.session.attempt).toBe(1);
    wait(4_000);
    expect(told.session).toMatchObject({ attempt: 2, failures: 0 });
    expect(told.session.notes.at(-1)?.words).toBe("one waits for blocks; trying two");
    told.hear(accepted(), waiting());
    wait(PATIENCE.waiting + 4_000);
    expect(told.session.attempt).toBe(2);
    wait(PATIENCE.waiting);
    expect(told.session.attempt).toBe(3);
  });

  it("asks nodes that failed lately only where there is no other", () => {
    const told = new Told().hear(accepted(), delta([1], "a", 1)).tell({ type: "broke", attempt: 1, why: "went away" });
    told.hear(accepted(), waiting());
    const wait = (ms: number): void => {
      for (let passed = 0; passed < ms; passed += 1_000) told.hear(delta([], "", 1)).tell({ type: "tick" }, 990);
    };
    wait(PATIENCE.waiting + 4_000);
    expect(told.session.node?.name).toBe("three");
    told.tell({ type: "broke", attempt: 3, why: "went away" });
    expect(told.session.node?.name).toBe("two");
    told.tell({ type: "broke", attempt: 4, why: "went away" });
    expect(told.session.node?.name).toBe("one");
  });

  it("waits with its only node", () => {
    const told = new Told([node("one")]).hear(accepted(), waiting());
    for (let second = 0; second < 100; second++) told.hear(delta([], "", 0)).tell({ type: "tick" }, 990);
    expect(told.session).toMatchObject({ attempt: 1, phase: "waiting" });
  });

  it("comes again to a busy node when that said, and counts no failure", () => {
    const told = new Told([node("one")]).hear(failure(Failure_Code.BUSY, 3));
    expect(told.session).toMatchObject({ phase: "choosing", failures: 0 });
    expect(told.tell({ type: "tick" }, 2_000).asked).toBeUndefined();
    expect(told.tell({ type: "tick" }, 1_500).asked).toBe("one");
    expect(told.session.notes.map((note) => note.words)).toEqual(["one is busy, looking for another", "going on with one"]);
  });

  it("ends at once where every node would say the same", () => {
    const told = new Told().hear(failure(Failure_Code.TOO_LONG));
    expect(told.session).toMatchObject({ phase: "failed", trouble: "no" });
    expect(isOver(told.session)).toBe(true);
  });

  it("is given up when many nodes fail one after the other, and not while tokens come", () => {
    const fail = (told: Told): void => {
      for (let times = 0; times < PATIENCE.failures - 1; times++) {
        told.hear(failure(Failure_Code.UNKNOWN));
        if (told.session.node === undefined) told.tell({ type: "tick" }, 2_000_000);
      }
    };
    const told = new Told();
    fail(told);
    told.hear(accepted(), delta([1], "a", 1));
    fail(told);
    expect(isOver(told.session)).toBe(false);
    expect(told.hear(failure(Failure_Code.UNKNOWN)).session.phase).toBe("failed");
    expect(told.session.text).toBe("a");
  });

  it("leaves a node whose text becomes shorter", () => {
    expect(new Told().hear(delta([1], "abc", 3), delta([2], "d", 2)).asked).toBe("two");
  });

  it("waits for a node to be known, and begins when one is", () => {
    const told = new Told([]);
    expect(told.session).toMatchObject({ phase: "choosing", trouble: "no query node is known; waiting" });
    expect(told.tell({ type: "nodes", nodes: NODES }).asked).toBe("one");
  });

  it("says who has taken over when the route changes, and nothing when it is the same at another node", () => {
    const told = new Told().hear(accepted(), route(["a", 0, 3], ["b", 3, 6]));
    expect(told.session.notes).toEqual([]);
    told.hear(route(["a", 0, 3], ["c", 3, 5], ["d", 5, 6]));
    expect(told.session.notes.map((note) => note.words)).toEqual([
      "another route: c (blocks 3–4), d (block 5) instead of b (blocks 3–5)",
    ]);
    told.tell({ type: "broke", attempt: 1, why: "went away" }).hear(accepted(), route(["a", 0, 3], ["c", 3, 5], ["d", 5, 6]));
    expect(told.session.notes).toHaveLength(2);
  });

  it("stops when it is told to, and hears nothing more", () => {
    const told = new Told().hear(accepted(), delta([1], "a", 1)).tell({ type: "stop" });
    expect(told.commands).toEqual([{ type: "drop" }]);
    expect(told.hear(delta([2], "b", 2)).session).toMatchObject({ phase: "stopped", text: "a" });
  });

  it("tells how fast tokens come", () => {
    const told = new Told().hear(accepted());
    for (let token = 0; token < 50; token++) told.tell({ type: "reply", attempt: 1, reply: delta([token], "x", token + 1) }, 100);
    expect(speed(told.session)).toBeCloseTo(10);
  });

  it("loses and doubles nothing, whatever happens to its nodes", () => {
    const answer = Array.from({ length: 60 }, (_, index) => String.fromCharCode(97 + (index % 26)));
    for (let seed = 1; seed <= 200; seed++) {
      let state = seed;
      const random = (below: number): number => (state = (state * 48271) % 2147483647) % below;
      const told = new Told();
      for (let turns = 0; turns < 5_000 && !isOver(told.session); turns++) {
        const { attempt, generated, sentBytes } = told.session;
        const fate = random(12);
        if (told.session.node === undefined) told.tell({ type: "tick" }, 3_000);
        else if (fate === 0) told.tell({ type: "broke", attempt, why: "went away" });
        else if (fate === 1) told.tell({ type: "tick" }, 20_000);
        else if (fate === 2) told.tell({ type: "reply", attempt: attempt - 1, reply: delta([99], "?", 99) });
        else if (generated.length === answer.length) told.hear(finished());
        else told.hear(delta([generated.length], answer[generated.length] as string, sentBytes + 1));
      }
      const { phase, text, generated } = told.session;
      if (phase === "finished") expect(text).toBe(answer.join(""));
      expect(text).toBe(answer.slice(0, generated.length).join(""));
      expect(generated).toEqual(generated.map((_, index) => index));
    }
  });
});
