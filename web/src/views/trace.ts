/** Where the time of an answer went, as a waterfall. */

import type { Finished, RouteHop, TraceSpan } from "../swarm/wire/swarm_pb";
import { blocksInWords, nameOf } from "../query/session";
import { h, hueOf } from "./dom";

export interface Row {
  name: string;
  who: string;
  hue: string;
  /** Shares of the whole. */
  start: number;
  length: number;
  time: string;
  steps: string;
}

/** Shorter shares of the whole are not shown. */
const LEAST = 1e-4;

/** One row a span, in order of their beginnings. */
export function rowsOf(finished: Finished, hops: readonly RouteHop[]): Row[] {
  const whole = Math.max(1e-9, finished.seconds, ...finished.trace.map((span) => span.start + span.seconds));
  return finished.trace
    .filter((span) => span.seconds >= LEAST * whole)
    .sort((a, b) => a.start - b.start)
    .map((span) => ({
      name: span.name,
      who: whoOf(span, hops),
      hue: span.peerId ? hueOf(span.peerId) : "",
      start: clamp(span.start / whole),
      length: clamp(span.seconds / whole),
      time: duration(span.seconds),
      steps: span.count > 1 ? ` in ${span.count} steps` : "",
    }));
}

function clamp(share: number): number {
  return Math.min(1, Math.max(0, share));
}

function whoOf(span: TraceSpan, hops: readonly RouteHop[]): string {
  if (!span.peerId) return span.name.startsWith("wire") ? "between them" : "query node";
  const hop = hops.find((each) => each.peerId === span.peerId);
  return hop === undefined ? nameOf({ name: "", peerId: span.peerId }) : `${nameOf(hop)}, ${blocksInWords(hop.first, hop.last)}`;
}


export function duration(seconds: number): string {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

export function drawTrace(finished: Finished, hops: readonly RouteHop[]): HTMLElement {
  const rows = rowsOf(finished, hops).map((row) => {
    const bar = h("span", { class: `span ${row.hue}`, "aria-hidden": "true" });
    bar.style.marginInlineStart = `${Math.min(99.4, 100 * row.start)}%`;
    bar.style.inlineSize = `${Math.max(0.6, Math.min(100 * row.length, 100 - 100 * row.start))}%`;
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, row.name, h("span", {}, row.who)),
      h("td", { class: "lane" }, bar),
      h("td", { class: "time" }, row.time, h("span", { class: "steps" }, row.steps)),
    );
  });
  return h(
    "table",
    { class: "trace" },
    h("caption", {}, "Sums over all tokens, put one after the other."),
    h("thead", { class: "unseen" }, h("tr", {}, h("th", {}, "what and who"), h("th", {}, "when"), h("th", {}, "how long"))),
    h("tbody", {}, ...rows),
  );
}
