// Opens the built page in a headless browser and does what stdin says, a line of JSON each: {"do": ..., ...}. Answers
// with a line of JSON. Driven by tests/processes/test_page.py.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const AXE = readFileSync(new URL("../node_modules/axe-core/axe.min.js", import.meta.url), "utf8");

const [executablePath] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
let context;
let page;
const said = [];

async function open({ url, width = 1280, height = 860, dark = false, calm = false }) {
  await context?.close();
  said.length = 0;
  context = await browser.newContext({
    viewport: { width, height },
    colorScheme: dark ? "dark" : "light",
    reducedMotion: calm ? "reduce" : "no-preference",
  });
  page = await context.newPage();
  page.on("pageerror", (error) => said.push(`thrown: ${error}`));
  page.on("console", (message) => said.push(`${message.type()}: ${message.text()}`));
  await page.goto(url);
}

const state = () =>
  page.evaluate(() => {
    const text = (selector) => document.querySelector(selector)?.textContent ?? "";
    const answer = document.querySelector("#log > :last-child .answer");
    return {
      connection: text("#connection"),
      text: answer?.querySelector(".text")?.textContent ?? "",
      running: answer?.classList.contains("running") ?? false,
      failed: answer?.classList.contains("failed") ?? false,
      notes: [...(answer?.querySelectorAll(".notes li") ?? [])].map((note) => note.textContent),
      state: answer?.querySelector(".state")?.textContent ?? "",
      node: text("#route .stop.node title").split(":")[0],
      hops: [...document.querySelectorAll("#route .stop.hop title")].map((title) => title.textContent),
      trouble: text("#trouble-words"),
      trace: answer?.querySelectorAll(".trace tbody tr").length ?? 0,
      map: [...document.querySelectorAll("#map .server")].map((each) => each.textContent),
      sparks: document.querySelectorAll("#route .spark").length,
      sideways: document.documentElement.scrollWidth > innerWidth,
    };
  });

const actions = {
  open,
  state,
  fill: ({ id, value }) => page.fill(`#${id}`, value),
  settings: ({ open }) => page.evaluate((open) => void (document.getElementById("settings").open = open), open),
  trace: () => page.evaluate(() => document.querySelectorAll(".more details").forEach((each) => void (each.open = true))),
  bottom: () => page.evaluate(() => void (document.getElementById("scroller").scrollTop = 1e9)),
  press: ({ key }) => page.keyboard.press(key),
  click: ({ selector }) => page.click(selector),
  choose: ({ id, paths }) => page.setInputFiles(`#${id}`, paths),
  sources: ({ selector }) => page.evaluate((all) => [...document.querySelectorAll(all)].map(({ src }) => src), selector),
  wait: async ({ until, timeout = 60_000 }) => {
    // Not page.waitForFunction: the page's policy lets nothing be evaluated in it.
    for (const end = Date.now() + timeout; !(await page.evaluate(until)); await page.waitForTimeout(20)) {
      if (Date.now() > end) throw new Error(`not within ${timeout} ms: ${until}`);
    }
    return state();
  },
  picture: ({ path }) => page.screenshot({ path }),
  said: async () => said,
  // What stands in the way of those who cannot see or point, each as "rule: where".
  barriers: async () => {
    await page.evaluate(AXE);
    const { passes, violations } = await page.evaluate("axe.run()");
    if (passes.length === 0) throw new Error("axe checked nothing");
    return violations.flatMap(({ id, nodes }) => nodes.map(({ target }) => `${id}: ${target.join(" ")}`));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: action, ...options } = JSON.parse(line);
  let answer;
  try {
    answer = { value: (await actions[action](options)) ?? null };
  } catch (error) {
    answer = { error: `${error}\n${JSON.stringify(await state().catch(String))}\n${said.join("\n")}` };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
