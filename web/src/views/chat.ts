/** The conversation: what was asked, and the answers as they come. */

import { isOver, type Session, speed } from "../query/session";
import { Finished_Reason } from "../swarm/wire/swarm_pb";
import { inWords } from "../map/seen";
import type { Question } from "../query/ask";
import { capital, h, setText } from "./dom";
import { thumbnail } from "./pictures";
import { drawTrace, duration } from "./trace";

export interface Turn extends Question {
  session: Session;
}

/** One turn's elements, changed in place as the answer grows. */
class TurnView {
  readonly element: HTMLElement;
  readonly #answer = h("div", { class: "answer" });
  readonly #text = h("p", { class: "text" });
  readonly #notes = h("ul", { class: "notes" });
  readonly #state = h("p", { class: "state" });
  readonly #more = h("div", { class: "more" });
  #notesShown = 0;
  #closed = false;

  constructor({ prompt, pictures }: Turn, number: number) {
    const title = h("h2", { class: "unseen" }, `Question ${number}`);
    this.#answer.append(h("h3", { class: "unseen" }, "Answer"), this.#text, this.#notes, this.#state, this.#more);
    const shown = pictures.length > 0 && h("p", { class: "shown" }, ...pictures.map(thumbnail));
    this.element = h("li", { class: "turn" }, title, shown, h("p", { class: "prompt" }, prompt), this.#answer);
  }

  show(session: Session): void {
    grow(this.#text, session.text.trimStart());
    this.#answer.classList.toggle("running", !isOver(session));
    this.#answer.classList.toggle("failed", session.phase === "failed");
    this.#answer.setAttribute("aria-busy", String(!isOver(session)));
    for (const { words } of session.notes.slice(this.#notesShown)) this.#notes.append(h("li", {}, words));
    this.#notesShown = session.notes.length;
    setText(this.#state, stateInWords(session));
    if (isOver(session) && !this.#closed) this.#close(session);
  }

  #close(session: Session): void {
    this.#closed = true;
    const { finished, asked } = session;
    const facts = [`seed ${asked.seed}`];
    if (asked.temperature !== undefined) facts.push(`temperature ${asked.temperature}`);
    if (finished !== undefined) facts.push(`${finished.promptTokens} tokens asked`);
    this.#more.append(h("span", { class: "facts" }, facts.join(" · ")));
    // Only pages that came over https, or from this machine, may write to the clipboard.
    if (isSecureContext) {
      const copy = (): void => void navigator.clipboard.writeText(session.text.trimStart());
      this.#more.prepend(h("button", { type: "button", class: "quiet", onclick: copy }, "Copy"));
    }
    if (finished !== undefined && finished.trace.length > 0) {
      const hops = session.route?.hops ?? [];
      this.#more.append(h("details", {}, h("summary", {}, "Where the time went"), drawTrace(finished, hops)));
    }
  }
}

/** A text that grows is cheaper than one that is written anew, and keeps what is selected in it. */
function grow(element: Element, text: string): void {
  const shown = element.firstChild;
  if (shown instanceof Text && text.startsWith(shown.data)) shown.appendData(text.slice(shown.data.length));
  else element.textContent = text;
}

function stateInWords(session: Session): string {
  if (session.trouble && session.phase !== "failed") {
    const { missingSince } = session;
    const waited = missingSince === undefined ? 0 : Date.now() - missingSince;
    return `${capital(session.trouble)}${waited < 1000 ? "" : `, for ${inWords(waited)} now`} …`;
  }
  const tokens = `${session.generated.length} token${session.generated.length === 1 ? "" : "s"}`;
  const took = session.endedAt === undefined ? "" : ` in ${duration((session.endedAt - session.startedAt) / 1000)}`;
  const rate = speed(session);
  const fast = rate === undefined ? "" : `, ${rate.toFixed(1)} tokens/s`;
  switch (session.phase) {
    case "choosing":
    case "asking":
      return session.generated.length > 0 ? "" : "Asking …";
    case "answering":
      return session.generated.length > 0 ? "" : "Reading the question …";
    case "finished": {
      const cut = session.finished?.reason === Finished_Reason.LENGTH ? "; the limit ended it" : "";
      return `${tokens}${took}${fast}${cut}`;
    }
    case "stopped":
      return `Stopped after ${tokens}`;
    default:
      return "";
  }
}

export class ChatView {
  readonly #turns: TurnView[] = [];

  constructor(
    private readonly log: HTMLElement,
    private readonly scroller: HTMLElement,
    private readonly announcer: HTMLElement,
  ) {}

  add(turn: Turn): void {
    const view = new TurnView(turn, this.#turns.length + 1);
    this.#turns.push(view);
    this.log.append(view.element);
    view.show(turn.session);
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Show the last turn as it is now. */
  show(session: Session, before: Session | undefined): void {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    const atEnd = scrollHeight - scrollTop - clientHeight < 80;
    this.#turns.at(-1)?.show(session);
    if (atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#announce(session, before);
  }

  clear(): void {
    this.#turns.length = 0;
    this.log.replaceChildren();
  }

  /** Tokens one by one would be noise to who listens: hiccups are said as they happen, the answer when it is whole. */
  #announce(session: Session, before: Session | undefined): void {
    const note = session.notes.at(-1)?.words;
    if (isOver(session) && (before === undefined || !isOver(before))) {
      const how = { stopped: "Stopped. ", failed: `${session.trouble}. ` }[session.phase as string] ?? "";
      setText(this.announcer, `${how}Answer: ${session.text}`);
    } else if (note !== undefined && session.notes.length > (before?.notes.length ?? 0)) setText(this.announcer, note);
    else if (session.trouble && session.trouble !== before?.trouble) setText(this.announcer, session.trouble);
  }
}
