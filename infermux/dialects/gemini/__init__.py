"""Google's wire format, of Gemini and Vertex AI: generateContent, countTokens, embedContent.

`upstream` is the vendor's side, `requests` translates requests of other dialects. `downstream` is
the client's side (the Gemini-compatible API): `contents` and `schemas` read its requests, `stream`
writes its streams, `signatures` lets the thoughts of other vendors ride in Google's.
"""

from ..parameters import Kind, Parameters

NAME = "gemini"
PARAMETERS: Parameters = {  # of this format only
    Kind.HINT: {
        "autoTruncate": "housekeeping",
        "labels": "housekeeping",
        "mediaResolution": "price",
        "serviceTier": "price",
        "taskType": "how the vectors are tuned",
        "thinkingConfig": "effort",
        "title": "how the vectors are tuned",
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
