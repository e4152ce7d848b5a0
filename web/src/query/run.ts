/** Does what a session wants done: opens streams, reads replies, keeps the time. */

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { dialable, type Surroundings } from "../net/addresses";
import type { Network } from "../net/node";
import { type QueryNode, QueryReplySchema, QuerySchema, SamplingSchema } from "../swarm/wire/swarm_pb";
import { type Asked, begin, type Command, type Event, isOver, PATIENCE, type Session, step } from "./session";

export const QUERY_PROTOCOL = "/swarm/query/1.0.0";
const FRAME_LIMIT = 4 * 1024 * 1024;
const TICK = 500;

/** The bytes of the Query that asks for what is still missing. */
export function encodeQuery({ asked, generated, sentBytes }: Session): Uint8Array {
  const sampling = create(SamplingSchema, { seed: asked.seed });
  if (asked.temperature !== undefined) sampling.temperature = asked.temperature;
  if (asked.maxTokens !== undefined) sampling.maxTokens = asked.maxTokens;
  const { id, model, prompt, trace } = asked;
  const query = create(QuerySchema, { id, model, prompt, sampling, generated: [...generated], sentBytes, trace });
  return toBinary(QuerySchema, query);
}

export class Run {
  session: Session;
  #stream = new AbortController();
  readonly #clock: ReturnType<typeof setInterval>;

  constructor(
    private readonly network: Network,
    private readonly surroundings: Surroundings,
    asked: Asked,
    nodes: readonly QueryNode[],
    avoided: Readonly<Record<string, number>>,
    private readonly changed: (session: Session) => void,
  ) {
    const [session, commands] = begin(asked, this.#usable(nodes), avoided, Date.now());
    this.session = session;
    this.#clock = setInterval(() => this.#on({ type: "tick" }), TICK);
    this.#obey(commands);
  }

  stop(): void {
    this.#on({ type: "stop" });
  }

  /** The swarm has changed. */
  meet(nodes: readonly QueryNode[]): void {
    this.#on({ type: "nodes", nodes: this.#usable(nodes) });
  }

  #usable(nodes: readonly QueryNode[]): QueryNode[] {
    return nodes.filter((node) => dialable(node.edges, this.surroundings).length > 0);
  }

  #on(event: Event): void {
    const before = this.session;
    const [session, commands] = step(before, event, Date.now(), PATIENCE);
    this.session = session;
    this.#obey(commands);
    if (isOver(session)) clearInterval(this.#clock);
    if (session !== before) this.changed(session);
  }

  #obey(commands: readonly Command[]): void {
    for (const command of commands) {
      this.#stream.abort();
      if (command.type === "ask") {
        this.#stream = new AbortController();
        void this.#ask(command.attempt, command.node, this.#stream.signal);
      }
    }
  }

  async #ask(attempt: number, node: QueryNode, signal: AbortSignal): Promise<void> {
    let why = "went away";
    try {
      const addresses = dialable(node.edges, this.surroundings);
      const query = encodeQuery(this.session);
      const { network } = this;
      const exchange = await network.ask(addresses, QUERY_PROTOCOL, query, FRAME_LIMIT, PATIENCE.opening, signal);
      for await (const frame of exchange.frames) {
        if (signal.aborted) return;
        this.#on({ type: "reply", attempt, reply: fromBinary(QueryReplySchema, frame) });
      }
    } catch (error) {
      if (signal.aborted) return;
      console.info(`asking ${node.peerId}:`, error);
      if (this.session.phase === "asking") why = "does not answer";
    }
    if (!signal.aborted) this.#on({ type: "broke", attempt, why });
  }
}
