// What is there to try where people have nothing of their own at hand.

export const EXAMPLE_SCHEMA = JSON.stringify(
  {
    type: "object",
    properties: {
      river: { type: "string" },
      country: { type: "string" },
      length_km: { type: "integer" },
    },
    required: ["river", "country", "length_km"],
    additionalProperties: false,
  },
  null,
  2,
);

export const EXAMPLE_TOOLS = JSON.stringify(
  [
    {
      name: "get_weather",
      description: "The present weather of a city.",
      parameters: {
        type: "object",
        properties: { city: { type: "string" }, unit: { enum: ["celsius", "fahrenheit"] } },
        required: ["city"],
      },
    },
  ],
  null,
  2,
);
