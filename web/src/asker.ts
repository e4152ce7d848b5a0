/** Asks query nodes, one after the other if need be, until an answer is whole. What it knows is in the `Turn`. */

import { create, fromBinary, toBinary } from '@bufbuild/protobuf'

import { QUERY, type Channel, type Network } from './network'
import { Failure_Code, QueryReplySchema, QuerySchema, type Query, type QueryNode } from './swarm/wire/swarm_pb'
import { hopeless, type Event, type Turn } from './turn'

/** A node that gives no sign of life for so long is taken for dead; nodes give one every two seconds. */
export const SILENCE = 8_000
const AVOID = 15_000
const PAUSE = 1_000
const MOST_FAILURES = 8

export interface Surroundings {
  network: Network
  /** Nodes to ask, the best first; those to avoid last. */
  nodes(avoid: ReadonlySet<string>): QueryNode[]
  /** Until when (ms) to keep away from nodes that failed; shared by all questions. */
  avoided: Map<string, number>
  /** A node's name for people. */
  label(node: QueryNode): string
  now(): number
  sleep(ms: number): Promise<void>
}

class Lost extends Error {}
class Refused extends Error {}

/** Events until the answer has ended; `turn()` is what has come of them. Ends quietly when `signal` does. */
export async function* ask(query: Query, turn: () => Turn, around: Surroundings, signal: AbortSignal): AsyncGenerator<Event> {
  let failures = 0
  while (!signal.aborted) {
    const now = around.now()
    const avoid = new Set([...around.avoided].filter(([, until]) => until > now).map(([peerId]) => peerId))
    const node = around.nodes(avoid)[0]
    if (node === undefined || avoid.has(node.peerId)) {
      yield { kind: 'waiting', words: node === undefined ? 'no query node answers for this model; waiting for one' : 'all query nodes are busy; waiting' }
      await around.sleep(PAUSE)
      continue
    }
    const before = turn().generated.length
    yield { kind: 'node', name: around.label(node) }
    try {
      yield* askOne(node, query, turn, around, signal)
      return
    } catch (error) {
      if (signal.aborted) break
      if (error instanceof Refused) {
        yield { kind: 'failed', words: error.message }
        return
      }
      const words = error instanceof Error ? error.message : String(error)
      around.avoided.set(node.peerId, around.now() + AVOID)
      failures = turn().generated.length > before || words === 'is busy' ? 0 : failures + 1
      if (failures >= MOST_FAILURES) {
        yield { kind: 'failed', words: `${failures} query nodes failed one after the other: ${words}` }
        return
      }
      yield { kind: 'lost', name: around.label(node), words }
    }
  }
  yield { kind: 'stopped' }
}

async function* askOne(node: QueryNode, query: Query, turn: () => Turn, around: Surroundings, signal: AbortSignal): AsyncGenerator<Event> {
  let channel: Channel
  try {
    channel = await around.network.open(node.edges, QUERY)
  } catch {
    throw new Lost('cannot be reached')
  }
  const stop = (): void => channel.close()
  signal.addEventListener('abort', stop)
  try {
    const { generated, sentBytes } = turn()
    channel.send(toBinary(QuerySchema, create(QuerySchema, { ...query, generated, sentBytes })))
    for (;;) {
      const reply = fromBinary(QueryReplySchema, await heard(channel, around))
      if (reply.kind.case === 'failure') {
        const { code, message } = reply.kind.value
        if (hopeless(code)) throw new Refused(message)
        throw new Lost(code === Failure_Code.BUSY ? 'is busy' : `could not go on (${message})`)
      }
      yield { kind: 'reply', reply, now: around.now() }
      if (reply.kind.case === 'finished') return
    }
  } finally {
    signal.removeEventListener('abort', stop)
    channel.close()
  }
}

async function heard(channel: Channel, around: Surroundings): Promise<Uint8Array> {
  const silence = around.sleep(SILENCE).then(() => 'silent' as const)
  const frame = await Promise.race([channel.receive(), silence])
  if (frame === 'silent') throw new Lost('went silent')
  if (frame === undefined) throw new Lost('is gone')
  return frame
}
