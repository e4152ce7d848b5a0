/** The page: joins the swarm, shows it, and asks it. */

import { create } from '@bufbuild/protobuf'

import { ask, type Surroundings } from './asker'
import { joinNetwork } from './libp2p'
import type { Network } from './network'
import { isAddress, peersInFile, peersInLink, remember, remembered } from './peers'
import { blocksOf, changes, gapsOf, gapsSince, label, nodesFor, shortName, type Change } from './swarm-map'
import { QuerySchema, SamplingSchema, type Model, type Query, type SwarmMap } from './swarm/wire/swarm_pb'
import { begin, ended, reduce, type Turn } from './turn'
import { byId, el } from './views/dom'
import { drawMap } from './views/map'
import { drawRoute } from './views/route'
import { drawTrace } from './views/trace'
import { turnView } from './views/turns'

import { watch } from './watcher'

const RECENT = 30_000
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

const page = {
  map: undefined as SwarmMap | undefined,
  since: new Map<string, number>(),
  recent: [] as (Change & { at: number })[],
  turns: [] as Turn[],
  running: undefined as AbortController | undefined,
  avoided: new Map<string, number>(),
}

const form = byId<HTMLFormElement>('ask')
const prompt = byId<HTMLTextAreaElement>('prompt')
const models = byId<HTMLSelectElement>('model')

function model(): Model | undefined {
  return page.map?.models.find((each) => each.key === models.value) ?? page.map?.models[0]
}

function draw(): void {
  const turn = page.turns.at(-1)
  const inUse = new Set(turn !== undefined && !ended(turn) ? turn.route.map((hop) => hop.peerId) : [])
  page.recent = page.recent.filter((change) => Date.now() - change.at < RECENT)
  drawRoute(byId('route'), turn)
  drawMap(byId('map'), page.map, model(), page.since, inUse, page.recent)
  const names = new Map(page.map?.servers.map((server) => [server.peerId, label(server)]))
  byId('trace-section').hidden = turn === undefined || turn.trace.length === 0
  if (turn !== undefined && turn.trace.length > 0) drawTrace(byId('trace'), turn.trace, names)
}

function onMap(map: SwarmMap): void {
  page.recent.push(...changes(page.map, map).map((change) => ({ ...change, at: Date.now() })))
  page.map = map
  const chosen = models.value
  const options = map.models.map((each) => el('option', { value: each.key }, shortName(each.name)))
  models.replaceChildren(...options)
  if (map.models.some((each) => each.key === chosen)) models.value = chosen
  const now = model()
  if (now !== undefined) page.since = gapsSince(gapsOf(blocksOf(now, map.servers)), page.since, Date.now())
  remember(map.nodes.flatMap((node) => node.edges))
  draw()
}

function announce(words: string): void {
  byId('announcer').textContent = words
}

/** The query that a question means: a conversation where the model has a template for one, else a text to go on with. */
function queryOf(text: string, converses: boolean): Query {
  const number = (id: string): number => Number(byId<HTMLInputElement>(id).value)
  const seed = BigInt(Math.max(Math.trunc(number('seed')), 0)) || BigInt(crypto.getRandomValues(new Uint32Array(1))[0] ?? 1) + 1n
  const sampling = create(SamplingSchema, { temperature: number('temperature'), maxTokens: Math.max(number('tokens'), 1), seed })
  const id = crypto.getRandomValues(new Uint8Array(16))
  const before = page.turns.filter((turn) => turn.text !== '')
  const messages = [...before.flatMap((turn) => [{ role: 'user', content: turn.prompt }, { role: 'assistant', content: turn.text }]), { role: 'user', content: text }]
  const asked = converses ? { case: 'messages' as const, value: JSON.stringify(messages) } : { case: 'text' as const, value: text }
  return create(QuerySchema, { id, model: model()?.key ?? '', prompt: asked, sampling, trace: true })
}

async function submit(network: Network): Promise<void> {
  const text = prompt.value.trim()
  const chosen = model()
  if (text === '' || chosen === undefined || page.running !== undefined) return
  const converses = page.map?.nodes.some((node) => node.model === chosen.key && node.converses) ?? false
  const query = queryOf(text, converses)
  const view = turnView()
  const index = page.turns.push(begin(text)) - 1
  const turn = (): Turn => page.turns[index] ?? begin(text)
  byId('turns').append(view.element)
  prompt.value = ''
  page.running = new AbortController()
  setBusy(true)
  announce('Asking')
  const around: Surroundings = {
    network,
    nodes: (avoid) => (page.map === undefined ? [] : nodesFor(page.map, chosen.key, avoid)),
    avoided: page.avoided,
    label,
    now: () => Date.now(),
    sleep,
  }
  for await (const event of ask(query, turn, around, page.running.signal)) {
    page.turns[index] = reduce(turn(), event)
    if (event.kind === 'lost' || event.kind === 'waiting') announce(turn().words)
    show(view, turn())
  }
  page.running = undefined
  setBusy(false)
  announce(turn().status === 'done' ? `The answer is complete: ${turn().text}` : turn().words)
  show(view, turn())
}

function show(view: ReturnType<typeof turnView>, turn: Turn): void {
  const bottom = scrollY + innerHeight > document.documentElement.scrollHeight - 120
  view.show(turn)
  draw()
  if (bottom) view.element.scrollIntoView({ block: 'end' })
}

function setBusy(busy: boolean): void {
  byId('send').hidden = busy
  byId('stop').hidden = !busy
  if (busy) byId('stop').focus()
  else prompt.focus()
}

async function fromFile(): Promise<string[]> {
  try {
    return peersInFile(await (await fetch('peers.json')).json())
  } catch {
    return []
  }
}

async function main(): Promise<void> {
  const given = [...peersInLink(location.hash), ...(await fromFile())]
  const network = await joinNetwork()
  form.addEventListener('submit', (event) => {
    event.preventDefault()
    void submit(network)
  })
  prompt.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
    event.preventDefault()
    form.requestSubmit()
  })
  byId('stop').addEventListener('click', () => page.running?.abort())
  addEventListener('keydown', (event) => {
    if (event.key === 'Escape') page.running?.abort()
  })
  models.addEventListener('change', draw)
  byId('peers').addEventListener('submit', (event) => {
    event.preventDefault()
    const input = byId<HTMLInputElement>('peer')
    const fits = isAddress(input.value.trim())
    input.setCustomValidity(fits ? '' : 'an address of libp2p: /ip4/…/p2p/…')
    if (!fits) return void input.reportValidity()
    given.unshift(input.value.trim())
    input.value = ''
  })
  setInterval(draw, 1000)
  draw()
  const connection = byId('connection')
  await watch(
    network,
    () => [...given, ...remembered()],
    {
      map: onMap,
      connection: (words, joined) => {
        if (connection.textContent !== words) connection.textContent = words
        connection.classList.toggle('joined', joined)
      },
    },
    sleep,
  )
}

main().catch((error: unknown) => {
  byId('connection').textContent = `This browser cannot join: ${error instanceof Error ? error.message : String(error)}`
})
