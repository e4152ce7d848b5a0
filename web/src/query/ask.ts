/** From a conversation and its settings to what is asked. */

import type { Picture } from "./pictures";
import type { Asked, Prompt } from "./session";

export interface Settings {
  /** Empty fields are as the model's authors recommend. */
  temperature: number | undefined;
  maxTokens: number | undefined;
  /** Undefined: any. */
  seed: bigint | undefined;
  trace: boolean;
}

export interface Question {
  prompt: string;
  pictures: readonly Picture[];
}

export interface Said extends Question {
  answer: string;
}

/**
 * The prompt for one turn more. A model with a chat template is sent messages; one without goes on with text, so it is
 * sent all that was said as one text.
 */
export function promptOf(said: readonly Said[], question: Question, converses: boolean): Prompt {
  if (!converses) {
    return { case: "text", value: [...said.flatMap((turn) => turn.prompt + turn.answer), question.prompt].join("\n\n") };
  }
  const messages = said.flatMap((turn) => [messageOf(turn), { role: "assistant", content: turn.answer }]);
  return { case: "messages", value: JSON.stringify([...messages, messageOf(question)]) };
}

/** In OpenAI's shape: a text alone, or parts, the pictures first. */
function messageOf({ prompt, pictures }: Question): { role: string; content: unknown } {
  if (pictures.length === 0) return { role: "user", content: prompt };
  const shown = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: [...shown, { type: "text", text: prompt }] };
}

export function askedOf(
  model: string,
  prompt: Prompt,
  { temperature, maxTokens, seed, trace }: Settings,
  random: (bytes: Uint8Array<ArrayBuffer>) => Uint8Array = (bytes) => crypto.getRandomValues(bytes),
): Asked {
  const id = random(new Uint8Array(16));
  return { id, model, prompt, temperature, maxTokens, trace, seed: seed ?? seedFrom(random(new Uint8Array(4))) };
}

/** Never 0, which stands for none; short enough to be written down. */
function seedFrom(bytes: Uint8Array): bigint {
  return BigInt(bytes.reduce((sum, byte) => sum * 256 + byte, 0) + 1);
}

/** A number out of a field; undefined: empty. Throws RangeError with words for the user. */
export function numberIn(text: string, what: string, least: number, most: number, whole: boolean): number | undefined {
  if (text.trim() === "") return undefined;
  const value = Number(text.trim().replace(",", "."));
  if (!Number.isFinite(value) || value < least || value > most || (whole && !Number.isInteger(value))) {
    throw new RangeError(`${what} is ${whole ? "a whole number" : "a number"} from ${least} to ${most}`);
  }
  return value;
}

export function seedIn(text: string): bigint | undefined {
  const digits = text.trim();
  if (digits === "") return undefined;
  if (!/^\d{1,20}$/.test(digits) || BigInt(digits) >= 2n ** 64n || BigInt(digits) === 0n) {
    throw new RangeError("The seed is a whole number from 1 to 2⁶⁴ − 1");
  }
  return BigInt(digits);
}
