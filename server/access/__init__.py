"""Who may do what: API keys, quotas and the audit log. Knows callers and names; no HTTP beyond the two headers that carry a key."""
