/**
 * One query's life, as a pure function: what has come, who answers, what to do when they fall silent.
 *
 * The state of an answer is with the page. When a query node dies another one gets the same query with the tokens so
 * far, and goes on. `step` decides; what it wants done is in the commands that it returns. Python's asker decides by the
 * same rules (swarm/client/asking.py): both replay the traces in tests/golden/asker.
 */

import type { Finished, QueryNode, QueryReply, RouteHop } from "../swarm/wire/swarm_pb";
import { numbersOf } from "../contract";
import { Failure_Code } from "../swarm/wire/swarm_pb";

export interface Patience {
  /** ms until a node that is asked must have said something. */
  opening: number;
  /** ms without a sign of life after which a node is taken for dead. */
  silence: number;
  /** ms that a node may wait for blocks before another one is tried, which may know a way; doubles each time. */
  waiting: number;
  /** ms for which a node that failed is left alone; doubles while one after the other fails. */
  avoid: number;
  /** Nodes that may fail one after the other without a token between. */
  failures: number;
}

export const PATIENCE: Patience = { opening: 12_000, silence: 8_000, waiting: 20_000, avoid: 5_000, failures: 8 };

export type Prompt = { case: "text"; value: string } | { case: "messages"; value: string };

export interface Asked {
  id: Uint8Array;
  model: string;
  prompt: Prompt;
  seed: bigint;
  temperature: number | undefined;
  maxTokens: number | undefined;
  trace: boolean;
}

export type Phase = "choosing" | "asking" | "answering" | "waiting" | "finished" | "stopped" | "failed";

export interface Note {
  at: number;
  words: string;
}

export interface RouteSeen {
  hops: RouteHop[];
  reroutes: number;
}

export interface Session {
  asked: Asked;
  phase: Phase;
  nodes: readonly QueryNode[];
  /** Peer id to the time, in ms, until which it is left alone. */
  avoided: Readonly<Record<string, number>>;
  node: QueryNode | undefined;
  /** How the tokens so far were computed; a node that computes otherwise would go on with other words. */
  way: string | undefined;
  /** Counts the nodes asked; what an earlier one still says does not count. */
  attempt: number;
  generated: readonly number[];
  sentBytes: number;
  text: string;
  heardAt: number;
  waitingSince: number | undefined;
  waitingPatience: number;
  /** Why nothing comes just now, in words; empty: it does. */
  trouble: string;
  /** Since when the blocks have been missing that `trouble` tells of, in ms. */
  missingSince: number | undefined;
  route: RouteSeen | undefined;
  promptTokens: number;
  failures: number;
  notes: readonly Note[];
  finished: Finished | undefined;
  /** When tokens came: [ms, how many]. The last of them, for the speed. */
  arrivals: readonly (readonly [number, number])[];
  startedAt: number;
  endedAt: number | undefined;
}

export type Event =
  | { type: "nodes"; nodes: readonly QueryNode[] }
  | { type: "reply"; attempt: number; reply: QueryReply }
  | { type: "broke"; attempt: number; why: string }
  | { type: "tick" }
  | { type: "stop" };

export type Command = { type: "ask"; attempt: number; node: QueryNode } | { type: "drop" };

type Step = [Session, Command[]];

const KEPT_ARRIVALS = 64;
/** What peers say is shown up to here: they may say anything. */
const MOST_NOTES = 100;
const MOST_LETTERS = 300;
const LONGEST_NAME = 40;
const HOPELESS: readonly Failure_Code[] = [Failure_Code.INVALID, Failure_Code.TOO_LONG, Failure_Code.REFUTED];

export function begin(
  asked: Asked,
  nodes: readonly QueryNode[],
  avoided: Readonly<Record<string, number>>,
  now: number,
  patience: Patience = PATIENCE,
): Step {
  const session: Session = {
    asked,
    phase: "choosing",
    nodes,
    avoided,
    node: undefined,
    way: undefined,
    attempt: 0,
    generated: [],
    sentBytes: 0,
    text: "",
    heardAt: now,
    waitingSince: undefined,
    waitingPatience: patience.waiting,
    trouble: "",
    missingSince: undefined,
    route: undefined,
    promptTokens: 0,
    failures: 0,
    notes: [],
    finished: undefined,
    arrivals: [],
    startedAt: now,
    endedAt: undefined,
  };
  return choose(session, now);
}

export function isOver(session: Session): boolean {
  return session.phase === "finished" || session.phase === "stopped" || session.phase === "failed";
}

/** What follows from `event` at the time `now`, in ms. */
export function step(session: Session, event: Event, now: number, patience: Patience = PATIENCE): Step {
  if (isOver(session)) return [session, []];
  switch (event.type) {
    case "nodes":
      return onNodes({ ...session, nodes: event.nodes }, now);
    case "reply":
      return counts(session, event.attempt) ? onReply(session, event.reply, now, patience) : [session, []];
    case "broke":
      return counts(session, event.attempt) ? leave(session, event.why, now, patience) : [session, []];
    case "tick":
      return onTick(session, now, patience);
    case "stop":
      return [{ ...session, phase: "stopped", trouble: "", endedAt: now }, [{ type: "drop" }]];
  }
}

