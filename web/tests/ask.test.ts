import { describe, expect, it } from "vitest";
import { askedOf, numberIn, promptOf, seedIn } from "../src/query/ask";

const said = [{ prompt: "Hello", answer: " there" }];

describe("what is asked", () => {
  it("is a conversation where the model has a template for one", () => {
    const prompt = promptOf(said, "And?", true);
    expect(prompt.case).toBe("messages");
    expect(JSON.parse(prompt.value)).toEqual([
      { role: "user", content: "Hello" },
      { role: "assistant", content: " there" },
      { role: "user", content: "And?" },
    ]);
  });

  it("is one text where it has none", () => {
    expect(promptOf([], "Once", false)).toEqual({ case: "text", value: "Once" });
    expect(promptOf(said, "And", false)).toEqual({ case: "text", value: "Hello there\n\nAnd" });
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
