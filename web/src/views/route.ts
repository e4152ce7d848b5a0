/** The route of the query under way: hidden states leave the query node, go through every hop, and come back. */

import { label } from '../swarm-map'
import type { RouteHop } from '../swarm/wire/swarm_pb'
import { ended, type Turn } from '../turn'
import { el, svg } from './dom'

const WIDTH = 320
const STEP = 58

/** Draw the route of a turn into `place`; with tokens coming, states flow along it. */
export function drawRoute(place: HTMLElement, turn: Turn | undefined): void {
  const hops = turn?.route ?? []
  if (turn === undefined || hops.length === 0) {
    place.replaceChildren(el('p', { class: 'empty' }, 'The route is drawn here as soon as a question is on its way.'))
    return
  }
  const key = JSON.stringify(hops.map((hop) => [hop.peerId, hop.first, hop.last]))
  if (place.dataset['route'] !== key || place.dataset['node'] !== turn.node) {
    place.dataset['route'] = key
    place.dataset['node'] = turn.node
    place.replaceChildren(picture(turn.node, hops), inWords(turn.node, hops))
  }
  place.classList.toggle('flowing', turn.status === 'answering' && !ended(turn))
  place.classList.toggle('broken', turn.status === 'moving' || turn.status === 'waiting')
}

function picture(node: string, hops: readonly RouteHop[]): SVGElement {
  const stations = [node, ...hops.map(label)]
  const height = STEP * stations.length
  const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} ${height}`, 'aria-hidden': 'true', class: 'route' })
  const x = 52
  const ys = stations.map((_, index) => STEP * index + STEP / 2)
  const end = ys.at(-1) ?? 0
  const way = `M ${x} ${ys[0]} V ${end} C ${x - 62} ${end} ${x - 62} ${ys[0]} ${x} ${ys[0]}`
  drawing.append(svg('path', { d: way, class: 'way' }))
  drawing.append(svg('path', { d: way, class: 'flow' }))
  stations.forEach((name, index) => {
    const y = ys[index] ?? 0
    const hop = hops[index - 1]
    drawing.append(svg('circle', { cx: x, cy: y, r: index === 0 ? 9 : 7, class: index === 0 ? 'node' : 'hop' }))
    drawing.append(svg('text', { x: x + 20, y: y - 2, class: 'name' }, name))
    const what = hop === undefined ? 'query node: text ⇄ tokens, embeddings, head' : `blocks ${hop.first}–${hop.last - 1}`
    drawing.append(svg('text', { x: x + 20, y: y + 14, class: 'what' }, what))
  })
  return drawing
}

/** The same for who does not see it. */
function inWords(node: string, hops: readonly RouteHop[]): HTMLElement {
  const list = hops.map((hop) => el('li', {}, `${label(hop)}: blocks ${hop.first} to ${hop.last - 1}`))
  return el('ol', { class: 'hidden', 'aria-label': `Route from ${node} through` }, ...list)
}