/** Whether it comes from the node that is asked now. */
function counts(session: Session, attempt: number): boolean {
  return session.node !== undefined && attempt === session.attempt;
}

/** ms for which a node that failed is asked only where there is no other: so long a dead one stays on the map. */
const REMEMBERED = 60_000;

/** How a node's answers are computed, as far as that changes them. */
export function wayOf(node: QueryNode): string {
  return numbersOf(node) + (["", "raw"].includes(node.codec) ? "" : `, sent as ${node.codec}`);
}

/** The node with the most room, of those that did not fail just now; those that failed lately come last. */
export function pick(session: Session, now: number): QueryNode | undefined {
  const rank = (node: QueryNode): number => (failedLately(session, node, now) ? 1 : 0) + load(node) / 2;
  const usable = alike(session).filter((node) => (session.avoided[node.peerId] ?? 0) <= now);
  return usable.reduce<QueryNode | undefined>(
    (best, node) => (best === undefined || rank(node) < rank(best) ? node : best),
    undefined,
  );
}

function alike({ nodes, way }: Session): readonly QueryNode[] {
  return way === undefined ? nodes : nodes.filter((node) => wayOf(node) === way);
}

function failedLately({ avoided }: Session, node: QueryNode, now: number): boolean {
  const until = avoided[node.peerId];
  return until !== undefined && until > now - REMEMBERED;
}

function load(node: QueryNode): number {
  return node.capacity > 0 ? Math.min(1, node.running / node.capacity) : 1;
}

/** A model's name; of a folder its own name only. */
export function modelName(name: string): string {
  return name.startsWith("/") ? name.replace(/\/+$/, "").slice(name.replace(/\/+$/, "").lastIndexOf("/") + 1) : name;
}

export function nameOf(peer: { name: string; peerId: string }): string {
  return peer.name.slice(0, LONGEST_NAME) || `…${peer.peerId.slice(-6)}`;
}

function noted(session: Session, words: string, now: number): Session {
  if (session.notes.length >= MOST_NOTES) return session;
  return { ...session, notes: [...session.notes, { at: now, words }] };
}

function choose(session: Session, now: number): Step {
  const node = pick(session, now);
  if (node === undefined) {
    const kind = session.way === undefined || session.nodes.length === 0 ? "" : ` that computes alike (${session.way})`;
    const trouble =
      alike(session).length > 0 ? "no query node answers; trying again" : `no query node${kind} is known; waiting`;
    return [{ ...session, phase: "choosing", node: undefined, trouble }, []];
  }
  const attempt = session.attempt + 1;
  const asking: Session = {
    ...session,
    phase: "asking",
    node,
    attempt,
    heardAt: now,
    waitingSince: undefined,
    trouble: "",
  };
  return [asking, [{ type: "ask", attempt, node }]];
}

/** Choose after there was nobody to be chosen for a while. */
function chooseLater(session: Session, now: number): Step {
  const [next, commands] = choose(session, now);
  if (next.node === undefined || session.attempt === 0) return [next, commands];
  return [noted(next, `going on with ${nameOf(next.node)}`, now), commands];
}

function onNodes(session: Session, now: number): Step {
  return session.phase === "choosing" ? chooseLater(session, now) : [session, []];
}

function onTick(session: Session, now: number, patience: Patience): Step {
  if (session.phase === "choosing") return chooseLater(session, now);
  const quiet = now - session.heardAt;
  if (quiet > (session.phase === "asking" ? patience.opening : patience.silence)) {
    return leave(session, "went silent", now, patience);
  }
  if (session.waitingSince !== undefined && now - session.waitingSince > session.waitingPatience) {
    return elsewhere(session, now);
  }
  return [session, []];
}

/** Another node may know a way around the blocks that this one waits for; alone, it goes on waiting. */
function elsewhere(session: Session, now: number): Step {
  const here = session.node as QueryNode;
  const longer: Session = { ...session, waitingPatience: 2 * session.waitingPatience, waitingSince: now };
  const able = session.nodes.filter((node) => node.peerId !== here.peerId && !failedLately(session, node, now));
  const others = { ...longer, nodes: able };
  const other = pick(others, now);
  if (other === undefined) return [longer, []];
  const words = `${nameOf(here)} waits for blocks; trying ${nameOf(other)}`;
  const [asking, commands] = choose(noted(others, words, now), now);
  return [{ ...asking, nodes: session.nodes }, [{ type: "drop" }, ...commands]];
}

/** Go on with another node; the answer so far goes with the query. `wait`: ms, for one that has not failed. */
function leave(session: Session, why: string, now: number, patience: Patience, wait?: number): Step {
  const pause = wait ?? patience.avoid * 2 ** session.failures;
  const left = session.node as QueryNode;
  const failures = session.failures + (wait === undefined ? 1 : 0);
  const avoiding: Session = { ...session, failures, avoided: { ...session.avoided, [left.peerId]: now + pause } };
  if (failures >= patience.failures) {
    return fail(avoiding, `${failures} query nodes failed one after the other; the last one ${why}`, now);
  }
  const [next, commands] = choose(avoiding, now);
  const going = next.node === undefined ? "looking for another" : `going on with ${nameOf(next.node)}`;
  return [noted(next, `${nameOf(left)} ${why}, ${going}`, now), [{ type: "drop" }, ...commands]];
}

