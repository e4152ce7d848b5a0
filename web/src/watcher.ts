/** Keeps a map of the swarm, through whichever peer gives one. */

import { create, fromBinary, toBinary } from '@bufbuild/protobuf'

import { MAP, type Network } from './network'
import { byPeer } from './peers'
import { MapRequestSchema, SwarmMapSchema, type SwarmMap } from './swarm/wire/swarm_pb'

const PAUSE = 2_000

export interface Told {
  map(map: SwarmMap): void
  /** In words, whether somebody gives a map now. */
  connection(words: string, joined: boolean): void
}

/** Watch for ever: `addresses` are tried peer by peer, and those of query nodes in the last map after them. */
export async function watch(network: Network, addresses: () => string[], told: Told, sleep: (ms: number) => Promise<void>): Promise<never> {
  let known: string[] = []
  for (;;) {
    const peers = byPeer([...addresses(), ...known])
    if (peers.size === 0) told.connection('No peer is known. Paste the address of one below.', false)
    for (const [peer, places] of peers) {
      told.connection(`Joining through …${peer.slice(-6)}`, false)
      try {
        const channel = await network.open(places, MAP)
        channel.send(toBinary(MapRequestSchema, create(MapRequestSchema, { watch: true })))
        for (let frame = await channel.receive(); frame !== undefined; frame = await channel.receive()) {
          const map = fromBinary(SwarmMapSchema, frame)
          known = map.nodes.flatMap((node) => node.edges)
          told.map(map)
          told.connection(`Joined through …${peer.slice(-6)}`, true)
        }
        told.connection(`…${peer.slice(-6)} is gone; looking for another peer`, false)
        break
      } catch {
        told.connection(`…${peer.slice(-6)} cannot be reached`, false)
      }
    }
    await sleep(PAUSE)
  }
}
