"""A test double of the auth service: says who asks, to the edge, and believes whatever it is told. Development only."""
