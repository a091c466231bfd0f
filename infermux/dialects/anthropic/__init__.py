"""Anthropic's wire format: messages and count_tokens."""
