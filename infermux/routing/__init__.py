"""Routing: sends requests to targets and records the calls.

`router` plans, attempts and finishes a call. `targets` and `circuit_breaker` hold the state of
targets, `accounting` handles costs, `stream` is a streamed answer; `explain` shows what a call
would do. `target_queue`, `pacing` and `hooks` serve attempts; `callers`, `answers` (a cache),
`mirror`, `stored` and `passed` serve the calls that need them.
"""
