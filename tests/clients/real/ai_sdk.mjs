// The AI SDK: the npm package ai with @ai-sdk/openai (both APIs), @ai-sdk/anthropic, @ai-sdk/google.

import {
  BASE_URL, CITIES, FACTS, HELLO, KEY, LOOK, PNG_URL, STEPS, THINK, WANTED,
  load, run, same, says, thought, weather,
} from "./scenarios.mjs";

const {generateObject, generateText, stepCountIs, streamObject, streamText, tool} =
  await load("ai");
const {createOpenAI} = await load("@ai-sdk/openai");
const {createAnthropic} = await load("@ai-sdk/anthropic");
const {createGoogleGenerativeAI} = await load("@ai-sdk/google");
const {z} = await load("zod");

const openai = createOpenAI({baseURL: `${BASE_URL}/v1`, apiKey: KEY});
const anthropic = createAnthropic({baseURL: `${BASE_URL}/v1`, apiKey: KEY});
const google = createGoogleGenerativeAI({baseURL: `${BASE_URL}/v1beta`, apiKey: KEY});
const kinds = {
  "ai, @ai-sdk/openai chat": [
    (model) => openai.chat(model),
    {openai: {reasoningEffort: "high", forceReasoning: true}},
  ],
  "ai, @ai-sdk/openai": [
    (model) => openai(model),
    {
      openai: {
        reasoningEffort: "high", reasoningSummary: "auto", forceReasoning: true, store: false,
        include: ["reasoning.encrypted_content"],
      },
    },
  ],
  "ai, @ai-sdk/anthropic": [
    (model) => anthropic(model),
    {anthropic: {thinking: {type: "enabled", budgetTokens: 2000}}},
  ],
  "ai, @ai-sdk/google": [
    (model) => google(model),
    {google: {thinkingConfig: {includeThoughts: true, thinkingLevel: "high"}}},
  ],
};
const schema = z.object({city: z.string(), degrees: z.number().int()});

function asking(model, called, more = {}) {
  const execute = async ({city}) => {
    called.push(city);
    return weather(city);
  };
  const inputSchema = z.object({city: z.string()});
  const tools = {weather: tool({description: "The weather of a city", inputSchema, execute})};
  return {model, prompt: STEPS, tools, stopWhen: stepCountIs(5), maxRetries: 0, ...more};
}

function ended(text, called) {
  same(called, CITIES);
  says(text, "rain in Oslo", "rain in 東京");
}

for (const [client, [of, providerOptions]] of Object.entries(kinds))
  await run(client, {
    async text(model) {
      const asked = {model: of(model), system: "Be brief.", prompt: HELLO, maxRetries: 0};
      says((await generateText(asked)).text, HELLO);
    },
    async stream(model) {
      const pieces = [];
      let failed;
      const onError = ({error}) => (failed = error);
      const result = streamText({model: of(model), prompt: HELLO, maxRetries: 0, onError});
      for await (const piece of result.textStream) pieces.push(piece);
      if (failed) throw failed;
      says(pieces.join(""), HELLO);
      if (pieces.length < 3) throw new Error("not streamed");
    },
    async tools(model) {
      const called = [];
      ended((await generateText(asking(of(model), called))).text, called);
    },
    async stream_tools(model) {
      const called = [];
      let failed;
      const onError = ({error}) => (failed = error);
      const result = streamText(asking(of(model), called, {onError}));
      await result.consumeStream();
      if (failed) throw failed;
      ended(await result.text, called);
    },
    async reasoning_tools(model) {
      const called = [];
      ended((await generateText(asking(of(model), called, {providerOptions}))).text, called);
    },
    async structured(model) {
      const asked = {model: of(model), schema, prompt: FACTS, maxRetries: 0};
      same((await generateObject(asked)).object, WANTED);
    },
    async stream_structured(model) {
      let last;
      const result = streamObject({model: of(model), schema, prompt: FACTS, maxRetries: 0});
      for await (last of result.partialObjectStream);
      same(last, WANTED);
    },
    async image(model) {
      const content = [{type: "text", text: LOOK}, {type: "image", image: PNG_URL}];
      const messages = [{role: "user", content}];
      const {text} = await generateText({model: of(model), messages, maxRetries: 0});
      says(text, LOOK, "(an image)");
    },
    async reasoning(model, vendor) {
      const asked = {model: of(model), prompt: THINK, providerOptions, maxRetries: 0};
      const {text, reasoningText} = await generateText(asked);
      says(text, THINK);
      if (client !== "ai, @ai-sdk/openai chat") thought(reasoningText, vendor);
    },
  });
