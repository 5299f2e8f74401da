"""The audit log of a service: its signed heads, its check, its watch. Entries are written by `Transaction.audit`."""
