"""Google's wire format, at Gemini and at Vertex: generateContent, countTokens, embedContent.

`upstream` is the vendor's side, `requests` translates requests of other dialects.
"""

NAME = "gemini"
