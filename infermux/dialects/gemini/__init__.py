"""Google's wire format, of Gemini and Vertex AI: generateContent, countTokens, embedContent.

`upstream` is the vendor's side, `requests` translates requests of other dialects.
"""

from ..parameters import Kind, Parameters

NAME = "gemini"
PARAMETERS: Parameters = {  # of this format only
    Kind.HINT: {
        "labels": "housekeeping",
        "mediaResolution": "price",
        "serviceTier": "price",
        "thinkingConfig": "effort",
    },
    Kind.MEANING: {
        "cachedContent": "state at the vendor",
        "candidateCount": "number of answers",
        "generationConfig": "form of the answer",
        "responseModalities": "another answer",
        "safetySettings": "what may be answered",
        "speechConfig": "another answer",
        "toolConfig": "who acts",
    },
}
