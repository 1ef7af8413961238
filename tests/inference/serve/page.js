// Uses the page as a person does, and prints what is to be seen there as JSON.
// node page.js CHROMIUM ADDRESS TIMELINE FOLDER SOUND...; playwright-core is found through NODE_PATH.
const { readFile } = require("node:fs/promises");
const { chromium } = require("playwright-core");

const [executablePath, address, timeline, folder, ...files] = process.argv.slice(2);
const media = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];

async function played(page) {
  await page.click("#play");
  await page.waitForFunction(() => !document.getElementById("time").textContent.startsWith("0:00.0"));
  const words = await page.textContent("#play");
  if (words === "Pause") await page.click("#play");
  return page.textContent("#time");
}

async function done(page, count) {
  await page.waitForFunction((wanted) => {
    const marks = document.querySelectorAll("#rows .mark, #rows .failed");
    return marks.length === wanted && !document.querySelector("#rows .waiting");
  }, count);
}

async function main() {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", ...media] });
  const seen = { problems: [], hosts: new Set() };
  const context = await browser.newContext({ viewport: { width: 400, height: 800 }, permissions: ["microphone"] });
  context.setDefaultTimeout(60_000);
  const page = await context.newPage();
  page.on("console", (message) => {
    if (message.type() === "error" && !message.text().includes("422")) seen.problems.push(message.text());
  });
  page.on("pageerror", (error) => seen.problems.push(error.message));
  page.on("dialog", (dialog) => seen.problems.push(dialog.message()));
  page.on("request", (request) => seen.hosts.add(new URL(request.url()).host));

  await page.goto(address);
  await page.setInputFiles("#files", files);
  await done(page, files.length);
  seen.rows = await page.$$eval("#rows tr", (rows) => rows.map((row) => [...row.children].map((cell) => cell.textContent)));
  seen.status = await page.textContent("#status");
  seen.verdict = await page.textContent("#detail-verdict");
  seen.meaning = await page.textContent("#detail-meaning");
  seen.chart = await page.getAttribute("#chart", "aria-label");
  seen.steps = await page.$$eval("#chart .step", (paths) => paths.map((path) => path.getAttribute("d")).join("").split("M").length - 1);
  seen.played = await played(page);
  seen.width = await page.evaluate(() => document.documentElement.scrollWidth);

  await page.focus("#rows tr:last-child button"); // by keyboard: the one that is no sound
  await page.keyboard.press("Enter");
  seen.focused = await page.evaluate(() => document.activeElement.id);
  seen.failure = await page.textContent("#failure");
  seen.markup = await page.$$eval("#rows b, #rows img, #detail-name *", (found) => found.length);

  for (const [name, button] of [["csv", "#save-csv"], ["json", "#save-json"]]) {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
    seen[name] = await readFile(await download.path(), "utf8");
  }

  await page.dblclick("#record"); // the second click comes while the browser asks for the microphone
  await page.waitForFunction(() => /Stop \(0:0[1-9]/.test(document.getElementById("record").textContent));
  await page.click("#record");
  await done(page, files.length + 1);
  seen.recorded = await page.$eval("#rows tr:last-child", (row) => [...row.children].map((cell) => cell.textContent));
  seen.shown = await page.textContent("#detail-name");
  await page.waitForTimeout(500);
  seen.record = await page.textContent("#record");

  const session = await context.newCDPSession(page);
  const data = { items: [], files: [folder], dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) await session.send("Input.dispatchDragEvent", { type, x: 200, y: 200, data });
  await done(page, files.length + 2);
  seen.folder = await page.$eval("#rows tr:last-child", (row) => row.lastChild.textContent);

  await page.goto(timeline);
  seen.timeline = { verdict: await page.textContent("#detail-verdict"), played: await played(page) };
  seen.hosts = [...seen.hosts];
  console.log(JSON.stringify(seen));
  await browser.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