function fail(session: Session, words: string, now: number): Step {
  return [{ ...noted(session, words, now), phase: "failed", trouble: words, endedAt: now }, [{ type: "drop" }]];
}

function onReply(session: Session, reply: QueryReply, now: number, patience: Patience): Step {
  const heard: Session = { ...session, heardAt: now };
  const kind = reply.kind;
  switch (kind.case) {
    case "accepted":
      return [{ ...heard, phase: "answering", promptTokens: kind.value.promptTokens }, []];
    case "delta":
      return onDelta(heard, kind.value, now, patience);
    case "route": {
      const { hops, reroutes } = kind.value;
      const moved: Session = {
        ...heard,
        phase: "answering",
        route: { hops, reroutes },
        waitingSince: undefined,
        missingSince: undefined,
        trouble: "",
      };
      const change = session.route === undefined ? "" : changeInWords(session.route.hops, hops);
      return [change ? noted(moved, change, now) : moved, []];
    }
    case "waiting": {
      const { first, last, since } = kind.value;
      const trouble = `${blocksInWords(first, last)} ${last - first === 1 ? "has" : "have"} no server; waiting`;
      const missingSince = Math.min(session.missingSince ?? now, now - 1000 * since);
      return [{ ...heard, phase: "waiting", trouble, missingSince, waitingSince: session.waitingSince ?? now }, []];
    }
    case "finished":
      return [{ ...heard, phase: "finished", trouble: "", finished: kind.value, endedAt: now }, [{ type: "drop" }]];
    case "failure":
      return onFailure(heard, kind.value.code, kind.value.message.slice(0, MOST_LETTERS), kind.value.retryAfter, now, patience);
    default:
      return [heard, []];
  }
}

function onDelta(
  session: Session,
  delta: { tokens: number[]; text: string; sentBytes: number },
  now: number,
  patience: Patience,
): Step {
  if (delta.sentBytes < session.sentBytes) return leave(session, "answered nonsense", now, patience);
  if (delta.tokens.length === 0 && delta.text === "") return [session, []];
  const arrivals = [...session.arrivals, [now, delta.tokens.length] as const].slice(-KEPT_ARRIVALS);
  const moved: Session = {
    ...session,
    phase: "answering",
    way: session.way ?? wayOf(session.node as QueryNode),
    trouble: "",
    generated: [...session.generated, ...delta.tokens],
    text: session.text + delta.text,
    sentBytes: delta.sentBytes,
    arrivals,
    waitingSince: undefined,
    missingSince: undefined,
    waitingPatience: patience.waiting,
    failures: 0,
  };
  return [moved, []];
}

function onFailure(
  session: Session,
  code: Failure_Code,
  message: string,
  retryAfter: number,
  now: number,
  patience: Patience,
): Step {
  if (HOPELESS.includes(code)) return fail(session, message || "the query cannot be answered", now);
  if (code === Failure_Code.BUSY) return leave(session, "is busy", now, patience, Math.max(0.2, retryAfter) * 1000);
  return leave(session, `failed (${message || "it did not say why"})`, now, patience);
}

/** Who is not on the route any more, and who has taken over; empty: nobody is new. */
export function changeInWords(before: readonly RouteHop[], after: readonly RouteHop[]): string {
  const isIn = (hop: RouteHop, hops: readonly RouteHop[]): boolean => hops.some((each) => each.peerId === hop.peerId);
  const left = before.filter((hop) => !isIn(hop, after));
  const came = after.filter((hop) => !isIn(hop, before));
  const list = (hops: readonly RouteHop[]): string =>
    hops.map((hop) => `${nameOf(hop)} (${blocksInWords(hop.first, hop.last)})`).join(", ");
  if (left.length > 0 && came.length > 0) return `another route: ${list(came)} instead of ${list(left)}`;
  if (left.length > 0) return `another route, without ${list(left)}`;
  return came.length > 0 ? `another route, over ${list(came)}` : "";
}

/** `first` ≤ block < `last`. */
export function blocksInWords(first: number, last: number): string {
  return last - first === 1 ? `block ${first}` : `blocks ${first}–${last - 1}`;
}

/** Tokens per second over the last arrivals; undefined: too few. */
export function speed(session: Session, windowMs = 5_000): number | undefined {
  const end = session.endedAt ?? session.arrivals.at(-1)?.[0] ?? 0;
  const recent = isOver(session) ? session.arrivals : session.arrivals.filter(([at]) => at >= end - windowMs);
  const from = recent[0];
  const to = recent.at(-1);
  if (from === undefined || to === undefined || to[0] - from[0] < 200) return undefined;
  const tokens = recent.slice(1).reduce((sum, [, count]) => sum + count, 0);
  return tokens / ((to[0] - from[0]) / 1000);
}
