"""Queries of the status page: `activity` sums up the last days by short steps of
time, `search` finds calls, newest first. Both take bounded time, however long the ledger is.
"""
