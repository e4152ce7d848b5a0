/** The swarm as the maps that came tell it: who serves which blocks, what is missing since when, who came and went. */

import type { MapServer, Model, QueryNode, SwarmMap } from "../swarm/wire/swarm_pb";
import { spanOf } from "../contract";
import { blocksInWords, nameOf } from "../query/session";

export interface Happening {
  at: number;
  words: string;
  kind: "came" | "went" | "changed";
}

export interface SeenServer {
  server: MapServer;
  /** When it came; undefined: it was there before the page. */
  since: number | undefined;
  /** When it went; it is shown a little longer. */
  gone: number | undefined;
}

export interface Gap {
  first: number;
  last: number;
  /** ms; when the page first saw it. */
  since: number;
}

export interface ModelSeen {
  model: Model;
  servers: SeenServer[];
  nodes: QueryNode[];
  /** Servers that are online, for each block. */
  replicas: number[];
  gaps: Gap[];
}

export interface Seen {
  /** By key. */
  models: ReadonlyMap<string, ModelSeen>;
  happenings: readonly Happening[];
  at: number;
}

export const NOTHING: Seen = { models: new Map(), happenings: [], at: 0 };
/** ms for which a server that went is still shown. */
export const FADING = 6_000;
const KEPT_HAPPENINGS = 30;
/** More blocks than any model has; what claims more is not shown. */
const MOST_BLOCKS = 4096;

/** What is known after `map` has come, at `now` in ms. */
export function absorb(before: Seen, map: SwarmMap, now: number): Seen {
  const models = new Map<string, ModelSeen>();
  const happenings: Happening[] = [];
  for (const model of map.models) {
    if (model.blocks < 1 || model.blocks > MOST_BLOCKS) continue;
    const old = before.models.get(model.key);
    const present = map.servers.filter((server) => server.contract?.model === model.key && fits(server, model));
    const servers = follow(old?.servers, present, now);
    const replicas = countReplicas(present, model.blocks);
    const nodes = map.nodes.filter((node) => node.contract?.model === model.key);
    models.set(model.key, { model, servers, nodes, replicas, gaps: findGaps(replicas, old?.gaps ?? [], now) });
    if (old !== undefined) happenings.push(...tell(old, present, nodes, now));
  }
  return { models, happenings: [...happenings, ...before.happenings].slice(0, KEPT_HAPPENINGS), at: now };
}

function fits(server: MapServer, model: Model): boolean {
  return spanOf(server).first < spanOf(server).last && spanOf(server).last <= model.blocks;
}

function identity(server: MapServer): string {
  return `${server.peerId} ${spanOf(server).first}:${spanOf(server).last}`;
}

function follow(
  before: readonly SeenServer[] | undefined,
  present: readonly MapServer[],
  now: number,
): SeenServer[] {
  if (before === undefined) return present.map((server) => ({ server, since: undefined, gone: undefined })).sort(bySpan);
  const known = new Map(before.map((seen) => [identity(seen.server), seen]));
  const here: SeenServer[] = present.map((server) => {
    const old = known.get(identity(server));
    return { server, since: old !== undefined && old.gone === undefined ? old.since : now, gone: undefined };
  });
  const ids = new Set(present.map(identity));
  const gone = before
    .filter(({ server }) => !ids.has(identity(server)))
    .map((seen) => ({ ...seen, gone: seen.gone ?? now }))
    .filter((seen) => now - seen.gone < FADING);
  return [...here, ...gone].sort(bySpan);
}

function bySpan(a: SeenServer, b: SeenServer): number {
  return spanOf(a.server).first - spanOf(b.server).first || spanOf(a.server).last - spanOf(b.server).last;
}

function countReplicas(servers: readonly MapServer[], blocks: number): number[] {
  const replicas = new Array<number>(blocks).fill(0);
  for (const server of servers) {
    if (server.state !== "online") continue;
    const { first, last } = spanOf(server);
    for (let block = first; block < last; block++) replicas[block] = (replicas[block] ?? 0) + 1;
  }
  return replicas;
}

/** Runs of blocks that nobody serves. One that overlaps an earlier gap has lasted since that one began. */
function findGaps(replicas: readonly number[], before: readonly Gap[], now: number): Gap[] {
  const gaps: Gap[] = [];
  for (let block = 0; block < replicas.length; block++) {
    if (replicas[block] !== 0) continue;
    const open = gaps.at(-1);
    if (open?.last === block) open.last = block + 1;
    else gaps.push({ first: block, last: block + 1, since: now });
  }
  for (const gap of gaps) {
    const earlier = before.filter((old) => old.first < gap.last && gap.first < old.last);
    gap.since = Math.min(now, ...earlier.map((old) => old.since));
  }
  return gaps;
}

function tell(
  old: ModelSeen,
  servers: readonly MapServer[],
  nodes: readonly QueryNode[],
  now: number,
): Happening[] {
  const before = new Map(
    old.servers.filter((seen) => seen.gone === undefined).map(({ server }) => [server.peerId, server]),
  );
  const after = new Map(servers.map((server) => [server.peerId, server]));
  const found: Happening[] = [];
  const say = (kind: Happening["kind"], words: string): void => void found.push({ at: now, kind, words });
  for (const [peer, server] of after) {
    const was = before.get(peer);
    const where = blocksInWords(spanOf(server).first, spanOf(server).last);
    if (was === undefined) say("came", `${nameOf(server)} came with ${where}`);
    else if (spanOf(was).first !== spanOf(server).first || spanOf(was).last !== spanOf(server).last) {
      say("changed", `${nameOf(server)} moved to ${where}`);
    } else if (was.state !== server.state) say("changed", `${nameOf(server)} is ${stateInWords(server.state)}`);
  }
  for (const [peer, server] of before) {
    if (!after.has(peer)) say("went", `${nameOf(server)} left ${blocksInWords(spanOf(server).first, spanOf(server).last)}`);
  }
  const nodesBefore = new Set(old.nodes.map((node) => node.peerId));
  const nodesAfter = new Set(nodes.map((node) => node.peerId));
  for (const node of nodes) if (!nodesBefore.has(node.peerId)) say("came", `query node ${nameOf(node)} came`);
  for (const node of old.nodes) if (!nodesAfter.has(node.peerId)) say("went", `query node ${nameOf(node)} left`);
  return found;
}

export function stateInWords(state: string): string {
  const words: Record<string, string> = { joining: "loading", online: "online", draining: "about to leave" };
  return words[state] ?? state;
}

export function inWords(milliseconds: number): string {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 100) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Math.round(minutes / 60)} h`;
}
