/** Every block of a model and who serves it: servers as bars over the blocks, come and gone live. */

import { quantizationOf, spanOf } from "../contract";
import { blocksInWords, modelName, nameOf, type Session } from "../query/session";
import { inWords, type ModelSeen, type Seen, type SeenServer, stateInWords } from "../map/seen";
import { capital, h, hueOf, setText } from "./dom";

/** ms for which it is shown that a server has come. */
const FRESH = 1_500;
/** Blocks of which each has room for its number of servers in the drawing, on a phone too. */
const MOST_COUNTED = 20;
/** Numbers that the axis below the blocks has room for, on a phone too. */
const MOST_TICKS = 12;

export class MapView {
  readonly #title = h("h2", { id: "swarm-title" });
  readonly #words = h("p", { class: "map-words" });
  readonly #blocks = h("div", { class: "blocks", "aria-hidden": "true" });
  readonly #axis = h("div", { class: "axis", "aria-hidden": "true" });
  readonly #servers = h("ul", { class: "servers", "aria-label": "Servers, by the blocks that they serve" });
  readonly #nodes = h("ul", { class: "nodes" });
  readonly #nodesTitle = h("h3", {}, "Query nodes");
  readonly #happenings = h("ol", { class: "happenings" });
  readonly #happeningsTitle = h("h3", {}, "What happened");
  #drawn = "";

