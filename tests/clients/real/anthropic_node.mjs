// The npm package @anthropic-ai/sdk.

import {
  BASE_URL, CITIES, FACTS, HELLO, KEY, LOOK, PLACE, PNG, STEPS, THINK, WANTED, WEATHER,
  load, run, same, says, thought, weather,
} from "./scenarios.mjs";

const {default: Anthropic} = await load("@anthropic-ai/sdk");
const client = new Anthropic({baseURL: BASE_URL, apiKey: KEY, maxRetries: 0, timeout: 30000});
const tools = [{name: "weather", description: "The weather of a city", input_schema: WEATHER}];
const max_tokens = 4096;
const thinking = {type: "enabled", budget_tokens: 2000};

const create = (asked) => client.messages.create({max_tokens, ...asked});
const streamed = (asked) => client.messages.stream({max_tokens, ...asked}).finalMessage();
const textOf = ({content}) =>
  content.filter((block) => block.type === "text").map((block) => block.text).join("");

async function loop(model, ask, more = {}) {
  const messages = [{role: "user", content: STEPS}];
  const called = [];
  for (let turn = 0; turn < 4; turn++) {
    const answer = await ask({model, messages, tools, ...more});
    messages.push({role: "assistant", content: answer.content});
    if (answer.stop_reason !== "tool_use") {
      same(called, CITIES);
      return says(textOf(answer), "rain in Oslo", "rain in 東京");
    }
    const results = [];
    for (const {type, id, input} of answer.content)
      if (type === "tool_use") {
        called.push(input.city);
        results.push({type: "tool_result", tool_use_id: id, content: weather(input.city)});
      }
    messages.push({role: "user", content: results});
  }
  throw new Error("no end");
}

await run("anthropic (npm)", {
  async text(model) {
    const asked = {model, system: "Be brief.", messages: [{role: "user", content: HELLO}]};
    says(textOf(await create(asked)), HELLO);
  },
  async stream(model) {
    const pieces = [];
    const asked = {model, max_tokens, messages: [{role: "user", content: HELLO}]};
    const stream = client.messages.stream(asked).on("text", (text) => pieces.push(text));
    says(textOf(await stream.finalMessage()), HELLO);
    says(pieces.join(""), HELLO);
    if (pieces.length < 3) throw new Error("not streamed");
  },
  tools: (model) => loop(model, create),
  stream_tools: (model) => loop(model, streamed),
  reasoning_tools: (model) => loop(model, streamed, {thinking}),
  async structured(model) {
    const format = {type: "json_schema", schema: PLACE};
    const messages = [{role: "user", content: FACTS}];
    const answer = await create({model, messages, output_config: {format}});
    same(JSON.parse(textOf(answer)), WANTED);
  },
  async image(model) {
    const source = {type: "base64", media_type: "image/png", data: PNG};
    const content = [{type: "text", text: LOOK}, {type: "image", source}];
    says(textOf(await create({model, messages: [{role: "user", content}]})), LOOK, "(an image)");
  },
  async reasoning(model, vendor) {
    const answer = await create({model, thinking, messages: [{role: "user", content: THINK}]});
    says(textOf(answer), THINK);
    thought(answer.content.map((block) => block.thinking ?? "").join(""), vendor);
  },
});
