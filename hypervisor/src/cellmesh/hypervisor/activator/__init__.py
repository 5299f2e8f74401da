"""The activator: answers requests whose container cannot, and has their VM started. A process of its own."""
