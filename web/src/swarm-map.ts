/** The swarm as the page knows it: pure functions over the last map. */

import type { MapServer, Model, QueryNode, SwarmMap } from './swarm/wire/swarm_pb'

export interface Block {
  index: number
  /** Peer ids of those that serve it now. */
  replicas: string[]
}

/** Every block of a model, and who serves it. */
export function blocksOf(model: Model, servers: readonly MapServer[]): Block[] {
  const online = servers.filter((server) => server.model === model.key && server.state === 'online')
  return Array.from({ length: model.blocks }, (_, index) => ({
    index,
    replicas: online.filter((server) => server.first <= index && index < server.last).map((server) => server.peerId),
  }))
}

/** Runs of blocks that nobody serves, as [first, last). */
export function gapsOf(blocks: readonly Block[]): [number, number][] {
  const gaps: [number, number][] = []
  for (const block of blocks) {
    if (block.replicas.length > 0) continue
    const last = gaps.at(-1)
    if (last !== undefined && last[1] === block.index) last[1]++
    else gaps.push([block.index, block.index + 1])
  }
  return gaps
}

/** A gap in words: “blocks 10–12”. */
export function inWords([first, last]: [number, number]): string {
  return last - first === 1 ? `block ${first}` : `blocks ${first}–${last - 1}`
}

/** What is wrong with a model, in words; an empty text if nothing is. `since`: when each gap was first seen. */
export function trouble(model: Model, blocks: readonly Block[], since: Map<string, number>, now: number): string {
  return gapsOf(blocks)
    .map((gap) => {
      const seconds = Math.round((now - (since.get(inWords(gap)) ?? now)) / 1000)
      const verb = gap[1] - gap[0] === 1 ? 'has' : 'have'
      return `${inWords(gap)} of ${shortName(model.name)} ${verb} no server${seconds > 0 ? ` since ${seconds} s` : ''}`
    })
    .join('; ')
}

/** Since when each gap has been there. */
export function gapsSince(gaps: readonly [number, number][], before: Map<string, number>, now: number): Map<string, number> {
  return new Map(gaps.map((gap) => [inWords(gap), before.get(inWords(gap)) ?? now]))
}

export interface Change {
  peerId: string
  kind: 'came' | 'left'
}

/** Who came and who left between two maps. */
export function changes(before: SwarmMap | undefined, after: SwarmMap): Change[] {
  if (before === undefined) return []
  const known = new Set(before.servers.map((server) => server.peerId))
  const there = new Set(after.servers.map((server) => server.peerId))
  return [
    ...[...there].filter((peerId) => !known.has(peerId)).map((peerId): Change => ({ peerId, kind: 'came' })),
    ...[...known].filter((peerId) => !there.has(peerId)).map((peerId): Change => ({ peerId, kind: 'left' })),
  ]
}

/** Query nodes of a model, the emptiest first; those to avoid last. */
export function nodesFor(map: SwarmMap, model: string, avoid: ReadonlySet<string>): QueryNode[] {
  const load = (node: QueryNode): number => (node.capacity > 0 ? node.running / node.capacity : 1)
  return map.nodes
    .filter((node) => node.model === model && node.edges.length > 0)
    .sort((a, b) => Number(avoid.has(a.peerId)) - Number(avoid.has(b.peerId)) || load(a) - load(b))
}

/** The end of a model's name, or of a path. */
export function shortName(name: string): string {
  return name.replace(/\/+$/, '').split('/').pop() ?? name
}

/** A peer's own name, or the end of its id. */
export function label(peer: { name: string; peerId: string }): string {
  return peer.name !== '' ? peer.name : `…${peer.peerId.slice(-6)}`
}
