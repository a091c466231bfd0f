"""OpenAI's wire format: chat completions, completions, embeddings."""
