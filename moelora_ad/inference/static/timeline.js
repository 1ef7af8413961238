/* A page that is a file: its results are in it. */
"use strict";

const sounds = new Sounds(JSON.parse(byId("config").textContent));
for (const one of document.querySelectorAll("script.result")) {
  const result = JSON.parse(one.textContent);
  sounds.finish(sounds.add(result.name, result.sound ?? null), result);
}
