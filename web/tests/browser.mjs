// Uses the page in a headless Chromium as a visitor would; tells what it sees as lines of JSON.
// node browser.mjs '{"url": …, "prompt": …, "tokens": …, "screenshots": folder or ""}'
import { chromium } from 'playwright-core'

const given = JSON.parse(process.argv[2])
const tell = (event, more = {}) => console.log(JSON.stringify({ event, ...more }))

const browser = await chromium.launch({ executablePath: given.chromium, args: ['--no-sandbox'] })
const page = await (await browser.newContext({ viewport: { width: 1280, height: 860 } })).newPage()
page.on('pageerror', (error) => tell('error', { words: String(error) }))
page.on('console', (message) => message.type() === 'error' && tell('console', { words: message.text() }))

async function shoot(name, scheme, width) {
  if (given.screenshots === '') return
  await page.emulateMedia({ colorScheme: scheme })
  await page.setViewportSize({ width, height: 860 })
  await page.screenshot({ path: `${given.screenshots}/${name}.png`, fullPage: true })
}

try {
  await page.goto(given.url)
  await page.waitForSelector('#connection.joined', { timeout: 60_000 })
  tell('joined', { words: await page.textContent('#connection') })
  await page.waitForFunction((count) => document.querySelectorAll('.servers li').length >= count, given.servers, { timeout: 60_000 })
  tell('map', { words: await page.textContent('.summary'), blocks: await page.locator('.block').count() })
  await page.click('#settings summary')
  await page.fill('#temperature', '0')
  await page.fill('#tokens', String(given.tokens))
  await page.click('#settings summary')
  for (let round = 0; round < given.rounds; round++) {
    await page.fill('#prompt', given.prompt)
    await page.keyboard.press('Enter')
    const turn = page.locator('.turn').nth(round)
    await page.waitForFunction(
      (place) => /\b(\d{2,}) tokens/.test(document.querySelectorAll('.turn .note')[place]?.textContent ?? ''), round,
      { timeout: 60_000 },
    )
    tell('answering', { round, note: await turn.locator('.note').textContent(), hops: await page.locator('.route .hop').count() })
    if (round === given.rounds - 1) await shoot('answering-light', 'light', 1280)
    await page.waitForFunction(
      (place) => ['done', 'failed', 'stopped'].includes(document.querySelectorAll('.turn')[place]?.dataset.status ?? ''), round,
      { timeout: 90_000 },
    )
    tell('ended', {
      round,
      status: await turn.getAttribute('data-status'),
      text: await turn.locator('.answer').textContent(),
      note: await turn.locator('.note').textContent(),
      hiccups: await turn.locator('.hiccups li').allTextContents(),
    })
  }
  await shoot('light', 'light', 1280)
  await shoot('dark', 'dark', 1280)
  await shoot('phone', 'light', 390)
  await shoot('phone-dark', 'dark', 390)
} catch (error) {
  tell('failed', { words: String(error), page: await page.textContent('body') })
  process.exitCode = 1
} finally {
  await browser.close()
}
