"""Google's wire format: generateContent, countTokens, embedContent."""
