/** Every block of a model with its replicas, and who comes and goes. */

import { blocksOf, gapsOf, label, shortName, trouble, type Change } from '../swarm-map'
import type { MapServer, Model, SwarmMap } from '../swarm/wire/swarm_pb'
import { el } from './dom'

const MOST_SHOWN = 4

/** Draw a model's part of the map. `inUse`: peers on the route of the query under way. */
export function drawMap(place: HTMLElement, map: SwarmMap | undefined, model: Model | undefined, since: Map<string, number>, inUse: ReadonlySet<string>, recent: readonly Change[]): void {
  if (map === undefined || model === undefined) {
    place.replaceChildren(el('p', { class: 'empty' }, map === undefined ? 'Waiting for a map of the swarm.' : 'Nobody serves a model here yet.'))
    return
  }
  const servers = map.servers.filter((server) => server.model === model.key)
  const blocks = blocksOf(model, servers)
  const wrong = trouble(model, blocks, since, Date.now())
  const summary = `${shortName(model.name)}: ${blocks.length} blocks, ${servers.length} server${servers.length === 1 ? '' : 's'}`
  const cells = blocks.map((block) => {
    const depth = Math.min(block.replicas.length, MOST_SHOWN)
    const used = block.replicas.some((peerId) => inUse.has(peerId))
    return el('i', { class: `block deep${depth}${used ? ' used' : ''}`, title: `block ${block.index}: ${block.replicas.length} server${block.replicas.length === 1 ? '' : 's'}` })
  })
  const gaps = gapsOf(blocks)
  place.replaceChildren(
    el('p', { class: 'summary' }, summary),
    el('div', { class: 'blocks', role: 'img', 'aria-label': gaps.length === 0 ? `All ${blocks.length} blocks are served` : wrong }, ...cells),
    ...(wrong === '' ? [] : [el('p', { class: 'trouble', role: 'alert' }, wrong)]),
    el('ul', { class: 'servers' }, ...[...servers].sort((a, b) => a.first - b.first || a.last - b.last).map((server) => serverLine(server, inUse, recent))),
    ...gone(recent, map),
  )
}

function serverLine(server: MapServer, inUse: ReadonlySet<string>, recent: readonly Change[]): HTMLElement {
  const came = recent.some((change) => change.peerId === server.peerId && change.kind === 'came')
  const marks = [server.state === 'online' ? '' : server.state, came ? 'new' : '', inUse.has(server.peerId) ? 'in use' : ''].filter((mark) => mark !== '')
  const speed = server.decodeMs > 0 ? `${server.decodeMs.toFixed(1)} ms a block` : ''
  return el(
    'li',
    { class: inUse.has(server.peerId) ? 'used' : undefined },
    el('b', {}, label(server)),
    el('span', {}, `${server.first}–${server.last - 1}`),
    el('span', { class: 'quiet' }, [speed, server.queue > 0 ? `${server.queue} waiting` : '', ...marks].filter((part) => part !== '').join(' · ')),
  )
}

function gone(recent: readonly Change[], map: SwarmMap): HTMLElement[] {
  const there = new Set(map.servers.map((server) => server.peerId))
  const left = recent.filter((change) => change.kind === 'left' && !there.has(change.peerId))
  return left.length === 0 ? [] : [el('p', { class: 'quiet' }, `left: ${left.map((change) => `…${change.peerId.slice(-6)}`).join(', ')}`)]
}
