/** What the page needs of a network. `libp2p.ts` is the real one; tests have another. */

export interface Channel {
  send(body: Uint8Array): void
  /** The next frame; undefined at the end, however it came. */
  receive(): Promise<Uint8Array | undefined>
  close(): void
}

export interface Network {
  /** Dial a peer at any of its addresses. Rejects when it does not answer. */
  open(addresses: readonly string[], protocol: string): Promise<Channel>
}

export const QUERY = '/swarm/query/1.0.0'
export const MAP = '/swarm/map/1.0.0'

/** Addresses that this page may dial: a page that came over https may not use plain WebSocket. */
export function dialable(addresses: readonly string[], secure: boolean): string[] {
  const kinds = addresses.filter((address) => /\/(webrtc-direct|webtransport|ws|wss)(\/|$)/.test(address))
  return kinds.filter((address) => !secure || !/\/ws(\/|$)/.test(address) || /\/(tls|wss)\//.test(address))
}
