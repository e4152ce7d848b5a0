/** The page as a libp2p peer: it dials, and nobody dials it. */

import { noise } from "@chainsafe/libp2p-noise";
import { yamux } from "@chainsafe/libp2p-yamux";
import { webRTCDirect } from "@libp2p/webrtc";
import { webSockets } from "@libp2p/websockets";
import { webTransport } from "@libp2p/webtransport";
import { multiaddr } from "@multiformats/multiaddr";
import { createLibp2p, type Libp2p } from "libp2p";
import { encodeFrame, FrameReader } from "../wire/frames";

type Stream = Awaited<ReturnType<Libp2p["dialProtocol"]>>;

export interface Exchange {
  /** Frames of the other side, until it closes. Throws when the stream breaks. */
  frames: AsyncGenerator<Uint8Array, void>;
  end(): void;
}

export interface Network {
  /** Open a stream to a peer, send one frame, read what comes. Rejects when nobody answers in `timeout` ms. */
  ask(
    addresses: readonly string[],
    protocol: string,
    frame: Uint8Array,
    limit: number,
    timeout: number,
    signal: AbortSignal,
  ): Promise<Exchange>;
  close(): void;
}

export async function join(): Promise<Network> {
  const node = await createLibp2p({
    addresses: { listen: [] },
    transports: [webTransport(), webRTCDirect(), webSockets()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    // Peers in the same house or on the same machine are as good as others.
    connectionGater: { denyDialMultiaddr: () => false },
  });
  return new Joined(node);
}

class Joined implements Network {
  constructor(private readonly node: Libp2p) {}

  async ask(
    addresses: readonly string[],
    protocol: string,
    frame: Uint8Array,
    limit: number,
    timeout: number,
    signal: AbortSignal,
  ): Promise<Exchange> {
    const patience = AbortSignal.any([signal, AbortSignal.timeout(timeout)]);
    const stream = await this.open(addresses, protocol, patience);
    const end = (): void => stream.abort(new Error("not wanted any more"));
    signal.addEventListener("abort", end, { once: true });
    if (!stream.send(encodeFrame(frame))) await stream.onDrain({ signal: patience });
    return { frames: framesOf(stream, limit), end };
  }

  /** Over the first address that works; a kind that a browser or a router blocks costs its share of the time only. */
  private async open(addresses: readonly string[], protocol: string, signal: AbortSignal): Promise<Stream> {
    if (addresses.length === 0) throw new Error("no address that a browser can dial");
    return await this.node.dialProtocol(addresses.map((address) => multiaddr(address)), protocol, { signal });
  }

  close(): void {
    void this.node.stop();
  }
}

async function* framesOf(stream: Stream, limit: number): AsyncGenerator<Uint8Array, void> {
  const reader = new FrameReader(limit);
  for await (const piece of stream) {
    for (const frame of reader.push(piece instanceof Uint8Array ? piece : piece.subarray())) yield frame;
  }
}
