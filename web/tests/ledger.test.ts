/** A page that holds sessions keeps the books as a Python server does: both replay these runs. */

import { describe, expect, it } from "vitest";
import forgetless from "../../tests/golden/ledger/forgetless.json";
import plain from "../../tests/golden/ledger/plain.json";
import tight from "../../tests/golden/ledger/tight.json";
import * as books from "../src/serve/ledger";

/** What a run holds is JSON. */
type Any = any;

const inOrder = (table: books.Lengths): Record<string, number> => Object.fromEntries([...table].sort(([a], [b]) => a - b));
const bySequence = (one: Any, other: Any): number => one[0] - other[0] || one[1] - other[1];

class Player {
  ledger = books.EMPTY;
  readonly rules: books.Rules;
  #waiting: books.Accepted[] = [];
  #done: books.Accepted[] = [];

  constructor({ rollback, limits, cost, budget }: Any) {
    this.rules = {
      rollback,
      rowBytes: 1,
      limits: { sequences: limits.sequences, positions: limits.positions, cacheBytes: limits.cache_bytes },
      cost: (length) => (length > 0 ? cost.fixed + cost.position * Math.ceil(length / cost.room) * cost.room : 0),
      room: (held, wanted) => held + wanted <= budget,
    };
  }

  play(event: Any): Any {
    try {
      return this.#play(event);
    } catch (error) {
      if (error instanceof books.Refused) return { refused: error.code };
      throw error;
    }
  }

  #play(event: Any): Any {
    switch (event.event) {
      case "accept": {
        const [ledger, accepted] = books.accept(this.ledger, this.rules, event.operations, event.rows);
        this.ledger = ledger;
        if (accepted === undefined) return "nothing";
        this.#waiting.push(accepted);
        return { operations: accepted.operations, rows: accepted.rows, ended: inOrder(accepted.ended) };
      }
      case "computed": {
        const accepted = this.#waiting.shift() as books.Accepted;
        this.ledger = books.compute(this.ledger, this.rules, accepted);
        this.#done.push(accepted);
        return null;
      }
      case "sent":
        this.ledger = books.send(this.ledger, this.#done.shift() as books.Accepted);
        return null;
      case "prepare": {
        this.#begin();
        const [ledger, changes] = books.prepare(this.ledger, this.rules, event.sequences);
        this.ledger = ledger;
        return { changes: told(changes), held: books.have(ledger).sort(bySequence) };
      }
      case "resume":
        return this.#resume(event);
      case "drop_history":
        this.ledger = books.dropHistory(this.ledger);
        return null;
      case "forget": {
        this.#begin();
        const [ledger, gone] = books.forget(this.ledger);
        this.ledger = ledger;
        return gone.sort((one, other) => one - other);
      }
    }
    throw new Error(`what is ${event.event}?`);
  }

  #resume(event: Any): Any {
    this.#begin();
    const [ledger, changes] = books.resume(this.ledger, this.rules, event.cuts);
    this.ledger = ledger;
    const wants = new Map<number, number>(event.wants), rows: books.Rows[] = [];
    for (const [sequence, start] of event.replays) {
      const [sent, again] = books.replay(this.ledger, sequence, start, wants.get(sequence) ?? 1 << 24);
      this.ledger = sent;
      rows.push(...again);
    }
    return { changes: told(changes), rows };
  }

  #begin(): void {
    this.#waiting = [];
    this.#done = [];
  }

  get state(): Any {
    const { received, computed, forwarded, kvBytes, historyBytes } = this.ledger;
    return {
      received: inOrder(received),
      computed: inOrder(computed),
      forwarded: inOrder(forwarded),
      kv_bytes: kvBytes,
      history_bytes: historyBytes,
    };
  }
}

function told({ operations, truncate }: books.Changes): Any {
  const forks = operations.filter(([kind]) => kind !== "FREE");
  const frees = operations.filter(([kind]) => kind === "FREE").sort(([, one], [, other]) => one - other);
  return { operations: [...forks, ...frees], truncate: [...truncate].sort(bySequence) };
}

describe("the books of a session", () => {
  it.each([["plain", plain], ["tight", tight], ["forgetless", forgetless]] as [string, Any][])("are kept as in the run %s", (_, run) => {
    const player = new Player(run);
    expect(run.events.length).toBeGreaterThan(100);
    for (const [number, event] of run.events.entries()) {
      expect(player.play(event), `event ${number}, ${event.event}`).toEqual(event.answer);
      expect(player.state, `after event ${number}, ${event.event}`).toEqual(event.after);
    }
  });
});
