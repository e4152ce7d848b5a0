/**
 * What a session holds at a hop, as `swarm/server/ledger.py` keeps it: the twin for a page that serves blocks itself.
 *
 * Pure: a state and what happens to it in, a new state and an answer out. Both replay the runs in tests/golden/ledger.
 */

export type Kind = "FORK" | "MOVE" | "FREE";
/** `target` begins with the first `length` positions of `source` (FORK), which ends (MOVE); or `source` ends (FREE). */
export type Operation = readonly [kind: Kind, source: number, target: number, length: number];
export type Rows = readonly [sequence: number, start: number, count: number, want: number];
/** A sequence that the client says is alive. */
export type Alive = readonly [sequence: number, length: number, parent: number, shared: number];
export type Refusal = "GAP" | "TOO_LONG" | "LIMIT" | "BUSY";

/** Positions by sequence. */
export type Lengths = ReadonlyMap<number, number>;

/** Of which positions the outputs can be sent again: `first` .. `last` - 1. */
interface Kept {
  readonly first: number;
  readonly last: number;
}

export interface Rules {
  /** Bytes of KV cache that a sequence of so many positions takes. */
  readonly cost: (length: number) => number;
  /** Whether there is room for so many bytes more than the ledger holds. */
  readonly room: (held: number, wanted: number) => boolean;
  readonly rowBytes: number;
  /** Whether single positions can be forgotten. */
  readonly rollback: boolean;
  readonly limits: { readonly sequences: number; readonly positions: number; readonly cacheBytes: number };
}

export interface Ledger {
  readonly received: Lengths;
  readonly computed: Lengths;
  readonly forwarded: Lengths;
  readonly history: ReadonlyMap<number, Kept>;
  /** What the sequences take when it is most: now, or while what is accepted is being done. */
  readonly kvBytes: number;
  readonly historyBytes: number;
  /** Steps that are accepted and not done, and what all sequences take while each is, when it is most. */
  readonly waiting: ReadonlyMap<Accepted, number>;
}

/** What is new of a step. `ended`: sequences that it ends, and up to which position others go on with them. */
export interface Accepted {
  readonly operations: readonly Operation[];
  readonly rows: readonly Rows[];
  readonly ended: Lengths;
}

export interface Changes {
  readonly operations: readonly Operation[];
  readonly truncate: readonly (readonly [sequence: number, length: number])[];
}

export class Refused extends Error {
  constructor(readonly code: Refusal) {
    super(code);
  }
}

const NOTHING: Lengths = new Map();
const REPLAY_ROWS = 256;

export const EMPTY: Ledger = {
  received: NOTHING,
  computed: NOTHING,
  forwarded: NOTHING,
  history: new Map(),
  kvBytes: 0,
  historyBytes: 0,
  waiting: new Map(),
};

// ---- steps ----------------------------------------------------------------------------------------------------------

/** Take what is new of a step; undefined: nothing is. Throws Refused; then nothing was taken. */
export function accept(
  ledger: Ledger,
  rules: Rules,
  operations: readonly Operation[],
  rows: readonly Rows[],
): [Ledger, Accepted | undefined] {
  const after = new Map(ledger.received);
  const { known, peak } = operateAll(operations, after, rules.cost);
  const fresh = freshOf(rows, after);
  if (known.length === 0 && fresh.length === 0) return [ledger, undefined];
  for (const [sequence, start, count] of fresh) after.set(sequence, start + count);
  const most = Math.max(taken(ledger.received, rules.cost) + peak, taken(after, rules.cost));
  check(fresh, after, rules);
  if (!rules.room(ledger.kvBytes, Math.max(most - ledger.kvBytes, 0))) throw new Refused("BUSY");
  const accepted = { operations: known, rows: fresh, ended: endedBy(known) };
  const waiting = new Map(ledger.waiting).set(accepted, most);
  return [{ ...ledger, received: after, kvBytes: Math.max(ledger.kvBytes, most), waiting }, accepted];
}

function taken(lengths: Lengths, cost: Rules["cost"]): number {
  return [...lengths.values()].reduce((sum, length) => sum + cost(length), 0);
}

/** Apply operations to a table: those whose source is held, and by how much it grows when that is most. */
function operateAll(
  operations: readonly Operation[],
  after: Map<number, number>,
  cost: Rules["cost"],
): { known: Operation[]; peak: number } {
  const known: Operation[] = [];
  let growth = 0, peak = 0;
  for (const operation of operations) {
    const [kind, from, to] = operation;
    const source = after.get(from) ?? 0, before = after.get(to) ?? 0;
    if (!operate(after, operation)) continue;
    known.push(operation);
    if (kind !== "FREE") growth += cost(after.get(to) ?? 0);
    if (kind === "FORK") peak = Math.max(peak, growth);
    else growth -= cost(source);
    if (kind !== "FREE") growth -= cost(before);
  }
  return { known, peak };
}

