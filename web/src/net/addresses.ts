/** Which peers the page begins with, and which of their addresses a browser may dial. */

export type Kind = "webrtc-direct" | "webtransport" | "ws";
const ORDER: readonly Kind[] = ["webtransport", "webrtc-direct", "ws"];

/** How an address is dialled; undefined: not by a browser, or it does not say whose it is. */
export function kindOf(address: string): Kind | undefined {
  if (!address.startsWith("/") || !/\/p2p\/[A-Za-z0-9]+$/.test(address)) return undefined;
  if (address.includes("/webrtc-direct/")) return "webrtc-direct";
  if (address.includes("/webtransport/")) return "webtransport";
  return /\/wss?\//.test(address) ? "ws" : undefined;
}

export function peerIdOf(address: string): string {
  return address.slice(address.lastIndexOf("/p2p/") + "/p2p/".length);
}

export interface Surroundings {
  /** Whether the page came over https: then it may open no plain WebSocket. */
  secure: boolean;
  /** Whether the browser has WebTransport. */
  webTransport: boolean;
  /** Only these kinds, if any are named. */
  only: readonly Kind[];
}

/** The addresses that this page can dial, best first. */
export function dialable(addresses: readonly string[], { secure, webTransport, only }: Surroundings): string[] {
  const allowed = (address: string): boolean => {
    const kind = kindOf(address);
    if (kind === undefined || (only.length > 0 && !only.includes(kind))) return false;
    if (kind === "webtransport") return webTransport;
    return kind !== "ws" || !secure || /\/(wss|tls\/ws|tls\/sni\/[^/]+\/ws)\//.test(address);
  };
  const rank = (address: string): number => ORDER.indexOf(kindOf(address) as Kind);
  return addresses.filter(allowed).sort((a, b) => rank(a) - rank(b));
}

export interface Link {
  peers: string[];
  only: Kind[];
}

/** What the link's fragment says: `#peer=…&peer=…`, and `via=webrtc-direct` to use nothing else. */
export function readLink(fragment: string): Link {
  const said = new URLSearchParams(fragment.replace(/^#/, ""));
  const peers = said.getAll("peer").flatMap((value) => value.split(/[\s,]+/));
  const only = said.getAll("via").flatMap((value) => ORDER.filter((kind) => value.split(",").includes(kind)));
  return { peers: peers.filter((address) => kindOf(address) !== undefined), only };
}

/** The addresses in a peers.json: `{"peers": [...]}`. What is none is left out. */
export function readPeersFile(content: unknown): string[] {
  const peers = (content as { peers?: unknown } | null)?.peers;
  if (!Array.isArray(peers)) return [];
  return peers.filter((address): address is string => typeof address === "string" && kindOf(address) !== undefined);
}

const REMEMBERED = "swarm-peers";
const MOST_REMEMBERED = 16;

/** Peers of an earlier visit. */
export function remembered(): string[] {
  try {
    return readPeersFile({ peers: JSON.parse(localStorage.getItem(REMEMBERED) ?? "[]") as unknown });
  } catch {
    return [];
  }
}

export function remember(addresses: readonly string[]): void {
  try {
    localStorage.setItem(REMEMBERED, JSON.stringify(addresses.slice(0, MOST_REMEMBERED)));
  } catch {
    // Without storage the page forgets; nothing else.
  }
}

/** Addresses by the peer that they belong to, in order. */
export function byPeer(addresses: readonly string[]): Map<string, string[]> {
  const peers = new Map<string, string[]>();
  for (const address of addresses) {
    const peer = peerIdOf(address);
    peers.set(peer, [...(peers.get(peer) ?? []), address]);
  }
  return peers;
}
