/** One question and its answer: what the page keeps of it, and how each event changes that. Pure. */

import { Failure_Code, Finished_Reason, type QueryReply, type RouteHop, type TraceSpan } from './swarm/wire/swarm_pb'


export type Status = 'asking' | 'waiting' | 'answering' | 'moving' | 'done' | 'stopped' | 'failed'

export interface Turn {
  prompt: string
  text: string
  status: Status
  /** What is happening, or what went wrong, in words. */
  words: string
  /** What makes the answer go on at another node. */
  generated: number[]
  sentBytes: number
  node: string
  route: RouteHop[]
  reroutes: number
  /** Nodes that were lost on the way, in words. */
  hiccups: string[]
  /** When tokens came, in ms. */
  times: number[]
  trace: TraceSpan[]
}

export type Event =
  | { kind: 'node'; name: string }
  | { kind: 'reply'; reply: QueryReply; now: number }
  | { kind: 'lost'; name: string; words: string }
  | { kind: 'waiting'; words: string }
  | { kind: 'stopped' }
  | { kind: 'failed'; words: string }

export function begin(prompt: string): Turn {
  return {
    prompt,
    text: '',
    status: 'asking',
    words: 'looking for a query node',
    generated: [],
    sentBytes: 0,
    node: '',
    route: [],
    reroutes: 0,
    hiccups: [],
    times: [],
    trace: [],
  }
}

export function ended(turn: Turn): boolean {
  return turn.status === 'done' || turn.status === 'stopped' || turn.status === 'failed'
}

export function reduce(turn: Turn, event: Event): Turn {
  if (ended(turn)) return turn
  switch (event.kind) {
    case 'node':
      return { ...turn, node: event.name, status: turn.generated.length > 0 ? 'moving' : 'asking', words: `asking ${event.name}` }
    case 'lost':
      return lose(turn, `${event.name} ${event.words}`)
    case 'waiting':
      return { ...turn, status: 'waiting', words: event.words }
    case 'stopped':
      return { ...turn, status: 'stopped', words: 'stopped' }
    case 'failed':
      return { ...turn, status: 'failed', words: event.words }
    case 'reply':
      return take(turn, event.reply, event.now)
  }
}

/** A node that is lost before it said anything is no hiccup of the answer. */
function lose(turn: Turn, words: string): Turn {
  if (turn.generated.length === 0) return { ...turn, status: 'asking', words: `${words}; asking another` }
  return { ...turn, status: 'moving', words: `${words}; going on with another`, hiccups: [...turn.hiccups, words] }
}

function take(turn: Turn, reply: QueryReply, now: number): Turn {
  const kind = reply.kind
  switch (kind.case) {
    case 'delta': {
      if (kind.value.sentBytes < turn.sentBytes) return turn
      const came = kind.value.tokens.length > 0 || kind.value.text !== ''
      return {
        ...turn,
        text: turn.text + kind.value.text,
        generated: [...turn.generated, ...kind.value.tokens],
        sentBytes: kind.value.sentBytes,
        status: came ? 'answering' : turn.status,
        words: came ? '' : turn.words,
        times: [...turn.times, ...kind.value.tokens.map(() => now)],
      }
    }
    case 'route':
      return { ...turn, route: kind.value.hops, reroutes: turn.reroutes + Number(kind.value.reason !== ''), words: kind.value.reason !== '' ? 'rerouted' : turn.words }
    case 'waiting':
      return { ...turn, status: 'waiting', words: kind.value.words }
    case 'finished':
      return { ...turn, status: 'done', words: kind.value.reason === Finished_Reason.LENGTH ? 'cut at the tokens that were asked for' : '', trace: kind.value.trace }
    default:
      return turn
  }
}

/** Whether another node would say the same. */
export function hopeless(code: Failure_Code): boolean {
  return code === Failure_Code.INVALID || code === Failure_Code.TOO_LONG
}

/** Tokens per second over the last ones; undefined before there are two. */
export function rate(times: readonly number[], last = 16): number | undefined {
  const some = times.slice(-last)
  const first = some[0]
  const end = some.at(-1)
  if (first === undefined || end === undefined || end <= first) return undefined
  return ((some.length - 1) * 1000) / (end - first)
}
