"""The edge: what Envoy is told to listen on, to ask and to serve."""
