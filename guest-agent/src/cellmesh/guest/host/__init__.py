"""Guest to host: Hello, and the reports."""
