// The npm package openai, by chat completions and by Responses.

import {
  BASE_URL, CITIES, FACTS, HELLO, KEY, LOOK, PLACE, PNG_URL, STEPS, THINK, WANTED, WEATHER,
  load, run, same, says, thought, weather,
} from "./scenarios.mjs";

const {default: OpenAI} = await load("openai");
const client = new OpenAI({baseURL: `${BASE_URL}/v1`, apiKey: KEY, maxRetries: 0, timeout: 30000});
const declared = {name: "weather", description: "The weather of a city", parameters: WEATHER};
const tools = [{type: "function", function: declared}];

async function chatLoop(model, complete) {
  const messages = [{role: "user", content: STEPS}];
  const called = [];
  for (let turn = 0; turn < 4; turn++) {
    const {message} = await complete({model, messages, tools});
    messages.push(message);
    if (!message.tool_calls?.length) {
      same(called, CITIES);
      return says(message.content, "rain in Oslo", "rain in 東京");
    }
    for (const call of message.tool_calls) {
      called.push(JSON.parse(call.function.arguments).city);
      messages.push({role: "tool", tool_call_id: call.id, content: weather(called.at(-1))});
    }
  }
  throw new Error("no end");
}

function own({parsed, ...message}) {
  for (const call of message.tool_calls ?? []) delete call.function.parsed_arguments;
  return message;
}

const create = async (asked) => (await client.chat.completions.create(asked)).choices[0];
const streamed = async (asked) => {
  const [choice] = (await client.chat.completions.stream(asked).finalChatCompletion()).choices;
  return {message: own(choice.message)};
};

await run("openai (npm), chat", {
  async text(model) {
    const {message} = await create({model, messages: [{role: "user", content: HELLO}]});
    says(message.content, HELLO);
  },
  async stream(model) {
    const pieces = [];
    const asked = {model, messages: [{role: "user", content: HELLO}], stream: true};
    for await (const chunk of await client.chat.completions.create(asked))
      pieces.push(chunk.choices[0]?.delta?.content ?? "");
    says(pieces.join(""), HELLO);
    if (pieces.length < 3) throw new Error("not streamed");
  },
  tools: (model) => chatLoop(model, create),
  stream_tools: (model) => chatLoop(model, streamed),
  reasoning_tools: (model) =>
    chatLoop(model, (asked) => streamed({...asked, reasoning_effort: "high"})),
  async structured(model) {
    const {message} = await create({
      model,
      messages: [{role: "user", content: FACTS}],
      response_format: {
        type: "json_schema",
        json_schema: {name: "place", strict: true, schema: PLACE},
      },
    });
    same(JSON.parse(message.content), WANTED);
  },
  async image(model) {
    const content = [{type: "text", text: LOOK}, {type: "image_url", image_url: {url: PNG_URL}}];
    const {message} = await create({model, messages: [{role: "user", content}]});
    says(message.content, LOOK, "(an image)");
  },
});

const flat = [{type: "function", ...declared, strict: true}];

async function responsesLoop(model, respond, more = {}) {
  const input = [{role: "user", content: STEPS}];
  const called = [];
  for (let turn = 0; turn < 4; turn++) {
    const answer = await respond({
      model, input, tools: flat, store: false, include: ["reasoning.encrypted_content"], ...more,
    });
    const calls = answer.output.filter((item) => item.type === "function_call");
    input.push(...answer.output.map(({parsed_arguments, ...item}) => item));
    if (!calls.length) {
      same(called, CITIES);
      return says(answer.output_text, "rain in Oslo", "rain in 東京");
    }
    for (const {call_id, arguments: given} of calls) {
      called.push(JSON.parse(given).city);
      input.push({type: "function_call_output", call_id, output: weather(called.at(-1))});
    }
  }
  throw new Error("no end");
}

const respond = (asked) => client.responses.create(asked);
const streamedResponse = (asked) => client.responses.stream(asked).finalResponse();
const reasoning = {effort: "high", summary: "auto"};

await run("openai (npm), responses", {
  async text(model) {
    says((await respond({model, instructions: "Be brief.", input: HELLO})).output_text, HELLO);
  },
  async stream(model) {
    const pieces = [];
    for await (const event of await client.responses.create({model, input: HELLO, stream: true}))
      if (event.type === "response.output_text.delta") pieces.push(event.delta);
    says(pieces.join(""), HELLO);
    if (pieces.length < 3) throw new Error("not streamed");
  },
  tools: (model) => responsesLoop(model, respond),
  stream_tools: (model) => responsesLoop(model, streamedResponse),
  reasoning_tools: (model) => responsesLoop(model, streamedResponse, {reasoning}),
  async structured(model) {
    const format = {type: "json_schema", name: "place", strict: true, schema: PLACE};
    const answer = await client.responses.parse({model, input: FACTS, text: {format}});
    same(answer.output_parsed, WANTED);
  },
  async image(model) {
    const content = [
      {type: "input_text", text: LOOK},
      {type: "input_image", image_url: PNG_URL, detail: "auto"},
    ];
    const answer = await respond({model, input: [{role: "user", content}]});
    says(answer.output_text, LOOK, "(an image)");
  },
  async reasoning(model, vendor) {
    const answer = await respond({model, input: THINK, reasoning});
    says(answer.output_text, THINK);
    const items = answer.output.filter((item) => item.type === "reasoning");
    thought(JSON.stringify(items), vendor);
  },
});
