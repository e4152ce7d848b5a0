/** Keeps a map of the swarm: watches at one peer, and goes on with the next when that one ends. */

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { byPeer, dialable, type Surroundings } from "../net/addresses";
import type { Network } from "../net/node";
import { MapRequestSchema, type SwarmMap, SwarmMapSchema } from "../swarm/wire/swarm_pb";

export const MAP_PROTOCOL = "/swarm/map/1.0.0";
const FRAME_LIMIT = 1024 * 1024;
const OPENING = 15_000;
/** ms without a map after which it is asked for again: nothing may have changed, or the peer may be gone. */
const SILENCE = 30_000;
const PAUSE_MIN = 500;
const PAUSE_MAX = 8_000;

export interface Watcher {
  map(map: SwarmMap): void;
  /** No peer shows the map any more. */
  lost(): void;
}

export class Watch {
  #peers: string[][] = [];
  readonly #begun: string[];
  readonly #ended = new AbortController();

  constructor(
    private readonly network: Network,
    private readonly surroundings: Surroundings,
    peers: readonly string[],
    private readonly watcher: Watcher,
  ) {
    this.#begun = [...peers];
    this.meet([]);
    void this.#run();
  }

  /** Query nodes may show the map, too: when the peers that the page began with are gone, there are these. */
  meet(addresses: readonly string[]): void {
    this.#peers = [...byPeer(dialable([...this.#begun, ...addresses], this.surroundings)).values()];
  }

  end(): void {
    this.#ended.abort();
  }

  async #run(): Promise<void> {
    let failures = 0;
    for (let turn = 0; !this.#ended.signal.aborted; turn++) {
      const peer = this.#peers[turn % this.#peers.length];
      const seen = peer !== undefined && (await this.#watch(peer));
      failures = seen ? 0 : failures + 1;
      if (seen) {
        turn--;
        await pause(PAUSE_MIN);
      } else if (failures >= this.#peers.length) {
        this.watcher.lost();
        const rounds = failures / Math.max(1, this.#peers.length);
        await pause(Math.min(PAUSE_MAX, PAUSE_MIN * 2 ** rounds));
      }
    }
  }

  /** Watch at one peer until it ends; true if it showed anything. */
  async #watch(peer: readonly string[]): Promise<boolean> {
    const ended = new AbortController();
    const signal = AbortSignal.any([ended.signal, this.#ended.signal]);
    let clock = setTimeout(() => ended.abort(), OPENING);
    let seen = false;
    try {
      const request = toBinary(MapRequestSchema, create(MapRequestSchema, { watch: true }));
      const { frames } = await this.network.ask(peer, MAP_PROTOCOL, request, FRAME_LIMIT, OPENING, signal);
      for await (const frame of frames) {
        clearTimeout(clock);
        clock = setTimeout(() => ended.abort(), SILENCE);
        this.watcher.map(fromBinary(SwarmMapSchema, frame));
        seen = true;
      }
    } catch (error) {
      if (!seen) console.info("no map:", peer[0], error);
    } finally {
      clearTimeout(clock);
      ended.abort();
    }
    return seen;
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
