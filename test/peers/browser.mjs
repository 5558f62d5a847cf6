// browser.mjs DIR URL SCRIPT [ARG...]: opens URL in Debian's chromium, whose profile is in DIR, runs SCRIPT, the body of
// an async function, in the page, and writes its result as JSON. The ARGs are further ones of chromium.
import {chromium} from "playwright-core";

const [dir, url, script, ...args] = process.argv.slice(2);
const context = await chromium.launchPersistentContext(dir, {
  executablePath: "/usr/bin/chromium",
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", ...args],
});
try {
  const page = context.pages()[0] ?? await context.newPage();
  page.on("console", (m) => console.error("page:", m.text()));
  page.on("pageerror", (e) => console.error("page:", e.message));
  await page.goto(url);
  const protocols = {}; // of the connections, by URL
  page.on("response", async (r) => { protocols[r.url()] = (await r.securityDetails())?.protocol; });
  const result = await page.evaluate(`(async () => {${script}\n})()`);
  process.stdout.write(JSON.stringify({result, protocols}) + "\n");
} finally {
  await context.close();
}