function operate(lengths: Map<number, number>, [kind, source, target, length]: Operation): boolean {
  const held = lengths.get(source);
  if (held === undefined) return false;
  if (kind !== "FREE") lengths.set(target, Math.min(held, length));
  if (kind !== "FORK") lengths.delete(source);
  return true;
}

/** The rows without what is held already. Throws Refused on a gap. */
function freshOf(rows: readonly Rows[], held: Lengths): Rows[] {
  return rows.flatMap(([sequence, start, count, want]) => {
    const have = held.get(sequence) ?? 0;
    if (start > have) throw new Refused("GAP");
    const left = start + count - have;
    return left > 0 ? [[sequence, have, left, Math.min(want, left)] as const] : [];
  });
}

function check(rows: readonly Rows[], after: Lengths, { limits, cost }: Rules): void {
  if (limits.positions > 0 && rows.some(([, start, count]) => start + count > limits.positions)) throw new Refused("TOO_LONG");
  if (after.size > limits.sequences) throw new Refused("LIMIT");
  if (taken(after, cost) > limits.cacheBytes) throw new Refused("LIMIT");
}

function endedBy(operations: readonly Operation[]): Map<number, number> {
  const kept = new Map<number, number>();
  for (const [kind, source, , length] of operations) {
    kept.set(source, Math.max(kept.get(source) ?? 0, kind === "FREE" ? 0 : length));
  }
  return new Map(operations.filter(([kind]) => kind !== "FORK").map(([, source]) => [source, kept.get(source) ?? 0]));
}

/** What was accepted is done. */
export function compute(ledger: Ledger, rules: Rules, accepted: Accepted): Ledger {
  const computed = new Map(ledger.computed), history = new Map(ledger.history), waiting = new Map(ledger.waiting);
  for (const operation of accepted.operations) {
    operate(computed, operation);
    operateHistory(history, operation);
  }
  let historyBytes = ledger.historyBytes;
  for (const [sequence, start, count] of accepted.rows) {
    computed.set(sequence, start + count);
    const kept = history.get(sequence) ?? { first: start, last: start };
    history.set(sequence, { first: kept.first, last: kept.last + count });
    historyBytes += count * rules.rowBytes;
  }
  waiting.delete(accepted);
  const done = weigh({ ...ledger, computed, history, historyBytes, waiting }, rules);
  return accepted.operations.length === 0 ? done : weighHistory(done, rules);
}

function operateHistory(history: Map<number, Kept>, [kind, source, target, length]: Operation): void {
  const kept = history.get(source);
  if (kind !== "FREE" && kept !== undefined) history.set(target, shorter(kept, length));
  if (kind !== "FORK") history.delete(source);
}

/** Without the positions from `length` on; what becomes empty begins there. */
function shorter({ first, last }: Kept, length: number): Kept {
  if (length >= last) return { first, last };
  return length <= first ? { first: length, last: length } : { first, last: length };
}

/** A step has been handed on. */
export function send(ledger: Ledger, accepted: Accepted): Ledger {
  const forwarded = new Map(ledger.forwarded);
  for (const operation of accepted.operations) operate(forwarded, operation);
  for (const [sequence, start, count] of accepted.rows) forwarded.set(sequence, start + count);
  return { ...ledger, forwarded };
}

// ---- epochs ---------------------------------------------------------------------------------------------------------

/** Hold nothing but what is alive. Forks for which there is no room are not made. */
export function prepare(ledger: Ledger, rules: Rules, alive: readonly Alive[]): [Ledger, Changes] {
  const { operations, truncate } = reconcile(ledger.computed, alive, rules.rollback);
  const kept: Operation[] = [];
  let reserved = 0;
  for (const operation of operations) {
    if (operation[0] === "FORK") {
      const wanted = reserved + rules.cost(operation[3]);
      const full = ledger.computed.size + kept.length >= rules.limits.sequences;
      if (full || !rules.room(ledger.kvBytes, wanted)) continue;
      reserved = wanted;
    }
    kept.push(operation);
  }
  return change(ledger, rules, { operations: kept, truncate });
}

