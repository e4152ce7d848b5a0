import { describe, expect, it } from "vitest";
import { askedOf, numberIn, promptOf, seedIn } from "../src/query/ask";
import { fits, LONGEST_SIDE, MOST_CHARACTERS, type Picture, sizeWithin } from "../src/query/pictures";

const said = [{ prompt: "Hello", pictures: [], answer: " there" }];
const asks = (prompt: string, pictures: Picture[] = []) => ({ prompt, pictures });
const cat = { name: "cat.png", url: "data:image/png;base64,AA==" };

describe("what is asked", () => {
  it("is a conversation where the model has a template for one", () => {
    const prompt = promptOf(said, asks("And?"), true);
    expect(prompt.case).toBe("messages");
    expect(JSON.parse(prompt.value)).toEqual([
      { role: "user", content: "Hello" },
      { role: "assistant", content: " there" },
      { role: "user", content: "And?" },
    ]);
  });

  it("is one text where it has none", () => {
    expect(promptOf([], asks("Once"), false)).toEqual({ case: "text", value: "Once" });
    expect(promptOf(said, asks("And"), false)).toEqual({ case: "text", value: "Hello there\n\nAnd" });
  });

  it("shows pictures before the words, also those of earlier turns", () => {
    const shown = { type: "image_url", image_url: { url: cat.url } };
    const prompt = promptOf([{ ...asks("What is this?", [cat]), answer: "A cat." }], asks("Sure?"), true);
    expect(JSON.parse(prompt.value)).toEqual([
      { role: "user", content: [shown, { type: "text", text: "What is this?" }] },
      { role: "assistant", content: "A cat." },
      { role: "user", content: "Sure?" },
    ]);
  });

  it("has a seed, never 0, so that another node can go on", () => {
    const settings = { temperature: undefined, maxTokens: undefined, seed: undefined, trace: false };
    const zeros = askedOf("key", { case: "text", value: "x" }, settings, (bytes) => bytes);
    expect(zeros.seed).toBe(1n);
    expect(askedOf("key", { case: "text", value: "x" }, { ...settings, seed: 9n }).seed).toBe(9n);
  });

  it("has numbers that make sense", () => {
    expect(numberIn("0,7", "It", 0, 10, false)).toBe(0.7);
    expect(numberIn(" ", "It", 0, 10, false)).toBeUndefined();
    for (const text of ["x", "-1", "11", "NaN", "1e9"]) expect(() => numberIn(text, "It", 0, 10, false)).toThrow(RangeError);
    expect(() => numberIn("1.5", "It", 1, 10, true)).toThrow(RangeError);
    expect(seedIn("18446744073709551615")).toBe(2n ** 64n - 1n);
    for (const text of ["0", "-1", "1.5", "18446744073709551616", "x"]) expect(() => seedIn(text)).toThrow(RangeError);
  });
});

describe("a picture", () => {
  it("is made no larger than models look at, and keeps its form", () => {
    expect(sizeWithin(4000, 2000, LONGEST_SIDE)).toEqual([LONGEST_SIDE, LONGEST_SIDE / 2]);
    expect(sizeWithin(640, 480, LONGEST_SIDE)).toEqual([640, 480]);
    expect(sizeWithin(1, 100_000, LONGEST_SIDE)).toEqual([1, LONGEST_SIDE]);
  });

  it("is one of no more than a query can carry", () => {
    const heavy = { name: "", url: "x".repeat(MOST_CHARACTERS / 2) };
    expect(fits([heavy, heavy])).toBe(true);
    expect(fits([heavy, heavy, cat])).toBe(false);
  });
});
