"""Routing: from a request to an answer and its record.

`router` is the story: plan, attempts, finish. `targets` and `circuit_breaker` hold the state of
targets, `accounting` the money, `stream` an answer that is still coming; `explain` tells what a
call would do.
"""
