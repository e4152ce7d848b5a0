/** The way of the running query: from here to the query node, through the servers' blocks, and back. */

import { blocksInWords, isOver, nameOf, type Session } from "../query/session";
import { h, hueOf, isCalm, s, setText } from "./dom";

interface Stop {
  label: string;
  detail: string;
  hue: string;
  kind: "you" | "node" | "hop";
  blocks: number;
}

export interface Box extends Stop {
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Layout {
  boxes: Box[];
  /** What a token's hidden states travel, as an SVG path. */
  path: string;
  /** Where lines are drawn. */
  lines: string[];
  width: number;
  height: number;
  upright: boolean;
}

const GAP = 26;
const BOX_HEIGHT = 54;
/** Of a box's top, where tokens pass through it: below what is written there. */
const TRACK = 44;
/** More blocks than this are drawn as one bar. */
const MOST_TICKS = 16;
const LEAST_WIDTH = 78;
const MARGIN = 8;
const LETTER = 7.2;
/** Tokens under way that are shown at a time. */
const MOST_SPARKS = 14;
const TRAVEL_MS = 1400;

function stopsOf(session: Session): Stop[] {
  const { node, route } = session;
  const stops: Stop[] = [{ label: "You", detail: "this page", hue: "", kind: "you", blocks: 0 }];
  if (node !== undefined) {
    stops.push({ label: nameOf(node), detail: "query node", hue: "", kind: "node", blocks: 0 });
  }
  for (const hop of route?.hops ?? []) {
    const detail = blocksInWords(hop.first, hop.last);
    const blocks = hop.last - hop.first;
    stops.push({ label: nameOf(hop), detail, hue: hueOf(hop.peerId), kind: "hop", blocks });
  }
  return stops;
}

/** Side by side, or, where that is too narrow, one below the other. */
export function layOut(stops: readonly Stop[], width: number): Layout {
  const each = (width - 2 * MARGIN - GAP * (stops.length - 1)) / stops.length;
  return each >= LEAST_WIDTH ? sideways(stops, width, Math.min(each, 190)) : upright(stops, width);
}

function sideways(stops: readonly Stop[], width: number, each: number): Layout {
  const used = each * stops.length + GAP * (stops.length - 1);
  const left = (width - used) / 2;
  const y = 12;
  const boxes = stops.map((stop, index) => {
    return { ...stop, x: left + index * (each + GAP), y, width: each, height: BOX_HEIGHT };
  });
  const middle = y + TRACK;
  const below = y + BOX_HEIGHT;
  const center = (box: Box): number => box.x + box.width / 2;
  const [you, node] = boxes;
  const last = boxes.at(-1);
  if (you === undefined || node === undefined || last === undefined) {
    return { boxes, path: "", lines: [], width, height: below + 12, upright: false };
  }
  const lines = boxes.slice(1).map((box, index) => `M${right(boxes[index])} ${middle}H${box.x}`);
  const deep = below + 24;
  const home = `M${center(last)} ${below}V${deep - 8}Q${center(last)} ${deep} ${center(last) - 8} ${deep}`;
  const back = `${home}H${center(you) + 8}Q${center(you)} ${deep} ${center(you)} ${deep - 8}V${below}`;
  const there = `M${center(you)} ${middle}H${center(last)}V${deep - 8}`;
  const path = `${there}Q${center(last)} ${deep} ${center(last) - 8} ${deep}${back.slice(home.length)}`;
  return { boxes, path, lines: [...lines, back], width, height: deep + 8, upright: false };
}

function right(box: Box | undefined): number {
  return box === undefined ? 0 : box.x + box.width;
}

function upright(stops: readonly Stop[], width: number): Layout {
  const height = 30;
  const gap = 8;
  const boxes = stops.map((stop, index) => ({
    ...stop,
    x: MARGIN,
    y: 6 + index * (height + gap),
    width: width - 2 * MARGIN - 28,
    height,
  }));
  const last = boxes.at(-1);
  const below = (last?.y ?? 0) + height + gap;
  if (last === undefined || boxes.length < 2) return { boxes, path: "", lines: [], width, height: below, upright: true };
  const x = MARGIN + 22;
  const edge = MARGIN + last.width;
  const out = edge + 20;
  const top = 6 + height / 2;
  const turn = `Q${x} ${below} ${x + 6} ${below}`;
  const back = `H${out - 8}Q${out} ${below} ${out} ${below - 8}V${top + 8}Q${out} ${top} ${out - 8} ${top}H${edge}`;
  const lines = boxes.slice(1).map((box) => `M${x} ${box.y - gap}V${box.y}`);
  lines.push(`M${x} ${last.y + height}V${below - 6}${turn}${back}`);
  return { boxes, path: `M${x} ${top}V${below - 6}${turn}${back}`, lines, width, height: below + 6, upright: true };
}

function clip(text: string, width: number): string {
  const most = Math.max(3, Math.floor(width / LETTER));
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

export class RouteView {
  readonly #words = h("p", { class: "route-words" });
  readonly #rate = h("p", { class: "route-rate" });
  readonly #drawing = s("svg", { "aria-hidden": "true", focusable: "false" });
  #drawn = "";
  #layout: Layout | undefined;
  #tokens = 0;
  #last: Session | undefined;
  readonly #sparks = new Set<SVGElement>();

  constructor(private readonly figure: HTMLElement) {
    figure.append(h("div", { class: "route-head" }, this.#words, this.#rate), this.#drawing);
    new ResizeObserver(() => this.#last !== undefined && this.show(this.#last, undefined)).observe(figure);
  }

  /** Show a session's route, and a spark for each token that has come since. */
  show(session: Session, rate: number | undefined): void {
    this.#last = session;
    this.figure.hidden = false;
    const stops = stopsOf(session);
    const width = Math.max(260, this.figure.clientWidth - 2);
    const key = JSON.stringify([stops, width]);
    if (key !== this.#drawn) {
      this.#draw(layOut(stops, width));
      this.#drawn = key;
    }
    const state = isOver(session) ? "idle" : session.trouble ? "stuck" : "busy";
    this.figure.dataset["state"] = state;
    setText(this.#words, this.#inWords(session));
    if (session.trouble) setText(this.#rate, "");
    else if (rate !== undefined) setText(this.#rate, `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`);
    else if (session.generated.length === 0) setText(this.#rate, "");
    const fresh = session.generated.length - this.#tokens;
    this.#tokens = session.generated.length;
    if (fresh > 0 && !isOver(session)) this.#spark();
  }

  #inWords({ node, route }: Session): string {
    if (node === undefined) return "No route yet";
    if (route === undefined) return `Asking ${nameOf(node)}`;
    const servers = route.hops.length === 1 ? "one server" : `${route.hops.length} servers`;
    const changes = route.reroutes === 0 ? "" : route.reroutes === 1 ? ", rerouted once" : `, rerouted ${route.reroutes} times`;
    return `Through ${nameOf(node)} and ${servers}${changes}`;
  }

  #draw(layout: Layout): void {
    this.#layout = layout;
    this.#sparks.clear();
    const { width, height } = layout;
    this.#drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#drawing.setAttribute("height", String(height));
    const lines = layout.lines.map((d) => s("path", { d, class: "line" }));
    this.#drawing.replaceChildren(...lines, ...layout.boxes.map((box) => drawBox(box, layout.upright)));
  }

  #spark(): void {
    const { path } = this.#layout ?? {};
    if (!path || isCalm() || document.hidden || this.#sparks.size >= MOST_SPARKS) return;
    const spark = s("circle", { r: 4, class: "spark" });
    spark.style.offsetPath = `path("${path}")`;
    this.#drawing.append(spark);
    this.#sparks.add(spark);
    const frames = [
      { offsetDistance: "0%", opacity: 0 },
      { offsetDistance: "6%", opacity: 1, offset: 0.06 },
      { offsetDistance: "94%", opacity: 1, offset: 0.94 },
      { offsetDistance: "100%", opacity: 0 },
    ];
    const going = spark.animate(frames, { duration: TRAVEL_MS, easing: "linear" });
    going.onfinish = going.oncancel = () => {
      spark.remove();
      this.#sparks.delete(spark);
    };
  }
}

function drawBox(box: Box, isUpright: boolean): SVGGElement {
  const { x, y, width, height, kind, hue } = box;
  const group = s("g", { class: `stop ${kind} ${hue}` });
  group.append(s("title", {}, `${box.label}: ${box.detail}`));
  group.append(s("rect", { x, y, width, height, rx: kind === "you" && isUpright ? height / 2 : 10, class: "box" }));
  if (isUpright) {
    group.append(s("text", { x: x + 44, y: y + height / 2 + 5, class: "name" }, clip(box.label, width * 0.42)));
    const end = { x: x + width - 12, y: y + height / 2 + 4.5, class: "detail", "text-anchor": "end" };
    group.append(s("text", end, clip(box.detail, width * 0.42)));
    group.append(s("circle", { cx: x + 22, cy: y + height / 2, r: 4, class: "dot" }));
  } else {
    const middle = x + width / 2;
    group.append(s("text", { x: middle, y: y + 18, class: "name", "text-anchor": "middle" }, clip(box.label, width - 10)));
    const detail = { x: middle, y: y + 33, class: "detail", "text-anchor": "middle" };
    group.append(s("text", detail, clip(box.detail, width - 6)));
    group.append(...drawTicks(box));
  }
  return group;
}

/** A hop's blocks, through which tokens pass. */
function drawTicks({ x, y, width, blocks }: Box): SVGElement[] {
  if (blocks === 0) return [s("path", { d: `M${x + 12} ${y + TRACK}H${x + width - 12}`, class: "through" })];
  const ticks = blocks > MOST_TICKS ? 1 : blocks;
  const each = (width - 24 + 3) / ticks;
  return Array.from({ length: ticks }, (_, index) =>
    s("rect", { x: x + 12 + index * each, y: y + TRACK - 3, width: each - 3, height: 6, rx: 2, class: "tick" }),
  );
}
