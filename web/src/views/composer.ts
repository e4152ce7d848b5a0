/** Where questions are written, and how they are to be answered. */

import { numberIn, type Question, seedIn, type Settings } from "../query/ask";
import { find, h, setText } from "./dom";
import { Tray } from "./pictures";

export interface ModelChoice {
  key: string;
  name: string;
  note: string;
}

export class Composer {
  readonly #form = find<HTMLFormElement>("composer");
  readonly #prompt = find<HTMLTextAreaElement>("prompt");
  readonly #send = find<HTMLButtonElement>("send");
  readonly #complaint = find("complaint");
  readonly #model = find<HTMLSelectElement>("model");
  readonly #tray = new Tray((words) => this.complain(words));
  readonly #running = { value: false };
  #offered = "";

  constructor(actions: { ask(question: Question, settings: Settings): boolean; stop(): void; chosen(): void }) {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running.value) actions.stop();
      else this.#ask(actions.ask);
    });
    this.#prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#running.value) this.#ask(actions.ask);
    });
    this.#prompt.addEventListener("input", () => this.#fit());
    this.#model.addEventListener("change", () => actions.chosen());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#running.value) actions.stop();
    });
  }

  get model(): string {
    return this.#model.value;
  }

  offer(models: readonly ModelChoice[]): void {
    const key = JSON.stringify(models);
    if (key === this.#offered) return;
    this.#offered = key;
    const chosen = this.#model.value;
    this.#model.replaceChildren(...models.map((each) => h("option", { value: each.key }, each.name + each.note)));
    if (models.some((each) => each.key === chosen)) this.#model.value = chosen;
    find("model-field").hidden = models.length < 2;
  }

  /** A model without a chat template goes on with a text; some look at pictures. */
  invite(converses: boolean, sees: boolean): void {
    this.#tray.offer(sees);
    this.#prompt.placeholder = converses ? "Ask the swarm" : "Begin a text";
  }

  run(running: boolean): void {
    if (this.#running.value === running) return;
    this.#running.value = running;
    setText(this.#send, running ? "Stop" : "Ask");
    this.#send.classList.toggle("stop", running);
  }

  complain(words: string): void {
    setText(this.#complaint, words);
  }

  #ask(ask: (question: Question, settings: Settings) => boolean): void {
    const prompt = this.#prompt.value.trimEnd();
    if (prompt.trim() === "") return;
    try {
      const settings = this.#settings();
      this.complain("");
      if (!ask({ prompt, pictures: this.#tray.pictures }, settings)) return;
      this.#tray.clear();
      this.#prompt.value = "";
      this.#fit();
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      find<HTMLDetailsElement>("settings").open = true;
      this.complain(error.message);
    }
  }

  #settings(): Settings {
    const text = (id: string): string => find<HTMLInputElement>(id).value;
    return {
      temperature: numberIn(text("temperature"), "The temperature", 0, 10, false),
      maxTokens: numberIn(text("max-tokens"), "The longest answer", 1, 1_000_000, true),
      seed: seedIn(text("seed")),
      trace: find<HTMLInputElement>("trace").checked,
    };
  }

  #fit(): void {
    this.#prompt.style.blockSize = "auto";
    this.#prompt.style.blockSize = `${Math.min(this.#prompt.scrollHeight + 2, 220)}px`;
  }
}
