"""What the status page reads of the ledger: `activity` sums up the last days by short steps of
time, `search` finds calls, newest first. Both take bounded time, however long the ledger is.
"""
