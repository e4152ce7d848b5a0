import { create, fromBinary, toBinary } from '@bufbuild/protobuf'
import { expect, test } from 'vitest'

import { ask, SILENCE, type Surroundings } from '../src/asker'
import type { Channel } from '../src/network'
import { Failure_Code, QueryNodeSchema, QueryReplySchema, QuerySchema, type Query, type QueryNode, type QueryReply } from '../src/swarm/wire/swarm_pb'
import { begin, ended, rate, reduce, type Turn } from '../src/turn'

const WORDS = ['one', ' two', ' three', ' four', ' five', ' six']

/** A node that says WORDS from where the asker is, and ends as it is told. */
type Node = (query: Query) => (QueryReply | 'silence' | 'end')[]

const reply = (kind: QueryReply['kind']): QueryReply => create(QueryReplySchema, { kind } as never)
const word = (index: number): QueryReply => {
  const sentBytes = WORDS.slice(0, index + 1).join('').length
  return reply({ case: 'delta', value: { tokens: [index], text: WORDS[index] ?? '', sentBytes, logprobs: [] } } as never)
}
const finished = reply({ case: 'finished', value: { reason: 0 } } as never)
const failure = (code: Failure_Code): QueryReply => reply({ case: 'failure', value: { code, message: 'why' } } as never)

const good: Node = (query) => [...WORDS.keys()].slice(query.generated.length).map(word).concat(finished)
const after = (count: number, how: QueryReply | 'silence' | 'end'): Node => (query) => [...WORDS.keys()].slice(query.generated.length).slice(0, count).map(word).concat(how as never)

async function play(nodes: Record<string, Node | undefined>, stopAt = Infinity): Promise<{ turn: Turn; asked: string[] }> {
  const asked: string[] = []
  let time = 0
  let turn = begin('say')
  const controller = new AbortController()
  const around: Surroundings = {
    avoided: new Map(),
    label: (node) => node.peerId,
    now: () => time,
    sleep: (ms) => new Promise((resolve) => setTimeout(() => { if (ms !== SILENCE) time += ms; resolve() }, ms === SILENCE ? 20 : 0)),
    nodes: (avoid) => Object.keys(nodes).map((peerId) => create(QueryNodeSchema, { peerId, edges: [peerId] })).sort((a: QueryNode, b: QueryNode) => Number(avoid.has(a.peerId)) - Number(avoid.has(b.peerId))),
    network: {
      open: async (addresses) => {
        const name = addresses[0] ?? ''
        asked.push(name)
        const node = nodes[name]
        if (node === undefined) throw new Error('unreachable')
        let script: (QueryReply | 'silence' | 'end')[] = []
        let closed = false
        const channel: Channel = {
          send: (body) => { script = node(fromBinary(QuerySchema, body)) },
          receive: async () => {
            const next = closed ? 'end' : (script.shift() ?? 'end')
            if (next === 'silence') return await new Promise(() => undefined)
            return next === 'end' ? undefined : toBinary(QueryReplySchema, next)
          },
          close: () => { closed = true },
        }
        return channel
      },
    },
  }
  for await (const event of ask(create(QuerySchema, { prompt: { case: 'text', value: 'say' } }), () => turn, around, controller.signal)) {
    turn = reduce(turn, event)
    if (turn.generated.length >= stopAt) controller.abort()
    if (asked.length > 40) controller.abort()
  }
  return { turn, asked }
}

test('an answer of one node', async () => {
  const { turn, asked } = await play({ a: good })
  expect(turn).toMatchObject({ status: 'done', text: WORDS.join(''), hiccups: [] })
  expect(asked).toEqual(['a'])
})

test.each(['end', 'silence', failure(Failure_Code.COMPUTE_FAILED), failure(Failure_Code.UNKNOWN)] as const)('another goes on when one is lost by %s', async (how) => {
  for (let count = 0; count <= WORDS.length; count++) {
    const { turn, asked } = await play({ a: after(count, how), b: good })
    expect(turn).toMatchObject({ status: 'done', text: WORDS.join(''), generated: [...WORDS.keys()] })
    expect(turn.hiccups).toHaveLength(Math.min(count, 1))
    expect(asked).toEqual(['a', 'b'])
  }
})

test('a node that cannot be reached, or is full, is no hiccup', async () => {
  expect((await play({ a: undefined, b: after(0, failure(Failure_Code.BUSY)), c: good })).turn).toMatchObject({ status: 'done', hiccups: [] })
})

test('what no node can answer fails at once, in words', async () => {
  const { turn, asked } = await play({ a: after(0, failure(Failure_Code.TOO_LONG)), b: good })
  expect(turn).toMatchObject({ status: 'failed', words: 'why' })
  expect(asked).toEqual(['a'])
})

test('nodes that fail one after the other are given up', async () => {
  const { turn } = await play({ a: after(0, failure(Failure_Code.COMPUTE_FAILED)), b: undefined })
  expect(turn.status).toBe('failed')
})

test('stopping stops', async () => {
  const { turn } = await play({ a: good }, 3)
  expect(turn).toMatchObject({ status: 'stopped', generated: [0, 1, 2] })
})

test('an answer that has ended does not change', () => {
  const done = reduce(begin('x'), { kind: 'stopped' })
  expect(ended(done)).toBe(true)
  expect(reduce(done, { kind: 'lost', name: 'a', words: 'is gone' })).toBe(done)
  expect(rate([0, 500, 1000])).toBe(2)
  expect(rate([5])).toBeUndefined()
})
