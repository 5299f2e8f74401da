"""What a VM, a container and an event are, and what may become of them. Knows neither gRPC nor SQL."""
