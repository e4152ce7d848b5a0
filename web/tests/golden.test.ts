/** The page decides as Python's asker does: both replay these traces (tests/client/test_asking.py). */

import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import golden from "../../tests/golden/asker/traces.json";
import { type Asked, begin, type Command, type Event, PATIENCE, type Session, step } from "../src/query/session";
import { ContractSchema, Failure_Code, type QueryNode, QueryNodeSchema, type QueryReply, QueryReplySchema } from "../src/swarm/wire/swarm_pb";

const ASKED: Asked = {
  id: new Uint8Array(16),
  model: "m",
  prompt: { case: "text", value: "p" },
  seed: 1n,
  temperature: undefined,
  maxTokens: undefined,
  trace: false,
};

interface Told {
  peer: string;
  running: number;
  capacity: number;
  dtype: string;
  quantization: string;
  codec: string;
}

const nodeOf = ({ peer, running, capacity, dtype, quantization, codec }: Told): QueryNode =>
  create(QueryNodeSchema, {
    peerId: peer,
    running,
    capacity,
    codec,
    contract: create(ContractSchema, { model: "m", last: 4, dtype, quantization }),
  });

/** What a trace holds is JSON. */
type Any = any;

function replyOf(told: Any): QueryReply {
  const [[kind, value]] = Object.entries<Any>(told) as [[string, Any]];
  const fields = kind === "failure" ? { message: "no", retryAfter: value.retryAfter, code: Failure_Code[value.code] } : value;
  return create(QueryReplySchema, { kind: { case: kind, value: fields } as Any });
}

function eventOf(told: Any): Event {
  if (told.type === "nodes") return { type: "nodes", nodes: told.nodes.map(nodeOf) };
  if (told.type === "reply") return { type: "reply", attempt: told.attempt, reply: replyOf(told.reply) };
  if (told.type === "broke") return { type: "broke", attempt: told.attempt, why: "gone" };
  return { type: "tick" };
}

const seen = (session: Session, commands: Command[]): unknown => ({
  phase: session.phase,
  node: session.node?.peerId ?? "",
  attempt: session.attempt,
  generated: [...session.generated],
  sentBytes: session.sentBytes,
  failures: session.failures,
  waitingPatience: session.waitingPatience,
  avoided: session.avoided,
  commands: commands.map((command) => (command.type === "ask" ? `ask ${command.node.peerId}` : "drop")),
});

describe("a trace", () => {
  it("has the page's own patience", () => {
    expect(golden.patience).toEqual(PATIENCE);
  });

  it.each(golden.traces.map((trace) => [trace.name, trace] as const))("%s", (_, trace: Any) => {
    let [session, commands] = begin(ASKED, trace.nodes.map(nodeOf), trace.avoided, trace.at, golden.patience);
    expect(seen(session, commands)).toEqual(trace.then);
    for (const { at, event, then } of trace.steps) {
      [session, commands] = step(session, eventOf(event), at, golden.patience);
      expect(seen(session, commands)).toEqual(then);
    }
  });
});
