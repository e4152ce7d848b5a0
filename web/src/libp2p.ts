/** The real network: js-libp2p over WebRTC, WebTransport and WebSocket. */

import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { webRTCDirect } from '@libp2p/webrtc'
import { webSockets } from '@libp2p/websockets'
import { webTransport } from '@libp2p/webtransport'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

import { frame, Splitter } from './frames'
import { dialable, type Channel, type Network } from './network'

const DIAL_TIMEOUT = 10_000
const MOST_ADDRESSES = 8

export async function joinNetwork(): Promise<Network> {
  const node = await createLibp2p({
    transports: [webRTCDirect(), webTransport(), webSockets()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    // Swarms live in homes and labs, too: private addresses are as good as others.
    connectionGater: { denyDialMultiaddr: () => false },
  })
  // Over WebRTC a peer does not notice that a tab was closed.
  addEventListener('pagehide', () => void node.stop())
  return {
    async open(addresses, protocol) {
      const usable = dialable(addresses, location.protocol === 'https:').slice(0, MOST_ADDRESSES)
      if (usable.length === 0) throw new Error('it has no address that a browser can dial')
      const signal = AbortSignal.timeout(DIAL_TIMEOUT)
      const stream = await node.dialProtocol(usable.map((address) => multiaddr(address)), protocol, { signal })
      return channelOf(stream)
    },
  }
}

type Stream = Awaited<ReturnType<Awaited<ReturnType<typeof createLibp2p>>['dialProtocol']>>

function channelOf(stream: Stream): Channel {
  const splitter = new Splitter()
  const frames: Uint8Array[] = []
  let ended = false
  let wake = (): void => undefined
  const read = async (): Promise<void> => {
    try {
      for await (const piece of stream) {
        frames.push(...splitter.add(piece instanceof Uint8Array ? piece : piece.subarray()))
        wake()
      }
    } catch {
      // An end like any other: whoever asked goes on elsewhere.
    }
    ended = true
    wake()
  }
  void read()
  return {
    send: (body) => void stream.send(frame(body)),
    async receive() {
      while (frames.length === 0 && !ended) await new Promise<void>((resolve) => (wake = resolve))
      return frames.shift()
    },
    close: () => {
      ended = true
      wake()
      stream.abort(new Error('closed'))
    },
  }
}
