/** Where the time of an answer went, as bars beside each other in time. */

import type { TraceSpan } from '../swarm/wire/swarm_pb'
import { el } from './dom'

export function drawTrace(place: HTMLElement, trace: readonly TraceSpan[], names: ReadonlyMap<string, string>): void {
  const end = Math.max(...trace.map((span) => span.start + span.seconds), 0.001)
  const rows = trace.map((span) => {
    const who = span.peerId === '' ? 'query node' : (names.get(span.peerId) ?? `…${span.peerId.slice(-6)}`)
    const bar = el('i', { class: `bar ${span.name.split(' ')[0] ?? ''}` })
    bar.style.setProperty('--start', `${(100 * span.start) / end}%`)
    bar.style.setProperty('--length', `${Math.max((100 * span.seconds) / end, 0.5)}%`)
    return el('li', {}, el('span', {}, `${who} · ${span.name}`), el('span', { class: 'track' }, bar), el('span', { class: 'quiet' }, `${(1000 * span.seconds).toFixed(0)} ms${span.count > 1 ? ` in ${span.count}` : ''}`))
  })
  place.replaceChildren(el('ol', { class: 'trace' }, ...rows))
}