  constructor(section: HTMLElement) {
    section.append(this.#title, this.#words, this.#blocks, this.#axis, this.#servers, this.#nodesTitle, this.#nodes);
    section.append(this.#happeningsTitle, this.#happenings);
  }

  show(seen: Seen, model: ModelSeen | undefined, running: Session | undefined, now: number): void {
    this.#nodesTitle.hidden = model === undefined;
    this.#happeningsTitle.hidden = seen.happenings.length === 0;
    setText(this.#title, model === undefined ? "The swarm" : modelName(model.model.name));
    setText(this.#words, model === undefined ? "No map yet." : summary(model));
    const inUse = new Set(running?.route?.hops.map((hop) => hop.peerId));
    if (running?.node !== undefined) inUse.add(running.node.peerId);
    const key = this.#key(seen, model, inUse, now);
    if (key === this.#drawn) return;
    this.#drawn = key;
    this.#blocks.replaceChildren(...(model === undefined ? [] : drawBlocks(model)));
    this.#axis.replaceChildren(...(model === undefined ? [] : drawAxis(model.model.blocks)));
    this.#servers.replaceChildren(...(model === undefined ? [] : model.servers.map((each) => drawServer(each, model, inUse, now))));
    this.#nodes.replaceChildren(...(model?.nodes ?? []).map((node) => drawNode(node, inUse)));
    this.#happenings.replaceChildren(
      ...seen.happenings.slice(0, 8).map(({ at, words, kind }) =>
        h("li", { class: kind }, h("time", {}, clock(at)), " ", words),
      ),
    );
  }

  #key(seen: Seen, model: ModelSeen | undefined, inUse: Set<string>, now: number): string {
    const fresh = model?.servers.filter((each) => isFresh(each.since, now)).length;
    const gone = model?.servers.filter((each) => each.gone !== undefined).length;
    return [model?.model.key, seen.at, [...inUse].join(), fresh, gone].join(" ");
  }
}

function summary({ model, servers, replicas, nodes }: ModelSeen): string {
  const online = servers.filter(({ server, gone }) => gone === undefined && server.state === "online").length;
  const least = Math.min(...replicas);
  const cover = least === 0 ? "not every block is served" : least === 1 ? "each block at least once" : `each block at least ${least} times`;
  return `${model.blocks} blocks on ${count(online, "server")}, ${cover}; ${count(nodes.length, "query node")}.`;
}

export function count(number: number, what: string): string {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}

function drawBlocks({ model, replicas }: ModelSeen): HTMLElement[] {
  const most = Math.max(2, ...replicas);
  return replicas.map((number, block) => {
    const cell = h("span", { class: number === 0 ? "block missing" : "block", title: `block ${block}: ${count(number, "server")}` });
    cell.style.setProperty("--full", String(0.25 + (0.75 * number) / most));
    if (model.blocks <= MOST_COUNTED) cell.append(h("b", {}, String(number)));
    return cell;
  });
}

/** The blocks that are numbered: so many that their numbers do not touch. */
export function ticks(blocks: number): number[] {
  const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
  const step = steps.find((each) => Math.ceil(blocks / each) <= MOST_TICKS) ?? blocks;
  return Array.from({ length: Math.ceil(blocks / step) }, (_, index) => index * step);
}

function drawAxis(blocks: number): HTMLElement[] {
  return ticks(blocks).map((block) => {
    const tick = h("i", {}, String(block));
    tick.style.insetInlineStart = `${(100 * (block + 0.5)) / blocks}%`;
    return tick;
  });
}

function drawServer(
  { server, since, gone }: SeenServer,
  { model }: ModelSeen,
  inUse: ReadonlySet<string>,
  now: number,
): HTMLElement {
  const state = gone === undefined ? server.state : "gone";
  const where = blocksInWords(spanOf(server).first, spanOf(server).last);
  const used = state !== "gone" && inUse.has(server.peerId);
  const facts = state === "gone" ? [where, "left"] : [
    where,
    state === "online" ? "" : stateInWords(state),
    server.decodeMs > 0 ? `${server.decodeMs.toFixed(server.decodeMs < 10 ? 1 : 0)} ms a block` : "",
    server.queue > 0 ? `${server.queue} waiting` : "",
    quantizationOf(server),
    server.relayed ? "relayed" : "",
    used ? "in use" : "",
  ];
  const classes = ["server", hueOf(server.peerId), `is-${state}`];
  if (used) classes.push("in-use");
  if (gone === undefined && isFresh(since, now)) classes.push("fresh");
  const bar = h("span", { class: "bar", "aria-hidden": "true" });
  bar.style.marginInlineStart = `${(100 * spanOf(server).first) / model.blocks}%`;
  bar.style.inlineSize = `${(100 * (spanOf(server).last - spanOf(server).first)) / model.blocks}%`;
  return h(
    "li",
    { class: classes.join(" "), title: server.peerId },
    bar,
    h("span", { class: "who" }, nameOf(server)),
    h("span", { class: "facts" }, facts.filter(Boolean).join(" · ")),
  );
}

function isFresh(since: number | undefined, now: number): boolean {
  return since !== undefined && now - since < FRESH;
}

function drawNode(node: ModelSeen["nodes"][number], inUse: ReadonlySet<string>): HTMLElement {
  const used = inUse.has(node.peerId);
  const facts = [`${node.running} of ${node.capacity} busy`, used ? "in use" : "", node.edges.length ? "" : "not for browsers"];
  return h(
    "li",
    { class: used ? "node in-use" : "node", title: node.peerId },
    h("span", { class: "who" }, nameOf(node)),
    h("span", { class: "facts" }, facts.filter(Boolean).join(" · ")),
  );
}

function clock(at: number): string {
  return new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** What is wrong with the swarm, in words; without how long, which changes all the time. */
export function whatIsMissing({ gaps, model, nodes }: ModelSeen): string {
  if (gaps.length > 0) {
    const named = gaps.slice(0, 3).map((gap) => blocksInWords(gap.first, gap.last));
    const more = gaps.length > 3 ? " and more" : "";
    const one = gaps.reduce((blocks, gap) => blocks + gap.last - gap.first, 0) === 1;
    return `${capital(named.join(", "))}${more} of ${modelName(model.name)} ${one ? "has" : "have"} no server; answers wait until somebody serves ${one ? "it" : "them"}`;
  }
  if (nodes.length === 0) return `Nobody answers queries for ${modelName(model.name)} just now; waiting for a query node`;
  if (nodes.every((node) => node.edges.length === 0)) return `The query nodes for ${modelName(model.name)} cannot be reached from browsers`;
  return "";
}

export function sinceWhen({ gaps }: ModelSeen, now: number): string {
  return gaps.length === 0 ? "" : `(for ${inWords(now - Math.min(...gaps.map((gap) => gap.since)))})`;
}
