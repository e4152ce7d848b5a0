import { expect, test } from 'vitest'

import { dialable } from '../src/network'
import { byPeer, peersInFile, peersInLink } from '../src/peers'

test('peers in a link and in a file', () => {
  const peer = '/ip4/1.2.3.4/udp/5/webrtc-direct/certhash/uEi/p2p/12D3'
  expect(peersInLink(`#peer=${encodeURIComponent(peer)}&peer=nonsense&x=1`)).toEqual([peer])
  expect(peersInFile({ peers: [peer, 3, 'x'] })).toEqual([peer])
  for (const junk of [null, 3, {}, { peers: 'x' }, []]) expect(peersInFile(junk)).toEqual([])
  expect([...byPeer([peer, `${peer.replace('1.2.3.4', '5.6.7.8')}`]).values()][0]).toHaveLength(2)
})

test('a secure page does not dial plain WebSocket', () => {
  const all = ['/ip4/1.2.3.4/tcp/5/ws/p2p/x', '/ip4/1.2.3.4/udp/5/webrtc-direct/p2p/x', '/dns4/a/tcp/443/tls/ws/p2p/x', '/ip4/1.2.3.4/tcp/9/p2p/x']
  expect(dialable(all, true)).toEqual([all[1], all[2]])
  expect(dialable(all, false)).toEqual(all.slice(0, 3))
})