/** What must be changed so that nothing is held but what is alive: swarm/server/manifest.py. */
function reconcile(lengths: Lengths, alive: readonly Alive[], rollback: boolean): Changes {
  const living = new Set(alive.map(([sequence]) => sequence));
  const forks = alive
    .filter(([sequence, length, parent, shared]) => {
      const held = lengths.get(parent) ?? 0;
      return !lengths.has(sequence) && 0 < shared && shared <= Math.min(held, length) && (rollback || held === shared);
    })
    .map(([sequence, , parent, shared]): Operation => ["FORK", parent, sequence, shared]);
  const cut = alive.filter(([sequence, length]) => (lengths.get(sequence) ?? 0) > length);
  const dead = [...lengths.keys()].filter((sequence) => !living.has(sequence));
  if (!rollback) dead.push(...cut.map(([sequence]) => sequence));
  const frees = dead.map((sequence): Operation => ["FREE", sequence, 0, 0]);
  return { operations: [...forks, ...frees], truncate: rollback ? cut.map(([sequence, length]) => [sequence, length]) : [] };
}

/** What is held of each sequence, and from where on it can be sent again. */
export function have({ computed, history }: Ledger): [sequence: number, length: number, history: number][] {
  return [...computed].map(([sequence, length]) => [sequence, length, Math.min(history.get(sequence)?.first ?? length, length)]);
}

/** Forget positions that the client wants computed again; then all that is held counts as received and handed on. */
export function resume(ledger: Ledger, rules: Rules, cuts: readonly (readonly [number, number])[]): [Ledger, Changes] {
  const shorten = cuts.filter(([sequence, position]) => position < (ledger.computed.get(sequence) ?? 0));
  const gone = new Set(shorten.filter(([, position]) => position === 0 || !rules.rollback).map(([sequence]) => sequence));
  const operations = [...gone].map((sequence): Operation => ["FREE", sequence, 0, 0]);
  const truncate = shorten.filter(([sequence]) => !gone.has(sequence));
  const [changed, changes] = change(ledger, rules, { operations, truncate });
  return [{ ...changed, received: changed.computed, forwarded: changed.computed }, changes];
}

function change(ledger: Ledger, rules: Rules, changes: Changes): [Ledger, Changes] {
  const computed = new Map(ledger.computed), history = new Map(ledger.history);
  for (const operation of changes.operations) {
    operate(computed, operation);
    operateHistory(history, operation);
  }
  for (const [sequence, length] of changes.truncate) {
    computed.set(sequence, length);
    history.set(sequence, shorter(history.get(sequence) ?? { first: length, last: length }, length));
  }
  const changed = weigh({ ...ledger, computed, history, received: computed, waiting: new Map() }, rules);
  return [weighHistory(changed, rules), changes];
}

/** Outputs once more from `start` on, of which the client wants those from `wantFrom` on. Throws Refused: a gap. */
export function replay(ledger: Ledger, sequence: number, start: number, wantFrom: number): [Ledger, Rows[]] {
  const kept = ledger.history.get(sequence);
  if (kept === undefined || start < kept.first || start > kept.last) throw new Refused("GAP");
  const rows: Rows[] = [];
  for (let begin = start; begin < kept.last; begin += REPLAY_ROWS) {
    const end = Math.min(begin + REPLAY_ROWS, kept.last);
    rows.push([sequence, begin, end - begin, Math.min(Math.max(end - wantFrom, 0), end - begin)]);
  }
  return [{ ...ledger, forwarded: new Map(ledger.forwarded).set(sequence, start) }, rows];
}

// ---- letting go -----------------------------------------------------------------------------------------------------

/** Nothing can be sent again. */
export function dropHistory(ledger: Ledger): Ledger {
  const emptied = [...ledger.history.keys()].map((sequence): [number, Kept] => {
    const length = ledger.computed.get(sequence) ?? 0;
    return [sequence, { first: length, last: length }];
  });
  return { ...ledger, history: new Map(emptied), historyBytes: 0 };
}

/** Hold nothing: also tells the sequences that there were. */
export function forget(ledger: Ledger): [Ledger, number[]] {
  const passing = [...ledger.waiting.keys()].flatMap(({ operations }) => operations.filter(([kind]) => kind !== "FREE"));
  const made = passing.map(([, , target]) => target);
  return [EMPTY, [...new Set([...ledger.computed.keys(), ...ledger.received.keys(), ...made])]];
}

/** Recount what is held, and what will be while that which waits is being done. */
function weigh(ledger: Ledger, { cost }: Rules): Ledger {
  return { ...ledger, kvBytes: Math.max(taken(ledger.computed, cost), ...ledger.waiting.values()) };
}

function weighHistory(ledger: Ledger, { rowBytes }: Rules): Ledger {
  const rows = [...ledger.history.values()].reduce((sum, { first, last }) => sum + last - first, 0);
  return { ...ledger, historyBytes: rows * rowBytes };
}
