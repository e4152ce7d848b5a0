import type { Contract } from "./swarm/wire/swarm_pb";

/** Whoever says what is computed: a server on the map, a query node. */
interface Contracted {
  readonly contract?: Contract | undefined;
}

export interface Span {
  readonly first: number;
  readonly last: number;
}

/** The blocks meant, `first` ≤ block < `last`; none where nothing is said. */
export function spanOf({ contract }: Contracted): Span {
  return { first: contract?.first ?? 0, last: contract?.last ?? 0 };
}

/** The scheme of quantization; empty where there is none. */
export function quantizationOf({ contract }: Contracted): string {
  const scheme = contract?.quantization ?? "";
  return scheme === "none" ? "" : scheme;
}

/** In which numbers it is computed, in words: as the Python side says it. */
export function numbersOf(of: Contracted): string {
  const quantized = quantizationOf(of), adapters = of.contract?.adapters.length ?? 0;
  return (of.contract?.dtype ?? "") + (quantized && `, quantized to ${quantized}`) + (adapters ? `, with ${adapters} adapters` : "");
}
