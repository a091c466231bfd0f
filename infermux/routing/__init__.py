"""The router: plan, attempts, finish; and the runtime state of its targets."""
