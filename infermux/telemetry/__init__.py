"""What is told of a call: spans, metrics, log lines; and what workers share to tell it."""
