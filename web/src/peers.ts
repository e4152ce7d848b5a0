/** Where to join: peers in the link, in peers.json, and those that were seen before. */

const REMEMBERED = 'swarm-peers'
const MOST_REMEMBERED = 16

/** `#peer=…&peer=…` of a link. */
export function peersInLink(hash: string): string[] {
  return new URLSearchParams(hash.replace(/^#/, '')).getAll('peer').filter(isAddress)
}

/** What peers.json holds, whatever it is. */
export function peersInFile(value: unknown): string[] {
  const peers = typeof value === 'object' && value !== null && 'peers' in value ? value.peers : []
  return Array.isArray(peers) ? peers.filter((peer): peer is string => typeof peer === 'string' && isAddress(peer)) : []
}

export function isAddress(text: string): boolean {
  return text.startsWith('/') && text.includes('/p2p/') && text.length < 1024
}

/** Addresses by the peer that they lead to. */
export function byPeer(addresses: readonly string[]): Map<string, string[]> {
  const peers = new Map<string, string[]>()
  for (const address of addresses) {
    const peer = address.split('/p2p/').at(-1) ?? ''
    peers.set(peer, [...(peers.get(peer) ?? []), address])
  }
  return peers
}

export function remembered(): string[] {
  try {
    return peersInFile({ peers: JSON.parse(localStorage.getItem(REMEMBERED) ?? '[]') as unknown })
  } catch {
    return []
  }
}

export function remember(addresses: readonly string[]): void {
  try {
    localStorage.setItem(REMEMBERED, JSON.stringify(addresses.slice(0, MOST_REMEMBERED)))
  } catch {
    // Without storage the page forgets; nothing else.
  }
}
