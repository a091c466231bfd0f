"""OpenAI's wire format, which some twenty other vendors offer too.

Chat completions are read and written in full; legacy completions, embeddings and Responses pass
between client and vendor as they are. `upstream` is the vendor's side, `requests` translates
requests of other dialects, `downstream` is the client's side (the OpenAI-compatible API).
"""

NAME = "openai"
