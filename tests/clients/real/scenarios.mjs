// What the client programs in JavaScript share: see scenarios.py.

import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

export const BASE_URL = process.env.BASE_URL;
export const KEY = process.env.KEY;
export const MODELS = JSON.parse(process.env.MODELS);
export const HELLO = "Hello from Köln 🌞";
export const STEPS =
  'call weather {"city": "Köln"}\nthen\ncall weather {"city": "Oslo"}\ncall weather {"city": "東京"}';
export const CITIES = ["Köln", "Oslo", "東京"];
export const FACTS = "It is 21 degrees in 'Köln'.";
export const LOOK = "What is in this picture?";
export const THINK = "Why is the sky blue?";
export const PNG =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";
export const PNG_URL = `data:image/png;base64,${PNG}`;
export const WEATHER = {
  type: "object",
  properties: {city: {type: "string"}},
  required: ["city"],
  additionalProperties: false,
};
export const PLACE = {
  type: "object",
  properties: {city: {type: "string"}, degrees: {type: "integer"}},
  required: ["city", "degrees"],
  additionalProperties: false,
};
export const WANTED = {city: "Köln", degrees: 21};
export const weather = (city) => `rain in ${city}`;

// Imports a package of the folder with the clients; ES modules do not heed NODE_PATH.
export function load(name) {
  const require = createRequire(`${process.env.NODE_PATH}/`);
  return import(pathToFileURL(require.resolve(name)).href);
}

export function says(text, ...words) {
  const missing = words.filter((word) => !String(text).includes(word));
  if (missing.length) throw new Error(`${missing} not in ${String(text).slice(0, 300)}`);
}

export function same(found, wanted) {
  const [one, two] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (one !== two) throw new Error(`got ${one}, not ${two}`);
}

// Chat completions never tell what a model thinks.
export function thought(text, vendor) {
  if (vendor !== "openai chat") says(text, "Let me think about");
}

export async function run(client, scenarios) {
  for (const [vendor, model] of Object.entries(MODELS))
    for (const [scenario, ask] of Object.entries(scenarios)) {
      if (process.env.SCENARIO && process.env.SCENARIO !== scenario) continue;
      const begun = Date.now();
      let error = "";
      try {
        await ask(model, vendor);
      } catch (failed) {
        error = `${failed?.name}: ${failed?.message} ${failed?.responseBody ?? ""}`.slice(0, 600);
      }
      const seconds = (Date.now() - begun) / 1000;
      console.log(`{"client"${JSON.stringify({client, vendor, scenario, error, seconds}).slice(9)}`);
    }
}
