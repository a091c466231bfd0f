"""Reports calls as spans, metrics and log lines; and memory that workers share.

`spans` go to TokenTrace by `tokentrace`, `call_log` writes lines, `metrics` counts in
`shared_memory`, `alerts` posts to a webhook. `exporter` is the queue of whatever is sent in the
background.
"""
