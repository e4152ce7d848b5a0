import { create } from '@bufbuild/protobuf'
import { expect, test } from 'vitest'

import { blocksOf, changes, gapsOf, gapsSince, inWords, nodesFor, shortName, trouble } from '../src/swarm-map'
import { MapServerSchema, ModelSchema, QueryNodeSchema, SwarmMapSchema } from '../src/swarm/wire/swarm_pb'

const model = create(ModelSchema, { key: 'k', name: 'org/Model', blocks: 8 })
const server = (peerId: string, first: number, last: number, state = 'online', key = 'k') =>
  create(MapServerSchema, { peerId, model: key, first, last, state })

test('blocks and gaps', () => {
  const servers = [server('a', 0, 3), server('b', 2, 4), server('c', 4, 6, 'joining'), server('d', 7, 8), server('x', 0, 8, 'online', 'other')]
  const blocks = blocksOf(model, servers)
  expect(blocks.map((block) => block.replicas.length)).toEqual([1, 1, 2, 1, 0, 0, 0, 1])
  expect(gapsOf(blocks)).toEqual([[4, 7]])
  const since = gapsSince([[4, 7]], new Map(), 1000)
  expect(trouble(model, blocks, since, 41_000)).toBe('blocks 4–6 of Model have no server since 40 s')
  expect(gapsSince([[4, 7]], since, 9000)).toEqual(since)
  expect(gapsSince([], since, 9000).size).toBe(0)
  expect(inWords([3, 4])).toBe('block 3')
})

test('who came and who left', () => {
  const map = (...ids: string[]) => create(SwarmMapSchema, { servers: ids.map((id) => server(id, 0, 8)) })
  expect(changes(undefined, map('a'))).toEqual([])
  expect(changes(map('a', 'b'), map('b', 'c'))).toEqual([{ peerId: 'c', kind: 'came' }, { peerId: 'a', kind: 'left' }])
})

test('the emptiest node first, those to avoid last, those without an edge never', () => {
  const node = (peerId: string, running: number, edges = ['/x']) => create(QueryNodeSchema, { peerId, model: 'k', running, capacity: 10, edges })
  const map = create(SwarmMapSchema, { nodes: [node('busy', 9), node('free', 0), node('bad', 0), node('none', 0, []), create(QueryNodeSchema, { peerId: 'other', model: 'z', edges: ['/x'] })] })
  expect(nodesFor(map, 'k', new Set(['bad'])).map((each) => each.peerId)).toEqual(['free', 'busy', 'bad'])
  expect(shortName('a/b/')).toBe('b')
})
