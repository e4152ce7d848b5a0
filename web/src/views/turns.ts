/** Questions and answers. */

import { rate, type Turn } from '../turn'
import { el } from './dom'

/** One turn on the page; `show` brings it up to date. */
export interface TurnView {
  element: HTMLLIElement
  show(turn: Turn): void
}

export function turnView(): TurnView {
  const question = el('p', { class: 'question' })
  const answer = el('div', { class: 'answer' })
  const note = el('p', { class: 'note' })
  const hiccups = el('ul', { class: 'hiccups', 'aria-label': 'What happened on the way' })
  const element = el('li', { class: 'turn' }, question, answer, hiccups, note)
  return {
    element,
    show(turn) {
      question.textContent = turn.prompt
      // A text node that grows is cheaper than one that is written anew, and keeps what is selected.
      if (answer.textContent !== turn.text) {
        const shown = answer.textContent ?? ''
        if (turn.text.startsWith(shown)) answer.append(turn.text.slice(shown.length))
        else answer.textContent = turn.text
      }
      element.dataset['status'] = turn.status
      while (hiccups.children.length < turn.hiccups.length) {
        hiccups.append(el('li', {}, turn.hiccups[hiccups.children.length] ?? ''))
      }
      note.textContent = noteOf(turn)
    },
  }
}

function noteOf(turn: Turn): string {
  const speed = rate(turn.times, turn.status === 'done' ? Infinity : 16)
  const parts = [turn.words]
  if (turn.generated.length > 0) parts.push(`${turn.generated.length} token${turn.generated.length === 1 ? '' : 's'}`)
  if (speed !== undefined) parts.push(`${speed.toFixed(1)} tokens/s`)
  if (turn.node !== '') parts.push(`through ${turn.node}`)
  return parts.filter((part) => part !== '').join(' · ')
}
