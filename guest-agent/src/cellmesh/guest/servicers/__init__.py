"""Host to guest: each servicer decodes, calls the domain, and encodes."""
